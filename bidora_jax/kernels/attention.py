"""Causal grouped-query attention, differentiable to second order.

    attend(q, k, v)ₜ = Σ_{u≤t} softmax_u(qₜ·k_u / √h) v_u               each of K key/value heads serves G = H/K queries
                                                                        with a window w: t − w < u ≤ t (Mistral)
                                                                        of a document from s on: s ≤ u ≤ t (packed rows)

The softmax is float32 (float64 for float64); products have the dtype of the inputs and accumulate in float32. Sequences are
padded on the right: under the causal mask a real token never sees padding, so there is no padding mask, and results at
padded positions are finite and meaningless. The custom derivatives (products, softmax) are ordinary code, which a mixed
second-order product passes through. `fused_attention` is the exception: cuDNN's kernels, with a first derivative and no second.
"""

from functools import partial
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bidora_jax.kernels.matmul import dot, matmul_transposed_left
from bidora_jax.kernels.xla_cpu.reductions import row_dots, row_sums
from bidora_jax.kernels.xla_cpu.transpose import transpose


def visible(
    queries: Int[Array, " Q"],
    keys: Int[Array, " S"],
    window: int | None = None,
    starts: Int[Array, "B Q"] | None = None,
) -> Bool[Array, "#B Q S"]:
    """Which key positions a query position sees: none after it, with a window only the last `window`, its own included,
    and with `starts` none before its document's first."""
    distance = queries[:, None] - keys[None, :]
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return seen[None] if starts is None else seen[None] & (keys[None, None, :] >= starts[:, :, None])


