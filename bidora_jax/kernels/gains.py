"""The factor of every output row of a linear layer, with derivatives that are read from the product rather than the sum.

    z = gain ⊙ y        dz = gain ⊙ dy + z ⊙ (dgain / gain)        ȳ = gain ⊙ z̄,    gain̄ = Σ_t z̄ ∘ z / gain

So z is all that is kept of a layer for its backward pass, as without a gain, and what the next layer reads; y would be read
and multiplied once more. A gain of zero leaves no y behind: `apart_from_zero` puts a number in its place that is next to none.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from bidora_jax.kernels import products
from bidora_jax.kernels.alone import alone
from bidora_jax.kernels.sums import token_dots

Keep = Callable[..., Array]
"""(a sum of products, the dtype of the activations, its name in its layer, a gain or None) -> the same sum, times the gain:
see `kept`."""


def by_row(y: Float[Array, "*batch O"], gain: Float[Array, "*N O"]) -> Float[Array, "*batch O"]:
    """gain ⊙ y in the wider dtype of the two. Leading axes of `gain`, those of several adapters, are the first of y."""
    *members, rows = gain.shape
    if not members:
        return (y.reshape(-1, rows) * gain[None]).reshape(y.shape)
    return y * gain.reshape(*members, *(1,) * (y.ndim - gain.ndim), rows)


def apart_from_zero(gain: Float[Array, "*N O"], dtype) -> Float[Array, "*N O"]:
    """`gain`, or ε² of `dtype` where it is smaller than that, with the same derivative: next to rows of gain 1 no number of
    that dtype shows the difference."""
    least = float(jnp.finfo(dtype).eps) ** 2
    return _apart(gain, least)


@alone  # or the loop over all tokens would compute it for each of them, back to the norm
def _apart(gain, least):
    return gain + jax.lax.stop_gradient(jnp.where(jnp.abs(gain) < least, least - gain, 0))


def kept(y: Float[Array, "*batch O"], dtype, name: str = "", gain: Float[Array, "*N O"] | None = None) -> Array:
    """`products.kept` of y or, with a gain, of gain ⊙ y."""
    return products.kept(y, dtype, name) if gain is None else _kept(y, gain, jnp.dtype(dtype))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _kept(y, gain, dtype):
    return products.kept(by_row(y, gain), dtype)


def _kept_jvp(dtype, primals, tangents):
    z = _kept(*primals, dtype)
    return z, _tangent(z, primals[1], *tangents)


_kept.defjvp(_kept_jvp, symbolic_zeros=True)


@jax.custom_jvp
def known(value: Float[Array, "*batch O"], y: Float[Array, "*batch O"], gain: Float[Array, "*N O"]) -> Array:
    """`value`, a constant, with all derivatives of gain ⊙ y, which it is equal to; see kernels/records.py."""
    del y, gain
    return value


def _known_jvp(primals, tangents):
    value = known(*primals)
    return value, _tangent(value, primals[2], *tangents[1:])


known.defjvp(_known_jvp, symbolic_zeros=True)


def _tangent(z, gain, y_tangent, gain_tangent):
    zero = jnp.zeros((), jnp.promote_types(z.dtype, gain.dtype))
    of_y = zero if isinstance(y_tangent, SymbolicZero) else by_row(y_tangent, gain)
    of_gain = zero if isinstance(gain_tangent, SymbolicZero) else by_row(z, gain_tangent / gain)
    return jnp.broadcast_to(of_y + of_gain, z.shape).astype(z.dtype)


@jax.custom_vjp
def gained(y: Float[Array, "*batch O"], gain: Float[Array, "*N O"], z: Float[Array, "*batch O"]) -> Array:
    """z, which is gain ⊙ y in some dtype, as a function of y and gain: in reverse they take all of its derivative.

    Forward-mode differentiation passes through a gradient of it, where z has a derivative of its own, and not through it.
    """
    del y, gain
    return z


def _gained_backward(residuals, g):
    like, gain, z = residuals
    g_wide = g.astype(jnp.promote_types(g.dtype, gain.dtype))
    return by_row(g_wide, gain).astype(like.dtype), (token_dots(g, z, gain.ndim - 1) / gain).astype(gain.dtype), None


gained.defvjp(lambda y, gain, z: (z, (jnp.zeros((), y.dtype), gain, z)), _gained_backward)
