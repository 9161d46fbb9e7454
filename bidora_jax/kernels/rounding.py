"""Rounds W' = W0 + ΔW to a coarse grid so that ΔW is still there.

    low, high, the values of the grid around W'

The nearest value has the smallest error. But where W0 lies on the grid and ΔW is less than half a step, it is W0: the error is −ΔW,
which is all that was learned. `unbiased` takes high with the probability (W' − low)/(high − low), so that the error has the mean 0
and is independent of the layer's inputs. Everything is float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

KEPT = 0.9
"""Share of a row's change below which `keeping_change` leaves the nearest value."""


def neighbours(w: Float[Array, "O I"], dtype) -> tuple[Float[Array, "O I"], Float[Array, "O I"]]:
    """The largest value of a floating-point `dtype` that is not above w, and the smallest not below it, in float32. Both are
    infinite where w is beyond the range."""
    rounded = w.astype(dtype)
    infinity = jnp.full_like(rounded, jnp.inf)
    below, above = (jnp.nextafter(rounded, end).astype(jnp.float32) for end in (-infinity, infinity))
    q = rounded.astype(jnp.float32)
    return jnp.where(jnp.isfinite(q) & (q > w), below, q), jnp.where(jnp.isfinite(q) & (q < w), above, q)


def nearest(w: Float[Array, "O I"], low: Float[Array, "O I"], high: Float[Array, "O I"]) -> Float[Array, "O I"]:
    """The nearer of the two; `low` where they are equally near."""
    return jnp.where(w - low <= high - w, low, high)


def unbiased(
    key: Key[Array, ""], w: Float[Array, "O I"], low: Float[Array, "O I"], high: Float[Array, "O I"]
) -> Float[Array, "O I"]:
    """One of the two at random, with w as the mean."""
    step = high - low
    share = (w - low) / jnp.where(step > 0, step, 1.0)
    return jnp.where(jax.random.uniform(key, w.shape) < share, high, low)


def keeping_change(
    key: Key[Array, ""],
    w: Float[Array, "O I"],
    w0: Float[Array, "O I"],
    low: Float[Array, "O I"],
    high: Float[Array, "O I"],
) -> Float[Array, "O I"]:
    """Q, `unbiased` in the rows where the nearest value keeps less than KEPT of the change,

        ⟨Q − W0, W' − W0⟩ / ‖W' − W0‖²,

    and the nearest value in the others, whose error is the smaller one."""
    changed, near = w - w0, nearest(w, low, high)
    kept = jnp.sum((near - w0) * changed, axis=1) >= KEPT * jnp.sum(jnp.square(changed), axis=1)
    return jnp.where(kept[:, None], near, unbiased(key, w, low, high))
