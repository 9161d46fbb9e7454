"""The heads of classification on a model's last hidden states x, in float32.

    h = Σ_t P_t·x_t                    P picks a document's first or last token, or is 1/length on all its tokens
    z = W·n(act(V·h + b)) + c          V, act and n only where the family has them (architectures/heads.py)

A head's parts are a tree {part: {'weight', 'bias'}}: those that are trained stand in the direction, which is the lower level, and
those that came with the model and stay as they are in the base. None is quantised. Rows may hold several documents; slot n is
the document of segment n + 1, and an empty slot gives the head of a zero vector, which nobody reads.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from bidora_jax.kernels.activations import activate
from bidora_jax.kernels.norms import layer_norm
from bidora_jax.kernels.precision import wide
from bidora_jax.models.architectures.heads import HEAD_TREE, HeadSpec


def outputs(
    spec: HeadSpec, base: PyTree, direction: PyTree, x: Float[Array, "B T D"], segments: Int[Array, "B T"], slots: int
) -> Float[Array, "B _ C"]:
    """What the head says of every slot, or where it is a head of tokens, of every token. `slots`: documents a row at most."""
    parts = {**base.get(HEAD_TREE, {}), **direction.get(HEAD_TREE, {})}
    x = x.astype(wide(x.dtype))
    h = x if spec.pool == "each" else pooled(spec, x, segments, slots)
    for part in spec.parts:
        leaves = parts[part.name]
        if part.name == "norm":
            h = layer_norm(h, leaves["weight"], leaves.get("bias"), eps=spec.eps)
            continue
        h = jnp.einsum("btd,cd->btc", h, leaves["weight"], precision="highest")
        h = h + leaves["bias"].reshape(1, 1, -1) if part.bias else h
        if part.name == "dense" and spec.activation is not None:
            h = activate(h, spec.activation)
    return h


def pooled(spec: HeadSpec, x: Float[Array, "B T D"], segments: Int[Array, "B T"], slots: int) -> Float[Array, "B N D"]:
    """The hidden state that stands for the document of each slot."""
    own = segments[:, None, :] == jnp.arange(1, slots + 1)[None, :, None]
    count = jnp.cumsum(own, axis=-1)
    if spec.pool == "first":
        weights = (own & (count == 1)).astype(x.dtype)
    elif spec.pool == "last":
        weights = (own & (count == count[..., -1:])).astype(x.dtype)
    else:
        weights = own.astype(x.dtype) / jnp.maximum(count[..., -1:], 1).astype(x.dtype)
    return jnp.einsum("bnt,btd->bnd", weights, x, precision="highest")
