"""What the layers of an encoder are given: the embeddings of a batch, and beside x, positions in every form that a family has.

    x = norm(E[tokens] + types + positions)      learned positions: rows of a table, added here
    cos, sin of each rotary base                 ModernBERT's layers have one base for windows and one for whole texts
    a row for each difference of positions       DeBERTa's, of the normed table of relative positions
    a convolution of x over neighbours           DeBERTa-v2's, for the first layer's end

Positions count from 0 in each document, and no document meets another.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from bidora_jax.kernels import norms, rope
from bidora_jax.kernels.activations import activate
from bidora_jax.kernels.disentangled import rows_by_difference
from bidora_jax.kernels.matmul import frozen_dot
from bidora_jax.kernels.precision import wide
from bidora_jax.models.architectures.encoder import (
    CONVOLUTION,
    CONVOLUTION_NORM,
    EMBED_NORM,
    EMBED_PROJECTION,
    POSITIONS,
    RELATIVE,
    RELATIVE_NORM,
    ROTARY,
    TYPES,
    EncoderConfig,
)
from bidora_jax.models.architectures.rope import frequencies
from bidora_jax.models.base import embedded

Batch = dict[str, Array]
"""tokens (B, T); lengths (B,), or segments (B, T) where a row holds several documents; types (B, T) where tokens have types."""
Angles = tuple[Float[Array, "K B T h"], Float[Array, "K B T h"]]
"""cos and sin of rotary positions, of each base that a layer has."""
ESM_KEPT = 1 - 0.15 * 0.8
"""The share of embeddings that ESM's pretraining left: it chose 15 % of the tokens, and masked 80 % of those."""


class Given(NamedTuple):
    """What every layer is given beside x."""

    segments: Int[Array, "B T"]
    angles: Angles | None
    relative: Float[Array, "R D"] | None
    """The row of relative positions of each difference of two columns, from −T to T."""
    convolution: tuple[Float[Array, "B T D"], PyTree] | None
    """Its result, and the norm that takes it with the first layer's."""


class Own(NamedTuple):
    """What a layer is given that the next one may not have, or, of all layers, stacks. None of what the model lacks."""

    window: Int[Array, "*L"] | None
    """How far a token sees to each side."""
    rotation: Int[Array, "*L"] | None
    """Which of the angles."""
    first: Bool[Array, "*L"]
    """Whether it is the first layer: the one without a norm before attention, or the one that takes the convolution in."""


def given(
    config: EncoderConfig, base: PyTree, segments, positions: Int[Array, "B T"], x: Float[Array, "B T D"]
) -> Given:
    """What every layer is given where x is the first one's."""
    relative = convolution = angles = None
    if config.positions == "rotary":
        angles = _angles(config, base, positions, x.dtype)
    if config.relative is not None:
        relative = _relative(config, base, x.shape[1]).astype(x.dtype)
    if config.convolution is not None:
        convolved = _convolved(base[CONVOLUTION], x, segments)
        convolution = activate(convolved, config.convolution.activation), base[CONVOLUTION_NORM]
    return Given(segments, angles, relative, convolution)


def own(config: EncoderConfig) -> Own:
    """The stacks of what each layer is given of its own."""
    whole = jnp.iinfo(jnp.int32).max
    windows, bases = [whole if window is None else window for window in config.windows], _bases(config)
    return Own(
        window=jnp.array(windows, jnp.int32) if windows else None,
        rotation=jnp.array([bases.index(theta) for theta in config.thetas]) if len(bases) > 1 else None,
        first=jnp.arange(config.num_layers) == 0,
    )


def normed(config: EncoderConfig, norm: PyTree, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    """x after a norm outside the layers."""
    return norms.layer_norm(x, norm["weight"], norm.get("bias"), eps=config.eps)


def embed(
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
    if config.projected_first:
        x = _projected(base, x)
    if config.embed_norm:
        x = normed(config, base[EMBED_NORM], x)
    return x if config.projected_first else _projected(base, x)


def _projected(base: PyTree, x: Float[Array, "B T E"]) -> Float[Array, "B T D"]:
    if EMBED_PROJECTION not in base:
        return x
    leaves = {name: leaf.astype(x.dtype) for name, leaf in base[EMBED_PROJECTION].items()}
    y = frozen_dot(x, leaves["weight"]).astype(x.dtype)
    return y + leaves["bias"][None, None] if "bias" in leaves else y


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


def _bases(config: EncoderConfig) -> list[float]:
    return sorted(set(config.thetas))


def _angles(config: EncoderConfig, base: PyTree, positions: Int[Array, "B T"], dtype) -> Angles:
    by_base = [frequencies(config.head_dim, theta, None)[0] for theta in _bases(config)] or [base[ROTARY]["inv_freq"]]
    tables = [rope.rope_angles(positions, one, dtype=dtype) for one in by_base]
    cos, sin = (jnp.stack(parts) for parts in zip(*tables, strict=True))
    return cos, sin


def _relative(config: EncoderConfig, base: PyTree, length: int) -> Float[Array, "R D"]:
    relative = config.relative
    assert relative is not None
    table = base[RELATIVE]["weight"]
    if relative.normed:
        table = normed(config, base[RELATIVE_NORM], table)
    return table[rows_by_difference(length, relative.half, buckets=relative.buckets, most=relative.most)]


def _convolved(convolution: PyTree, x: Float[Array, "B T D"], segments: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """out_t = Σ_j W_j·x_{t+j} + b over the neighbours of t's own document, as many to each side."""
    weight, bias = (convolution[leaf].astype(x.dtype) for leaf in ("weight", "bias"))
    count, side = x.shape[1], weight.shape[2] // 2
    neighbours = jnp.pad(x, ((0, 0), (side, side), (0, 0)))
    owners = jnp.pad(segments, ((0, 0), (side, side)), constant_values=-1)
    total = bias.astype(wide(x.dtype))[None, None]
    for j in range(weight.shape[2]):
        same = (owners[:, j : j + count] == segments)[..., None]
        total = total + frozen_dot(jnp.where(same, neighbours[:, j : j + count], 0), weight[:, :, j])
    return total.astype(x.dtype)
