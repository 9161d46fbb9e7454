"""bfloat16 to float32 and back, and slices of 16-bit arrays, as XLA's CPU backend does them quickly.

    to_float32(x) = x.astype(float32)                to_bfloat16(x, dtype) = x.astype(dtype), to nearest, ties to even
    floats(bits(w)[i], w) = w[i]                     slice_rows(w, first, count) = w[first : first + count]

LLVM makes 16-bit arithmetic of a product that is widened before it and rounded after it. A loop over an exponential that is
rounded at its end takes twice as long: silu(g) ∘ u of 1,024 x 1,536 numbers takes 1.64 ms of a core, and 1.0 here. LLVM sees
through a conversion, but not through shifts of integers.

XLA's CPU backend has no slice of 16-bit floats either: it widens the whole array to float32 and slices that. It slices integers.
"""

import jax
import jax.numpy as jnp
from jax.custom_derivatives import linear_call
from jaxtyping import Array, Float, Int, UInt16

from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.xla_cpu import active


def bits(leaf: Array) -> Array:
    """16-bit floats as integers of the same bits, to be sliced and read back by `floats`.

    The cast copies the array, so the large stacks of a loaded model are held as `Bits` from the start.
    """
    return jax.lax.bitcast_convert_type(leaf, jnp.uint16) if active() and leaf.dtype.itemsize == 2 else leaf


def floats(leaf: Array, like: Array) -> Array:
    """A result of `bits(like)`, or a part of it, in the dtype of `like`."""
    return jax.lax.bitcast_convert_type(leaf, like.dtype) if leaf.dtype == jnp.uint16 else leaf


def slice_rows(w: Float[Array, "V D"], first: Int[Array, ""], count: int) -> Float[Array, "C D"]:
    """`count` rows of w from `first` on, for a loop over `first`.

    XLA would hoist the cast of all of w out of the loop, which copies w. The barrier ties the cast to `first`: it stays in the
    loop and is fused into the slice.
    """
    if not active():
        return jax.lax.dynamic_slice_in_dim(w, first, count)
    w, first = jax.lax.optimization_barrier((w, first))
    return floats(jax.lax.dynamic_slice_in_dim(bits(w), first, count), w)


def to_float32(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """x in float32 (float64 for float64)."""
    if not by_shifts(x.dtype):
        return x.astype(wide(x.dtype))
    return linear_call(lambda _, x: with_upper_bits(bits(x)), lambda _, g: _rounded(g), (), x)


def to_bfloat16(x: Float[Array, "*n"], dtype) -> Float[Array, "*n"]:
    """x, which is float32 (float64 for float64), in `dtype`."""
    if not by_shifts(dtype):
        return x.astype(dtype)
    return linear_call(lambda _, x: _rounded(x), lambda _, g: with_upper_bits(bits(g)), (), x)


def with_upper_bits(upper: UInt16[Array, "*n"]) -> Float[Array, "*n"]:
    """The float32 with these upper bits, whose lower ones are 0."""
    return jax.lax.bitcast_convert_type(upper.astype(jnp.uint32) << 16, jnp.float32)


def by_shifts(dtype) -> bool:
    """Whether numbers of `dtype` are converted by shifts of integers."""
    return active() and jnp.dtype(dtype) == jnp.bfloat16


def _rounded(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    whole = jax.lax.bitcast_convert_type(x, jnp.uint32)
    upper = whole + 0x7FFF + (whole >> 16 & 1) >> 16
    # Carried over from its lower bits, a NaN could become infinite or zero.
    upper = jnp.where(jnp.isnan(x), jnp.uint32(0x7FC0), upper)
    return jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)
