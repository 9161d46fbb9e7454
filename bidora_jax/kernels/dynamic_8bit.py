"""Dynamic 8-bit numbers: a table of 256 values, dense near zero, and one scale per block of numbers.

    codes_i = argmin_c |x_i / s − q_c|,   s = max |x| over the block           quantise, ties to the lower code
    x̂_i    = s · q_{codes_i}                                                   dequantise

q (Dettmers, arXiv:1511.04561, section 2; arXiv:2110.02861, section 2.1) has seven decades; in the decade 10^(k−6), k = 0 … 6,
the numbers from 0.1 to 1 are cut into 2^k equal cells (2^(k+1) without sign) and their centres are the values. Zero and one
are added. Signed, every other value stands with both signs: 254 + 2 = 256; the smallest is −0.993, so −s is not exact.

Layout: x is flattened, padded with zeros to whole blocks, and coded as (blocks, block). A block of zeros comes back as
zeros; a block with a NaN in it comes back as NaN. Everything is float32: wider inputs are rounded once, on entry.
The table is bit for bit that of bitsandbytes (`functional.create_dynamic_map`) where torch has fused multiply-add.
Does not round at random, and has no derivative: codes are integers.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

DECADES = 7


@functools.cache
def dynamic_map(signed: bool) -> np.ndarray:
    """The 256 values in ascending order, float32, read-only."""
    values = [np.array([0.0, 1.0], np.float32)]
    for k in range(DECADES):
        edges = _edges(2**k if signed else 2 ** (k + 1))
        centres = np.float32(10.0 ** (k + 1 - DECADES)) * ((edges[:-1] + edges[1:]) / np.float32(2))
        values += [centres, -centres] if signed else [centres]
    table = np.sort(np.concatenate(values))
    table.flags.writeable = False  # cached: everyone has the same array
    return table


@functools.cache
def midpoints(signed: bool) -> np.ndarray:
    """The 255 float32 borders between neighbouring values: a float32 number is above one exactly if it is nearer the upper.

    The true midpoint may lie between two float32 numbers. It is rounded down, so that comparing with it is exact.
    """
    table = dynamic_map(signed).astype(np.float64)
    exact = (table[:-1] + table[1:]) / 2  # neighbours are within a few binary orders: no rounding in float64
    nearest = exact.astype(np.float32)
    borders = np.where(nearest > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    borders.flags.writeable = False
    return borders


def quantise(
    x: Float[Array, "..."], *, signed: bool, block: int
) -> tuple[UInt8[Array, "blocks {block}"], Float32[Array, " blocks"]]:
    """(codes, absmax) of the flattened x. Without sign, negative numbers become zero."""
    flat = x.astype(jnp.float32).reshape(-1)
    flat = jnp.pad(flat, (0, -flat.size % block)).reshape(-1, block)
    absmax = jnp.max(jnp.abs(flat), axis=1)
    # Divided, not multiplied by 1 / absmax: the reciprocal of a number below 2^-128 is infinite.
    scaled = flat / jnp.where(absmax == 0, 1.0, absmax)[:, None]
    codes = jnp.searchsorted(jnp.asarray(midpoints(signed)), scaled, side="left", method="scan_unrolled")
    return codes.astype(jnp.uint8), absmax


def dequantise(
    codes: UInt8[Array, "blocks {block}"],
    absmax: Float32[Array, " blocks"],
    shape: tuple[int, ...],
    *,
    signed: bool,
    block: int,
) -> Float32[Array, "..."]:
    """The numbers of `codes` as an array of `shape`, which is the one that was quantised."""
    values = jnp.asarray(dynamic_map(signed))[codes] * absmax[:, None]
    return values.reshape(-1)[: math.prod(shape)].reshape(shape)


def _edges(cells: int) -> np.ndarray:
    """(cells + 1,) float32: the interval from 0.1 to 1 in equal parts, as torch.linspace rounds it.

    torch goes up from the lower end in the first half and down from the upper end in the second, with one rounding for
    each multiply-add. In float64 product and sum are exact here, so the one rounding is the cast.
    """
    low, high = np.float32(0.1), np.float32(1.0)
    step = np.float64((high - low) / np.float32(cells))
    index = np.arange(cells + 1)
    up, down = np.float64(low) + step * index, np.float64(high) - step * (cells - index)
    return np.where(index < (cells + 1) // 2, up, down).astype(np.float32)
