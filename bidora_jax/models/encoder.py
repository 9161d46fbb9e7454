"""The encoders: BERT, RoBERTa, DistilBERT, ELECTRA and ESM-2; where they differ is a flag or a name of EncoderConfig.

    x ← norm(E[tokens] + types + positions);   for each layer:  x ← norm(x + attention(x));  x ← norm(x + mlp(x))
    or, with the norm first:                   x ← x + attention(norm(x));  x ← x + mlp(norm(x));   at the end norm(x)

The scan, the linear layers, tapes and dtypes are the decoder's (decoder.py). Attention looks both ways. A row is one document,
padded on the right, whose length `lengths` says, or several, which `segments` tells apart: a token sees its own document, and its
positions count from 0 in it, so a text's hidden states are the same alone, padded and packed. Those of padding are finite and
mean nothing.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from bidora_jax.kernels import norms, rope
from bidora_jax.kernels.activations import activate
from bidora_jax.kernels.encoder_attention import segment_attention
from bidora_jax.kernels.matmul import frozen_dot
from bidora_jax.kernels.precision import wide
from bidora_jax.models import stacks
from bidora_jax.models.adapters.adapter import Adapter
from bidora_jax.models.architectures.architecture import LinearSpec, Role
from bidora_jax.models.architectures.encoder import (
    EMBED_NORM,
    EMBED_PROJECTION,
    NORM,
    POSITIONS,
    ROTARY,
    TYPES,
    EncoderConfig,
)
from bidora_jax.models.base import dtype_of, embedded, with_whole_modules
from bidora_jax.models.compute import Compute
from bidora_jax.models.layer_scan import Layer
from bidora_jax.models.linear import Linear, side_by_side
from bidora_jax.models.stacks import Stacks, Trained
from bidora_jax.models.tape import EmptyTape, TapeValues

Batch = dict[str, Array]
"""tokens (B, T); lengths (B,), or segments (B, T) where a row holds several documents; types (B, T) where tokens have types."""
Angles = tuple[Array, Array] | None
"""cos and sin of rotary positions."""
ESM_KEPT = 1 - 0.15 * 0.8
"""The share of embeddings that ESM's pretraining left: it chose 15 % of the tokens, and masked 80 % of those."""


class LayerNorm(nn.Module):
    eps: float

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1],)
        weight = self.variable("base", "weight", jnp.ones, shape, x.dtype).value
        bias = self.variable("base", "bias", jnp.zeros, shape, x.dtype).value
        return norms.layer_norm(x, weight, bias, eps=self.eps)


class EncoderLayer(nn.Module):
    """One layer. Its variables are one slice of the stacked trees, by paths: {'attention.self.query': {'weight': …}}."""

    config: EncoderConfig
    adapter: Adapter | None
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x, segments, angles: Angles):
        c = self.config
        attention_norm, mlp_norm = (LayerNorm(c.eps, name=name) for name in (c.names.attention_norm, c.names.mlp_norm))
        if c.norm_first:
            x = x + _attention(self, attention_norm(x), segments, angles)
            return x + _mlp(self, mlp_norm(x))
        x = attention_norm(x + _attention(self, x, segments, angles))
        return mlp_norm(x + _mlp(self, x))


def _attention(layer: EncoderLayer, x, segments, angles: Angles) -> Float[Array, "B T D"]:
    c, chunk = layer.config, layer.compute.attention_chunk
    q, k, v = (part.reshape(*x.shape[:2], c.num_heads, -1) for part in _projected(layer, ("q", "k", "v"), x))
    if angles is not None:
        q, k = rope.rope(q, *angles), rope.rope(k, *angles)
    out = segment_attention(q, k, v, segments, chunk=chunk).reshape(x.shape)
    # In chunks the backward pass computes the scores anew: once where the result is saved, else twice.
    (spec,) = _specs(c, ("o",))
    return _linear(layer, spec, saves_input=x.shape[1] > chunk, exposes_input=True)(out)


def _mlp(layer: EncoderLayer, x) -> Float[Array, "B T D"]:
    (up,) = _projected(layer, ("up",), x)
    (spec,) = _specs(layer.config, ("down",))
    return _linear(layer, spec)(activate(up, layer.config.activation))


def _projected(layer: EncoderLayer, roles: tuple[Role, ...], x) -> list[Array]:
    """What each of these linear layers makes of x, one matrix of several roles cut into its parts."""
    specs = _specs(layer.config, roles)
    outs = side_by_side([_linear(layer, spec) for spec in specs], x)
    return [part for spec, out in zip(specs, outs, strict=True) for part in jnp.split(out, len(spec.roles), axis=-1)]


def _specs(config: EncoderConfig, roles: Sequence[Role]) -> list[LinearSpec]:
    return [spec for spec in config.linears if spec.roles[0] in roles]


