"""A table (V, D), such as an embedding: whole, or cut along D over the devices of a mesh.

    rows(E, i) = E[i]        block(E, first, count) = E[first : first + count]

Of a cut one a device looks up its columns for the tokens of all devices and sends each its own: tokens · D numbers travel, and not
V · D. Whole rows are gathered a block at a time, inside the loop over blocks: no device holds the whole table. Rows can't be cut
instead: a vocabulary has few divisors, and one device would look up most of the tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
from jaxtyping import Array, Float, Int

from bidora_jax.kernels.varying import axes_of, varying
from bidora_jax.kernels.xla_cpu.bfloat16 import bits, floats, slice_rows


@partial(jax.tree_util.register_dataclass, data_fields=["held"], meta_fields=["axis"])
@dataclass(frozen=True)
class Columns:
    """What one device holds of a table that is cut, inside `jax.shard_map` (models/spread.py)."""

    held: Any
    """(V, D/n)"""
    axis: str | tuple[str, ...]
    """Of the mesh."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the whole table."""
        rows, columns = self.held.shape
        return rows, columns * jax.lax.axis_size(self.axis)

    @property
    def dtype(self) -> Any:
        return self.held.dtype

    def astype(self, dtype: Any) -> "Columns":
        return Columns(self.held.astype(dtype), self.axis)


Table: TypeAlias = Array | Columns


def rows(table: Table, indices: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """Rows of the table, in its dtype."""
    if not isinstance(table, Columns):
        return floats(bits(table)[indices], table)
    axis = table.axis
    of_all = jax.lax.all_gather(varying(indices.reshape(-1), axes_of(table.held)), axis, tiled=True)
    own = jax.lax.all_to_all(rows(table.held, of_all), axis, split_axis=0, concat_axis=1, tiled=True)
    return own.reshape(*indices.shape, -1)


def block(table: Table, first: Int[Array, ""], count: int) -> Float[Array, "C D"]:
    """`count` rows from `first` on, for a loop over `first`."""
    if not isinstance(table, Columns):
        return slice_rows(table, first, count)
    return jax.lax.all_gather(slice_rows(table.held, first, count), table.axis, axis=1, tiled=True)
