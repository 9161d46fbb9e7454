"""bfloat16 to float32 and back, as XLA's CPU backend does it quickly.

    opened(x) = float32(x)        rounded(x) = bfloat16(x), to nearest and ties to even

LLVM makes 16-bit arithmetic of a product that is widened before and rounded after it, and a loop over an exponential that is
rounded at its end takes twice as long: silu(g) ∘ u of 1024 x 1536 numbers 1.64 ms of a core, 1.0 here. It sees through a
conversion, and not through shifts of integers. On a GPU, and for other dtypes, these are casts.
"""

import jax
import jax.numpy as jnp
from jax.custom_derivatives import linear_call
from jaxtyping import Array, Float, Int, UInt16

from bidora_jax.kernels.precision import wide


def bits(leaf: Array) -> Array:
    """16-bit weights as their bits, to be sliced as integers and read back by `floats`.

    XLA's CPU backend has no 16-bit float slice: it would widen the whole array to float32 and slice that. The cast is a
    copy there, so the large stacks of a loaded model are `quant.Bits` on a CPU. On a GPU the two casts are free.
    """
    return jax.lax.bitcast_convert_type(leaf, jnp.uint16) if leaf.dtype.itemsize == 2 else leaf


def floats(leaf: Array, like: Array) -> Array:
    """What `bits` made of `like`, or a part of it, in its dtype again."""
    return jax.lax.bitcast_convert_type(leaf, like.dtype) if leaf.dtype == jnp.uint16 else leaf


def slice_rows(w: Float[Array, "V D"], first: Int[Array, ""], count: int) -> Float[Array, "C D"]:
    """`count` rows of w from `first` on, for a loop over them.

    In a loop the cast of all of w to bits would be made before it, a copy of w. Bound to `first` it stays where it is, and
    only the bits of those rows are read.
    """
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
    """Whether numbers of `dtype` are opened and rounded by shifts here."""
    return jax.default_backend() == "cpu" and jnp.dtype(dtype) == jnp.bfloat16


def _rounded(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    whole = jax.lax.bitcast_convert_type(x, jnp.uint32)
    upper = whole + 0x7FFF + (whole >> 16 & 1) >> 16
    # Carried over from its lower bits, a NaN could become infinite or zero.
    upper = jnp.where(jnp.isnan(x), jnp.uint32(0x7FC0), upper)
    return jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)
