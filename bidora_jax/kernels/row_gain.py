"""The gain of every output row of a linear layer, with derivatives that read the product rather than the sum.

    z = gain ⊙ y        ż = gain ⊙ ẏ + z ⊙ (ġ / gain)        ȳ = gain ⊙ z̄        ḡ = Σ_t z̄ ∘ z / gain

z is all that a backward pass needs of the layer, as without a gain, and z is what the next layer reads. A derivative that
read y would read and multiply y once more. A gain of zero leaves no y behind in z: `away_from_zero` takes a number in its place
that makes no difference.

    function      value     forward derivative           reverse derivative
    save_scaled   gain ⊙ y  ż as above                   JAX's transpose of ż
    with_value    value     ż as above                   JAX's transpose of ż
    scaled        z         none                         ȳ and ḡ as above, to y and gain; none to z
"""

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from bidora_jax.kernels.matmul import scale_rows
from bidora_jax.kernels.save_for_backward import save_for_backward
from bidora_jax.kernels.xla_cpu.outline import outlined
from bidora_jax.kernels.xla_cpu.reductions import token_dots

T = TypeVar("T")


def away_from_zero(gain: Float[Array, "*N O"], dtype) -> Float[Array, "*N O"]:
    """`gain`, or ε² of `dtype` where it is smaller than that, with the same derivative.

    Beside rows of gain 1 no number of that dtype shows the difference.
    """
    least = float(jnp.finfo(dtype).eps) ** 2
    return _away(gain, least)


@outlined  # fused into the loop over all tokens it would be computed for each of them, back to the norm
def _away(gain, least):
    return gain + jax.lax.stop_gradient(jnp.where(jnp.abs(gain) < least, least - gain, 0))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def save_scaled(y: Float[Array, "*batch O"], gain: Float[Array, "*N O"], dtype) -> Float[Array, "*batch O"]:
    """gain ⊙ y, saved for the backward pass as `save_for_backward` saves it."""
    return save_for_backward(scale_rows(y, gain), dtype)


def _save_scaled_jvp(dtype, primals, tangents):
    z = save_scaled(*primals, dtype)
    return z, _tangent(z, primals[1], *tangents)


save_scaled.defjvp(_save_scaled_jvp, symbolic_zeros=True)


@jax.custom_jvp
def with_value(value: Float[Array, "*batch O"], y: Float[Array, "*batch O"], gain: Float[Array, "*N O"]) -> Array:
    """`value`, which equals gain ⊙ y, with the derivatives of gain ⊙ y; see known_values.py."""
    del y, gain
    return value


def _with_value_jvp(primals, tangents):
    value = with_value(*primals)
    return value, _tangent(value, primals[2], *tangents[1:])


with_value.defjvp(_with_value_jvp, symbolic_zeros=True)


def _tangent(z, gain, y_tangent, gain_tangent):
    zero = jnp.zeros((), jnp.promote_types(z.dtype, gain.dtype))
    of_y = zero if isinstance(y_tangent, SymbolicZero) else scale_rows(y_tangent, gain)
    of_gain = zero if isinstance(gain_tangent, SymbolicZero) else scale_rows(z, gain_tangent / gain)
    return jnp.broadcast_to(of_y + of_gain, z.shape).astype(z.dtype)


def scaled(y: Float[Array, "*batch O"], gain: Float[Array, "*N O"], z: Float[Array, "*batch O"]) -> Array:
    """z, which is gain ⊙ y in some dtype, with the reverse derivatives at the head of this file.

    It has no forward derivative of its own. A forward pass over its gradient moves z by the derivative that z has.
    """
    return _scaled(scale_rows(y, no_reverse_gradient(gain)), gain, z)


@jax.custom_vjp
def no_reverse_gradient(x: T) -> T:
    """x, whose cotangent is dropped. A forward pass over a gradient still moves it with x."""
    return x


no_reverse_gradient.defvjp(lambda x: (x, None), lambda _, g: (None,))


@jax.custom_vjp
def _scaled(traced: Float[Array, "*batch O"], gain: Float[Array, "*N O"], z: Float[Array, "*batch O"]) -> Array:
    """z. `traced` is gain ⊙ y with the gain held constant: only its cotangent matters, and the compiler drops its value."""
    del traced, gain
    return z


def _scaled_backward(residuals, g):
    like, gain, z = residuals
    return g.astype(like.dtype), (token_dots(g, z, gain.ndim - 1) / gain).astype(gain.dtype), None


_scaled.defvjp(lambda traced, gain, z: (z, (jnp.zeros((), traced.dtype), gain, z)), _scaled_backward)