def _linear(layer: EncoderLayer, spec: LinearSpec, *, saves_input=False, exposes_input=False) -> Linear:
    adapted = None if layer.adapter is None else layer.adapter.at(spec.path)
    parts = spec.in_features, spec.out_features, True, adapted, layer.compute, saves_input, exposes_input
    return Linear(*parts, name=spec.path)


def hidden(
    config: EncoderConfig,
    adapter: Adapter | None,
    compute: Compute,
    base: PyTree,
    trained: Trained,
    batch: Batch,
    key: Array | None = None,
    tape: EmptyTape | TapeValues | None = None,
) -> Float[Array, "B T D"]:
    """The last hidden states, normed where the norm comes first. Otherwise as `decoder.hidden`. ValueError for cuDNN's
    attention."""
    if compute.fused:
        raise ValueError("encoders have no fused attention: take chunked attention")
    base = with_whole_modules(base, trained[0])
    x = _stacked(config, compute, base, trained, batch, key).applied(_layer(config, adapter, compute), compute, tape)
    x = x.astype(compute.dtype or dtype_of(base))
    return norms.layer_norm(x, base[NORM]["weight"], base[NORM]["bias"], eps=config.eps) if config.norm_first else x


def empty_tape(
    config: EncoderConfig,
    adapter: Adapter | None,
    compute: Compute,
    base: PyTree,
    trained: Trained,
    batch: Batch,
    means: Array | None,
) -> EmptyTape:
    """The empty tape of a pass over this batch, with remat `dots` of its layers, and with these `means` of its head."""
    base = with_whole_modules(base, trained[0])
    parts = _stacked(config, compute, base, trained, batch, None)
    return parts.empty_tape(_layer(config, adapter, compute), compute, means)


def _stacked(config: EncoderConfig, compute: Compute, base: PyTree, trained: Trained, batch: Batch, key) -> Stacks:
    segments = stacks.segments_of(batch)
    positions = stacks.documents(segments)[1]
    x = _embedded(config, base, batch, segments, positions, compute.dtype or dtype_of(base))
    angles = None
    if config.positions == "rotary":
        angles = rope.rope_angles(positions, base[ROTARY]["inv_freq"], dtype=x.dtype)
    return stacks.stacked(base, trained, x, (segments, angles), key)


def _layer(config: EncoderConfig, adapter: Adapter | None, compute: Compute) -> Layer:
    layer = EncoderLayer(config, adapter, compute)

    def apply(variables, x, given, own, **how):
        variables = {name: _by_path(tree) for name, tree in variables.items()}
        return layer.apply(variables, x, *given, **how)

    return stacks.as_layer(apply)


def _by_path(tree: PyTree, path: str = "") -> dict[str, PyTree]:
    """{'attention': {'self': {'query': leaves}}} as {'attention.self.query': leaves}."""
    if not any(isinstance(part, dict) for part in tree.values()):
        return {path: tree} if path else tree
    found = {}
    for name, part in tree.items():
        found |= _by_path(part, f"{path}.{name}" if path else name)
    return found


def _embedded(
    config: EncoderConfig, base: PyTree, batch: Batch, segments, positions: Int[Array, "B T"], dtype
) -> Float[Array, "B T D"]:
    """The x of the first layer."""
    tokens = batch["tokens"]
    x = embedded(base, tokens).astype(dtype)
    if config.dropped_token is not None:
        x = _without(x, tokens == config.dropped_token, segments)
    if config.types:
        types = batch["types"] if "types" in batch and config.types > 1 else jnp.zeros_like(tokens)
        x = x + base[TYPES]["weight"][types].astype(dtype)
    if config.positions == "learned":
        # Padding may be longer than the table; its position is any.
        rows = config.first_position + jnp.where(segments > 0, positions, 0)
        x = x + base[POSITIONS]["weight"][rows].astype(dtype)
    if config.embed_norm:
        x = norms.layer_norm(x, base[EMBED_NORM]["weight"], base[EMBED_NORM]["bias"], eps=config.eps).astype(dtype)
    if EMBED_PROJECTION in base:
        weight, bias = (base[EMBED_PROJECTION][leaf].astype(dtype) for leaf in ("weight", "bias"))
        x = frozen_dot(x, weight).astype(dtype) + bias[None, None]
    return x


def _without(x: Float[Array, "B T D"], dropped, segments: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """x with zeros at the dropped tokens, all of a document times 0.88 over the share that it keeps: ESM's token dropout, which
    multiplies by 0.88 where nothing is dropped."""

    def by_document(counted, segments):
        return jax.ops.segment_sum(counted, segments, num_segments=segments.size + 1)[segments]

    gone, all_of_it = (
        jax.vmap(by_document)(counted.astype(jnp.int32), segments) for counted in (dropped, jnp.ones_like(dropped))
    )
    dtype = wide(x.dtype)
    scale = ESM_KEPT / (1 - gone.astype(dtype) / all_of_it.astype(dtype))
    return (jnp.where(dropped[..., None], 0, x).astype(dtype) * scale[..., None]).astype(x.dtype)
