"""RMS norm, rotary positions and causal grouped-query attention, differentiable to second order.

    norm(x) = w ⊙ x / √(mean(x²) + ε)                                  RMSNorm, arXiv:1910.07467
    rope(x)ₜ = x ∘ cos(tθ) + rotate_half(x) ∘ sin(tθ)                   RoPE, arXiv:2104.09864, half-split as in HF
    attend(q, k, v)ₜ = Σ_{u≤t} softmax_u(qₜ·k_u / √h) v_u               each of K key/value heads serves G = H/K queries
                                                                        with a window w: t − w < u ≤ t (Mistral)

Norms, angles and softmax are float32 (float64 for float64); products have the dtype of the inputs and accumulate in
float32. Sequences are padded on the right: under the causal mask a real token never sees padding, so no padding mask
exists; what stands at padded positions is finite and meaningless. The only custom derivatives are those of the products
(kernels/products.py), whose gradients are ordinary code: that is what lets a mixed second-order product pass through.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bidora_jax.kernels.products import matmul, product, swapped, wide
from bidora_jax.kernels.rotary import Pairs


def rms_norm(x: Float[Array, "*batch D"], weight: Float[Array, " D"], *, eps: float) -> Float[Array, "*batch D"]:
    """Normalises the last axis in float32, rounds to the dtype of x, then multiplies by the weight, as transformers does."""
    wide_x = x.astype(wide(x.dtype))
    normed = wide_x * jax.lax.rsqrt(jnp.mean(jnp.square(wide_x), axis=-1, keepdims=True) + eps)
    return normed.astype(x.dtype) * weight.reshape((1,) * (x.ndim - 1) + weight.shape)


def rope_angles(positions: Int[Array, " T"], theta: Pairs, *, gain: float = 1.0, dtype) -> tuple[Array, Array]:
    """cos and sin of the rotary angles times `gain`, each (T, h), rounded to `dtype`; the second half repeats the first."""
    angles = positions.astype(wide(dtype))[:, None] * jnp.asarray(theta, wide(dtype))[None, :]
    angles = jnp.concatenate([angles, angles], axis=-1)
    return (gain * jnp.cos(angles)).astype(dtype), (gain * jnp.sin(angles)).astype(dtype)


def rope(x: Float[Array, "B T N h"], cos: Float[Array, "T h"], sin: Float[Array, "T h"]) -> Float[Array, "B T N h"]:
    """Rotates every head of x by the angle of its position, in float32, rounded once."""
    wide_x, cos, sin = (array.astype(wide(x.dtype)) for array in (x, cos[None, :, None, :], sin[None, :, None, :]))
    first, second = jnp.split(wide_x, 2, axis=-1)
    return (wide_x * cos + jnp.concatenate([-second, first], axis=-1) * sin).astype(x.dtype)


def visible(queries: Int[Array, " Q"], keys: Int[Array, " S"], window: int | None = None) -> Bool[Array, "Q S"]:
    """Which key positions a query position sees: none after it, and with a window only the last `window`, its own included."""
    distance = queries[:, None] - keys[None, :]
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def attend(
    q: Float[Array, "B Q H h"], k: Float[Array, "B S K h"], v: Float[Array, "B S K h"], visible: Bool[Array, "Q S"]
) -> Float[Array, "B Q H h"]:
    """Attention of Q queries over S keys where `visible` allows it, with the [Q, S] scores of every head in memory."""
    batch, queries, heads, dim = q.shape
    kv_heads = k.shape[2]
    groups = heads // kv_heads
    split = (batch, kv_heads, queries, groups)
    # The queries of all heads that share keys are the rows of one product, in an order that never turns the scores.
    rows = swapped(q.reshape(batch, queries, kv_heads, groups, dim), 1, 2).reshape(batch, kv_heads, -1, dim)
    scores = product(rows, swapped(k, 1, 2)).reshape(*split, -1) * dim**-0.5
    scores = jnp.where(visible[None, None, :, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = matmul(weights.reshape(batch, kv_heads, -1, k.shape[1]), swapped(v, 1, 2)).astype(q.dtype)
    return swapped(out.reshape(*split, dim), 1, 2).reshape(q.shape)


def causal_attention(
    q: Float[Array, "B T H h"],
    k: Float[Array, "B T K h"],
    v: Float[Array, "B T K h"],
    *,
    chunk: int,
    window: int | None = None,
) -> Float[Array, "B T H h"]:
    """Causal grouped-query attention; sequences longer than `chunk` are attended `chunk` queries at a time.

    The chunked form recomputes each chunk's scores in the backward pass, so that memory grows with T·chunk instead of T².
    """
    length = q.shape[1]
    positions = jnp.arange(length)
    if length <= chunk:
        return attend(q, k, v, visible(positions, positions, window))
    count = -(-length // chunk)
    padded = jnp.pad(q, ((0, 0), (0, count * chunk - length), (0, 0), (0, 0)))
    chunks = padded.reshape(q.shape[0], count, chunk, *q.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def one(queries, start):
        return attend(queries, k, v, visible(start + jnp.arange(chunk), positions, window))

    out = jax.lax.map(lambda args: one(*args), (chunks, jnp.arange(count) * chunk))
    return out.swapaxes(0, 1).reshape(padded.shape)[:, :length]