def attend(
    q: Float[Array, "B Q H h"], k: Float[Array, "B S K h"], v: Float[Array, "B S K h"], visible: Bool[Array, "#B Q S"]
) -> Float[Array, "B Q H h"]:
    """Attention of Q queries over S keys where `visible` allows it, with the [Q, S] scores of every head in memory."""
    (rows,) = _rows_by_run(q, q.shape[2] // k.shape[2], (0, q.shape[1]))
    return _attend_rows(rows, k, v, visible)


def _attend_rows(
    rows: Float[Array, "B K M h"],
    k: Float[Array, "B S K h"],
    v: Float[Array, "B S K h"],
    visible: Bool[Array, "#B Q S"],
) -> Float[Array, "B Q H h"]:
    batch, kv_heads, count, dim = rows.shape
    queries = visible.shape[1]
    seen = jnp.repeat(visible, count // queries, axis=1)[:, None]
    out = weighted(dim**-0.5, rows, transpose(k, 1, 2), transpose(v, 1, 2), seen)
    # It goes into no product before it is joined: turned as it is, which a CPU does faster than in pairs of 16 bits.
    out = out.reshape(batch, kv_heads, queries, -1, dim).swapaxes(1, 2)
    return out.reshape(batch, queries, -1, dim).astype(rows.dtype)


def _rows_by_run(
    q: Float[Array, "B T H h"], groups: int, edges: tuple[int, ...]
) -> tuple[Float[Array, "B K _ h"], ...]:
    """The queries of each run, from one edge to the next. Those of all heads that share keys are the rows of one product, in an
    order that never turns the scores."""
    batch, _, heads, dim = q.shape
    shape = batch, heads // groups, -1, dim
    runs = [q[:, first:stop].reshape(batch, -1, heads // groups, groups, dim) for first, stop in pairwise(edges)]
    return tuple(transpose(run, 1, 2).reshape(shape) for run in runs)


def weighted(
    scale: float,
    rows: Float[Array, "B K M h"],
    k: Float[Array, "B K S h"],
    v: Float[Array, "B K S h"],
    visible: Bool[Array, "#B 1 M S"],
    bias: Float[Array, "B K M S"] | None = None,
) -> Float[Array, "B K M h"]:
    """softmax(scale·rows·kᵀ + bias)·v over the visible keys, with the accumulator of the last product.

    Its derivative is written out, since with P the weights and g the cotangent of the result o = P·v

        dP = g·vᵀ,   dS = P ⊙ (dP − rowsum(P ⊙ dP)),   and   rowsum(P ⊙ dP) = rowsum(g ⊙ o),

    a sum over h numbers instead of S (FlashAttention, arXiv:2205.14135, appendix B). P is kept in the dtype of v.
    """
    return _weighted(scale, rows, k, v, visible, bias)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted(scale: float, rows, k, v, visible, bias) -> Array:
    return _weighted_forward(scale, rows, k, v, visible, bias)[0]


def _weighted_forward(scale: float, rows, k, v, visible, bias):
    scores = dot(rows, k, -1, -1) * scale
    scores = jnp.where(visible, scores if bias is None else scores + bias, jnp.finfo(scores.dtype).min)
    powers = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    weights = (powers / row_sums(powers)).astype(v.dtype)
    out = dot(weights, v, -1, -2)
    return out, (rows, k, v, weights, out, bias)


def _weighted_backward(scale: float, residuals, g):
    rows, k, v, weights, out, bias = residuals
    shift = row_dots(g, out)
    g = g.astype(v.dtype)
    # The scale multiplies what comes of the scores' derivative rather than that [M, S] array, which is much the larger.
    dscores = weights * (dot(g, v, -1, -1) - shift)
    dbias = None if bias is None else dscores.astype(bias.dtype)
    dscores = dscores.astype(rows.dtype)
    drows = dot(dscores, k, -1, -2) * scale
    dk, dv = matmul_transposed_left(dscores, rows) * scale, matmul_transposed_left(weights, g)
    return drows.astype(rows.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, dbias


_weighted.defvjp(_weighted_forward, _weighted_backward)


def causal_attention(
    q: Float[Array, "B T H h"],
    k: Float[Array, "B T K h"],
    v: Float[Array, "B T K h"],
    *,
    chunk: int,
    window: int | None = None,
    starts: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T H h"]:
    """Causal grouped-query attention; sequences longer than `chunk` are attended at most half as many queries at a time.

    `starts`: where the document of each token begins, in a row of several: what is before it is not seen.

    The chunked form recomputes each chunk's scores in the backward pass, so that memory grows with T·chunk instead of T².
    The queries are cut into at most RUNS runs, and a run meets only the keys that one of its queries can see.
    """
    length = q.shape[1]
    if length > chunk:
        # Two chunks a run at least: of a loop of one turn XLA keeps the scores rather than compute them again.
        chunk = min(-(-chunk // 2), -(-length // (2 * RUNS)))
    step = chunk if length > chunk else max(-(-length // RUNS), SHORTEST_RUN)
    runs = [(first * step, min(stop * step, length)) for first, stop in _runs(-(-length // step))]
    # Each with the keys that one of its queries can see.
    spans = [(0 if window is None else max(0, start - window + 1), stop) for start, stop in runs]
    met = [(k[:, first:stop], v[:, first:stop]) for first, stop in spans]
    if length <= chunk:
        rows = _rows_by_run(q, q.shape[2] // k.shape[2], (0, *(stop for _, stop in runs)))
        seen = [
            visible(jnp.arange(*run), jnp.arange(*span), window, None if starts is None else starts[:, slice(*run)])
            for run, span in zip(runs, spans, strict=True)
        ]
        out = [_attend_rows(some, *keys, mask) for some, keys, mask in zip(rows, met, seen, strict=True)]
    else:
        out = []
        for run, (first_key, _), (some_k, some_v) in zip(runs, spans, met, strict=True):
            part = partial(_attend_from, k=some_k, v=some_v, first_key=first_key, window=window)
            rows = (q[:, slice(*run)],) if starts is None else (q[:, slice(*run)], starts[:, slice(*run)])
            out.append(by_chunk(part, run[0], chunk, *rows))
    return out[0] if len(out) == 1 else jnp.concatenate(out, axis=1)


def fused_attention(
    q: Float[Array, "B T H h"],
    k: Float[Array, "B T K h"],
    v: Float[Array, "B T K h"],
    *,
    window: int | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B T H h"]:
    """`causal_attention` of a document a row, in cuDNN's fused kernels (FlashAttention-2, arXiv:2307.08691): no scores in memory.

    First derivatives only: `jvp` and a gradient of a gradient raise. RuntimeError or ValueError, while it is traced or compiled,
    for what cuDNN does not take: another device than an NVIDIA GPU, other dtypes than 16-bit floats, h past 128 (256 from Hopper
    on) or no multiple of 8. XLA lets its backward pass sum in any order, unless --xla_gpu_deterministic_ops is set. "xla" is
    the same call without cuDNN, to hold the arguments to.
    """
    # Keys before a query's own, and after it.
    sides = None if window is None or window >= q.shape[1] else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q, k, v, scale=q.shape[-1] ** -0.5, is_causal=True, local_window_size=sides, implementation=implementation
    )


RUNS = 4
"""Of four runs the keys met are 5/8 of all, of eight 9/16; the program grows with each."""
SHORTEST_RUN = 128
"""Queries that a run has at least: with fewer it costs more than it saves."""


def _runs(chunks: int) -> list[tuple[int, int]]:
    """At most RUNS runs of whole chunks, as equal as can be: (first, one past the last)."""
    edges = [chunks * run // min(chunks, RUNS) for run in range(min(chunks, RUNS) + 1)]
    return list(pairwise(edges))


def _attend_from(first_query, q, starts=None, *, k, v, first_key: int, window: int | None):
    """Queries and keys of consecutive positions, each from its first one on."""
    queries, keys = first_query + jnp.arange(q.shape[1]), first_key + jnp.arange(k.shape[1])
    return attend(q, k, v, visible(queries, keys, window, starts))


def by_chunk(part, first: int, chunk: int, *rows: Array) -> Float[Array, "B Q H h"]:
    """part(position of the first query, *rows (B, Q, …)) for `chunk` queries at a time, recomputed in the backward pass."""
    length = rows[0].shape[1]
    count = -(-length // chunk)

    def split(array):
        padded = jnp.pad(array, ((0, 0), (0, count * chunk - length)) + ((0, 0),) * (array.ndim - 2))
        return padded.reshape(array.shape[0], count, chunk, *array.shape[2:]).swapaxes(0, 1)

    chunks = (first + jnp.arange(count) * chunk, *map(split, rows))
    out = jax.lax.map(lambda args: jax.checkpoint(part)(*args), chunks).swapaxes(0, 1)
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :length]
