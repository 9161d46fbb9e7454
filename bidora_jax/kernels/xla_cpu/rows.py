"""A function of the rows of a batch, some rows at a time.

    by_rows(f, row_bytes, *arrays) = f(*arrays)

XLA's CPU backend computes one operation over the whole batch after the other. What lies between two of them is written to memory
and read back where it exceeds the cache, as the scores of attention do: those of 32 texts of 96 tokens and 12 heads are 14 MB, and
their derivative takes 51 ms at once and 24 ms in groups of four texts. The backward pass computes a group again.
"""

from collections.abc import Callable

import jax
from jaxtyping import Array

from bidora_jax.kernels.xla_cpu import active

CACHED = 4 << 20
"""Bytes that a group of rows may take: of the cache of a core, which holds several arrays of that size at a time."""


def by_rows(function: Callable[..., Array], row_bytes: int, *arrays: Array) -> Array:
    """function(*arrays), each row of which takes `row_bytes` of what is computed on the way."""
    rows = arrays[0].shape[0]
    size = rows_at_a_time(rows, row_bytes)
    if size == rows:
        return function(*arrays)
    groups = [array.reshape(-1, size, *array.shape[1:]) for array in arrays]
    out = jax.lax.map(lambda group: jax.checkpoint(function)(*group), groups)
    return out.reshape(rows, *out.shape[2:])


def rows_at_a_time(rows: int, row_bytes: int) -> int:
    """The largest divisor of `rows` of which so many rows fit the cache, one at least; all of them on another device."""
    if not active() or rows * row_bytes <= CACHED:
        return rows
    return max(size for size in range(1, rows + 1) if rows % size == 0 and size * row_bytes <= max(CACHED, row_bytes))
