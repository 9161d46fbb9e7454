"""Attention within a document, to both sides: that of encoders. Differentiable to second order.

    attend(q, k, v)ᵢ = Σ_j softmax_j(s·qᵢ·k_j + bias_ij) v_j           over the j of i's document; with a window w: |i − j| ≤ w

`segments` says which document of its row a token belongs to. Padding is a segment like any other: it sees itself, so that its
results are finite, and no document sees it. Scores and softmax are float32 (float64 for float64); products have the dtype of the
inputs and accumulate in float32.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bidora_jax.kernels.attention import by_chunk, weighted
from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.xla_cpu.rows import by_rows, rows_at_a_time
from bidora_jax.kernels.xla_cpu.transpose import transpose

Bias = Callable[[Array | int, Array], Array]
"""(position of the first query, queries (B, Q, H, h)) -> (B, H, Q, T), added to their scores."""


def visible(
    queries: Int[Array, "B Q"],
    segments: Int[Array, "B T"],
    first: Int[Array, ""] | int,
    window: Int[Array, ""] | int | None = None,
) -> Bool[Array, "B Q T"]:
    """Which of all tokens the tokens of a block see, whose segments are `queries` and whose first one has position `first`."""
    same = queries[:, :, None] == segments[:, None, :]
    if window is None:
        return same
    distance = jnp.arange(segments.shape[1])[None, :] - (first + jnp.arange(queries.shape[1]))[:, None]
    return same & (jnp.abs(distance) <= window)[None]


def segment_attention(
    q: Float[Array, "B T H h"],
    k: Float[Array, "B T H h"],
    v: Float[Array, "B T H h"],
    segments: Int[Array, "B T"],
    *,
    chunk: int,
    window: Int[Array, ""] | int | None = None,
    bias: Bias | None = None,
    scale: float | None = None,
) -> Float[Array, "B T H h"]:
    """Each token attends to those of its document, with a `window` to those at most so far away: a traced one may differ by layer.

    Of sequences longer than `chunk`, so many queries are attended at a time, and their scores are recomputed in the backward pass:
    memory grows with T·chunk instead of T². The scale is 1/√h where none is given. On a CPU some rows are attended at a time.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale

    def attend(first, q, own, keys, values, segments):
        seen = visible(own, segments, first, window)[:, None]
        added = None if bias is None else bias(first, q)
        return weighted(factor, transpose(q, 1, 2), keys, values, seen, added).swapaxes(1, 2).astype(q.dtype)

    others = transpose(k, 1, 2), transpose(v, 1, 2), segments
    if q.shape[1] > chunk:
        return by_chunk(lambda first, q, own: attend(first, q, own, *others), 0, chunk, q, segments)
    if bias is not None:  # it knows the keys of all rows
        return attend(0, q, segments, *others)
    return by_rows(partial(attend, 0), _row_bytes(q), q, segments, *others)


def recomputed(q: Float[Array, "B T H h"], chunk: int) -> bool:
    """Whether the backward pass attends anew."""
    return q.shape[1] > chunk or rows_at_a_time(q.shape[0], _row_bytes(q)) < q.shape[0]


def _row_bytes(q: Float[Array, "B T H h"]) -> int:
    return q.shape[2] * q.shape[1] ** 2 * wide(q.dtype).itemsize
