"""Transposes that XLA's CPU backend does not see beside a product.

    transpose(x, i, j) = x.swapaxes(i, j)        transposed(x) = x.swapaxes(-2, -1)

XLA computes a 16-bit product in float32 where it sees that an operand was transposed: at half the speed, and with copies of
both operands in float32. It does not see through a transpose of pairs of numbers as integers of 32 bits.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import linear_call
from jaxtyping import Array

from bidora_jax.kernels.xla_cpu import active
from bidora_jax.kernels.xla_cpu.outline import outlined


def transpose(x: Array, first: int, second: int) -> Array:
    """x with two of its axes swapped, as an operand of a product.

    A pair is one number of either half of the last axis. Pairs of neighbours would be joined and split one by one.
    """
    if not transposes_show(x):
        return x.swapaxes(first, second)
    swap = partial(_swapped_pairs, first=first, second=second)
    return linear_call(lambda _, x: swap(x), lambda _, g: swap(g), (), x)


def transposes_show(x: Array) -> bool:
    """Whether XLA would compute a product with a transpose of x in float32."""
    return active() and x.dtype.itemsize == 2 and x.shape[-1] % 2 == 0


def _swapped_pairs(x: Array, first: int, second: int) -> Array:
    if x.shape[-1] % 2:  # a cotangent, whose last axis is another
        return x.swapaxes(first, second)
    bits, last = jax.lax.bitcast_convert_type, x.ndim - 1
    low, high = jnp.split(bits(x, jnp.uint16).astype(jnp.uint32), 2, axis=-1)
    pairs = (low | high << 16).swapaxes(first, second)
    halves = [pairs.astype(jnp.uint16), (pairs >> 16).astype(jnp.uint16)]
    first, second = first % x.ndim, second % x.ndim
    return bits(jnp.concatenate(halves, axis={first: second, second: first}.get(last, last)), x.dtype)


@outlined
def transposed(sums: Array) -> Array:
    """The last two axes swapped, of a result of a product. Fused into what follows, this takes six times as long."""
    return sums.swapaxes(-2, -1)
