"""Rounds a weight to a coarse grid so that the layer's outputs change least, rather than its entries.

    Q in {low, high}, the values of the grid around W'        E = Q − W'        ‖E·x‖² over the inputs = tr(E·M·Eᵀ),  M = Σ x·xᵀ

The nearest value has the smallest ‖E‖. But where W' = W0 + ΔW, W0 lies on the grid and ΔW is less than half a step, it is W0: then
E = −ΔW, which is all that was learned, and the inputs lie along it. Two ways keep it:

    feedback    column by column, the nearest value; what it is off is made up for by the columns to come, as far as M says that
                the inputs of the two go together: GPTQ (arXiv:2210.17323), with H = M, W' as the target and two values an entry
    unbiased    high with the probability (W' − low)/(high − low): E has the mean 0, and needs no M

Everything is float32. M gets DAMPING of its mean diagonal, so that it can be inverted where inputs are few.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

DAMPING = 0.01
"""GPTQ's own."""
BLOCK = 128
"""Columns whose errors reach the columns after them in one product."""
KEPT = 0.9
"""Share of a row's change below which `without_inputs` leaves the nearest value."""


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


def without_inputs(
    key: Key[Array, ""],
    w: Float[Array, "O I"],
    w0: Float[Array, "O I"],
    low: Float[Array, "O I"],
    high: Float[Array, "O I"],
) -> Float[Array, "O I"]:
    """Rounds where the inputs are not known: `unbiased` in the rows where the nearest value keeps less than KEPT of the change

        ⟨Q − W0, W' − W0⟩ / ‖W' − W0‖²

    and the nearest value in the others, whose error is the smaller one."""
    changed, near = w - w0, nearest(w, low, high)
    kept = jnp.sum((near - w0) * changed, axis=1) >= KEPT * jnp.sum(jnp.square(changed), axis=1)
    return jnp.where(kept[:, None], near, unbiased(key, w, low, high))


class Inputs(NamedTuple):
    """What feedback needs of a layer's inputs; made once, it serves every weight that they meet."""

    moments: Float[Array, "I I"]
    """M."""
    order: Int[Array, " I"]
    """Columns with large inputs come first, while there are many left to make up for their errors."""
    factor: Float[Array, "I I"]
    """Of the inverse of M, in that order."""


def inputs(moments: Float[Array, "I I"]) -> Inputs:
    order = jnp.argsort(-jnp.diagonal(moments))
    return Inputs(moments, order, _inverse_factor(moments[order][:, order]))


def feedback(
    w: Float[Array, "O I"], low: Float[Array, "O I"], high: Float[Array, "O I"], given: Inputs
) -> Float[Array, "O I"]:
    """Q by feedback, in each row where it has the smaller error of outputs; in the others the nearest value."""
    near = nearest(w, low, high)
    first, floor, ceiling = (jnp.take(one, given.order, axis=1).T for one in (w, low, high))
    found = jnp.take(_columns(first, floor, ceiling, given.factor).T, jnp.argsort(given.order), axis=1)
    better = output_error(found - w, given.moments) <= output_error(near - w, given.moments)
    return jnp.where(better[:, None], found, near)


def output_error(error: Float[Array, "O I"], moments: Float[Array, "I I"]) -> Float[Array, " O"]:
    """Σ (E·x)² of each row over the inputs."""
    return jnp.sum((error @ moments) * error, axis=1)


def _inverse_factor(moments: Float[Array, "I I"]) -> Float[Array, "I I"]:
    """Upper triangular U with Uᵀ·U = (M + damping)⁻¹.

    With P the reversal of an order, P·M·P = L·Lᵀ gives M = R·Rᵀ with R = P·L·P upper triangular; then U = R⁻¹.
    """
    mean = jnp.mean(jnp.diagonal(moments))
    damping = jnp.where(mean > 0, DAMPING * mean, 1.0)
    identity = jnp.eye(len(moments), dtype=moments.dtype)
    lower = jnp.linalg.cholesky((moments + damping * identity)[::-1, ::-1])
    return jax.scipy.linalg.solve_triangular(lower, identity, lower=True)[::-1, ::-1]


def _columns(
    w: Float[Array, "I O"], low: Float[Array, "I O"], high: Float[Array, "I O"], factor: Float[Array, "I I"]
) -> Float[Array, "I O"]:
    """GPTQ's loop over the columns of W', which are rows here; in blocks, so that most of it is products of matrices."""
    count = len(w)
    rest = -count % BLOCK
    w, low, high = (jnp.pad(one, ((0, rest), (0, 0))) for one in (w, low, high))
    added = jnp.diag(jnp.asarray(np.arange(count + rest) >= count, factor.dtype))
    factor = jnp.pad(factor, ((0, rest), (0, rest))) + added

    def block(w, begin):
        at = partial(jax.lax.dynamic_slice_in_dim, start_index=begin, slice_size=BLOCK)
        own, lows, highs, reach = at(w), at(low), at(high), at(factor)
        within = at(reach, axis=1)

        def column(own, number):
            value, row = own[number], within[number]
            q = jnp.where(value - lows[number] <= highs[number] - value, lows[number], highs[number])
            error = (value - q) / row[number]
            return own - row[:, None] * error[None], (q, error)

        _, (rounded, errors) = jax.lax.scan(column, own, jnp.arange(BLOCK))
        return w - reach.T @ errors, rounded

    _, rounded = jax.lax.scan(block, w, jnp.arange(0, count + rest, BLOCK))
    return rounded.reshape(-1, w.shape[1])[:count]
