"""Transposes that XLA's CPU backend does not see.

swapped(x, i, j) = x.swapaxes(i, j)
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import linear_call
from jaxtyping import Array

from bidora_jax.kernels.xla_cpu.outline import outlined


def transpose(x: Array, first: int, second: int) -> Array:
    """x with two of its axes swapped, as an operand of a product.

    On a CPU XLA computes a 16-bit product in float32 if it can see that an operand was transposed: at half the speed, and
    with copies of both operands in float32. Pairs of numbers transposed as one integer it does not see through. A pair is
    one number of either half of the last axis; neighbours would be paired and parted one by one.
    """
    if not transposes_show(x):
        return x.swapaxes(first, second)
    swap = partial(_swapped_pairs, first=first, second=second)
    return linear_call(lambda _, x: swap(x), lambda _, g: swap(g), (), x)


def transposes_show(x: Array) -> bool:
    return jax.default_backend() == "cpu" and x.dtype.itemsize == 2 and x.shape[-1] % 2 == 0


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
    """The last two axes swapped. Fused to what follows this took six times as long, and of a swap that it sees beside the
    product XLA would make a product of transposed operands."""
    return sums.swapaxes(-2, -1)
