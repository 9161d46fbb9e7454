"""Rotary positions.

    rope(x)ₜ = x ∘ cos(tθ) + rotate_half(x) ∘ sin(tθ)                   RoPE, arXiv:2104.09864, half-split as in HF

Angles are float32 (float64 for float64); the result is rounded once to the dtype of x.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.rope_frequencies import Pairs


def rope_angles(
    positions: Int[Array, "*B T"], theta: Pairs | Float[Array, " pairs"], *, gain: float = 1.0, dtype
) -> tuple[Array, Array]:
    """cos and sin of the rotary angles times `gain`, each (*B, T, h), rounded to `dtype`; the second half repeats the first."""
    turns = jnp.asarray(theta, wide(dtype)).reshape((1,) * positions.ndim + (-1,))
    angles = positions.astype(wide(dtype))[..., None] * turns
    angles = jnp.concatenate([angles, angles], axis=-1)
    return (gain * jnp.cos(angles)).astype(dtype), (gain * jnp.sin(angles)).astype(dtype)


def rope(
    x: Float[Array, "B T N h"], cos: Float[Array, "*B T h"], sin: Float[Array, "*B T h"]
) -> Float[Array, "B T N h"]:
    """Rotates every head of x by the angle of its position, in float32, rounded once; rows may have their own positions."""
    half = x.shape[-1] // 2
    cos, sin = (array[..., :half].reshape(-1, array.shape[-2], 1, half).astype(wide(x.dtype)) for array in (cos, sin))
    first, second = jnp.split(x.astype(wide(x.dtype)), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
