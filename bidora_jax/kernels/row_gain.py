"""The factor of every output row of a linear layer, with derivatives that are read from the product rather than the sum.

    z = gain ⊙ y        dz = gain ⊙ dy + z ⊙ (dgain / gain)        ȳ = gain ⊙ z̄,    gain̄ = Σ_t z̄ ∘ z / gain

So z is all that is kept of a layer for its backward pass, as without a gain, and what the next layer reads; y would be read
and multiplied once more. A gain of zero leaves no y behind: `apart_from_zero` puts a number in its place that is next to none.
Where `meets_weights`, ȳ is not made either: z̄ meets gain ⊙ W0 and gain ⊙ B.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from bidora_jax.kernels import matmul, save_for_backward
from bidora_jax.kernels.matmul import scale_rows
from bidora_jax.kernels.xla_cpu.bfloat16 import by_shifts, to_bfloat16, to_float32
from bidora_jax.kernels.xla_cpu.outline import outlined
from bidora_jax.kernels.xla_cpu.reductions import token_dots

T = TypeVar("T")
Keep = Callable[..., Array]
"""(a sum of products, the dtype of the activations, its name in its layer, a gain or None) -> the same sum, times the gain:
see `kept`."""


def away_from_zero(gain: Float[Array, "*N O"], dtype) -> Float[Array, "*N O"]:
    """`gain`, or ε² of `dtype` where it is smaller than that, with the same derivative: next to rows of gain 1 no number of
    that dtype shows the difference."""
    least = float(jnp.finfo(dtype).eps) ** 2
    return _apart(gain, least)


@outlined  # or the loop over all tokens would compute it for each of them, back to the norm
def _apart(gain, least):
    return gain + jax.lax.stop_gradient(jnp.where(jnp.abs(gain) < least, least - gain, 0))


def save_scaled(y: Float[Array, "*batch O"], dtype, name: str = "", gain: Float[Array, "*N O"] | None = None) -> Array:
    """`products.kept` of y or, with a gain, of gain ⊙ y."""
    return (
        save_for_backward.save_for_backward(y, dtype, name) if gain is None else _save_scaled(y, gain, jnp.dtype(dtype))
    )


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _save_scaled(y, gain, dtype):
    return save_for_backward.save_for_backward(scale_rows(y, gain), dtype)


def _save_scaled_jvp(dtype, primals, tangents):
    z = _save_scaled(*primals, dtype)
    return z, _tangent(z, primals[1], *tangents)


_save_scaled.defjvp(_save_scaled_jvp, symbolic_zeros=True)


@jax.custom_jvp
def known(value: Float[Array, "*batch O"], y: Float[Array, "*batch O"], gain: Float[Array, "*N O"]) -> Array:
    """`value`, a constant, with all derivatives of gain ⊙ y, which it is equal to; see kernels/known_values.py."""
    del y, gain
    return value


def _known_jvp(primals, tangents):
    value = known(*primals)
    return value, _tangent(value, primals[2], *tangents[1:])


known.defjvp(_known_jvp, symbolic_zeros=True)


def _tangent(z, gain, y_tangent, gain_tangent):
    zero = jnp.zeros((), jnp.promote_types(z.dtype, gain.dtype))
    of_y = zero if isinstance(y_tangent, SymbolicZero) else scale_rows(y_tangent, gain)
    of_gain = zero if isinstance(gain_tangent, SymbolicZero) else scale_rows(z, gain_tangent / gain)
    return jnp.broadcast_to(of_y + of_gain, z.shape).astype(z.dtype)


@jax.custom_vjp
def no_reverse_gradient(x: T) -> T:
    """x without a derivative in reverse. Forward-mode differentiation passes through a gradient of it, and moves it with x."""
    return x


no_reverse_gradient.defvjp(lambda x: (x, None), lambda _, g: (None,))


@jax.custom_vjp
def scaled(traced: Float[Array, "*batch O"], gain: Float[Array, "*N O"], z: Float[Array, "*batch O"]) -> Array:
    """z, which is gain ⊙ y in some dtype. In reverse `traced` takes its cotangent, as gain ⊙ y where the gain is held, and
    `gain` what is read from z; the value of `traced` plays no part.

    Forward-mode differentiation passes through a gradient of it, where z has a derivative of its own, and not through it.
    """
    del traced, gain
    return z


def _scaled_backward(residuals, g):
    like, gain, z = residuals
    return g.astype(like.dtype), (token_dots(g, z, gain.ndim - 1) / gain).astype(gain.dtype), None


scaled.defvjp(lambda traced, gain, z: (z, (jnp.zeros((), traced.dtype), gain, z)), _scaled_backward)


def meets_weights(gain: Float[Array, "*N O"], dtype) -> bool:
    """Whether a gain meets W0 and B in a backward pass, z̄·(gain ⊙ W0), rather than every cotangent, (gain ⊙ z̄)·W0.

    It does on a CPU, where a layer's W0 is copied for its product anyway and gain ⊙ z̄ would be one more loop over all tokens;
    either is rounded once.
    """
    return gain.ndim == 1 and by_shifts(dtype)


@jax.custom_vjp
def gained_dot(
    x: Float[Array, "*batch I"], w0: Float[Array, "O I"], gain: Float[Array, " O"]
) -> Float[Array, "*batch O"]:
    """gain ⊙ (x·W0ᵀ) as a function of x alone, whose cotangent is z̄·(gain ⊙ W0)."""
    return scale_rows(matmul.frozen_dot(x, w0), gain)


def _frozen_dot_forward(x, w0, gain):
    return scale_rows(matmul.frozen_dot(x, w0), gain), (w0, gain)


def _frozen_dot_backward(residuals, g):
    w0, gain = residuals
    return _times_gained(g.astype(w0.dtype), w0, gain), None, None


gained_dot.defvjp(_frozen_dot_forward, _frozen_dot_backward)


@jax.custom_jvp
def _times_gained(g: Float[Array, "*batch O"], w0: Float[Array, "O I"], gain: Float[Array, " O"]) -> Array:
    """g·(gain ⊙ W0). Where the gain moves its derivative is that of (gain ⊙ g)·W0, which is one product rather than two."""
    return _times(g, to_bfloat16(gain[:, None] * to_float32(w0), w0.dtype))


def _times_gained_jvp(primals, tangents):
    g, w0, gain = primals
    g_tangent, _, gain_tangent = tangents
    moved = [scale_rows(to_float32(g_tangent), gain)] if not isinstance(g_tangent, SymbolicZero) else []
    moved += [scale_rows(to_float32(g), gain_tangent)] if not isinstance(gain_tangent, SymbolicZero) else []
    return _times_gained(*primals), _times(sum(moved[1:], moved[0]).astype(w0.dtype), w0)


_times_gained.defjvp(_times_gained_jvp, symbolic_zeros=True)


def _times(g: Array, w: Array) -> Array:
    return matmul.dot(g.reshape(-1, g.shape[-1]), w, -1, -2).astype(w.dtype).reshape(*g.shape[:-1], w.shape[-1])
