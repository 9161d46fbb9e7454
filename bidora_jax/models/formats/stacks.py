"""A stack of layers while it is read: host arrays that layers are copied into one by one, and the device array that they become.

Over the devices of a mesh a process holds the rows of its own devices alone, and reads no others where the file has them as they
are wanted. A weight that is quantised on the way is read whole, a layer at a time, for its blocks share a mean. An embedding, whose
rows are cut, is read whole, some rows at a time.
"""

from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import PyTree

from bidora_jax.models.formats import safetensors_file
from bidora_jax.models.formats.safetensors_file import Entry

Rows = tuple[int, int] | None
"""First row and the one after the last, or all."""
READ_BYTES = 16_000_000
"""Of an embedding at a time, about."""


class Stack:
    """An array (L, …) on the host, cut along axis 1 as its sharding says."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding | None) -> None:
        self._shape, self._sharding = shape, sharding
        held = (
            {None}
            if sharding is None
            else {_rows(index) for index in sharding.addressable_devices_indices_map(shape).values()}
        )
        self._pieces = {rows: safetensors_file.aligned(_cut(shape, rows), dtype) for rows in held}

    def fill(self, value: float, layers: int) -> None:
        """Gives the first layers one value."""
        for piece in self._pieces.values():
            piece[:layers] = value

    def put(self, layer: int, whole: np.ndarray | np.generic) -> None:
        """A layer that is in memory: an array, or the one number of a layer."""
        for rows, piece in self._pieces.items():
            piece[layer] = whole if rows is None else np.asarray(whole)[slice(*rows)]

    def read(self, layer: int, entry: Entry) -> None:
        """A layer of a file, of which the rows that are held are read."""
        for rows, piece in self._pieces.items():
            safetensors_file.read_into(entry, piece[layer], 0 if rows is None else rows[0])

    def read_whole(self, entry: Entry) -> None:
        """All of a tensor that is no stack, of which axis 1 may be cut."""
        if list(self._pieces) == [None]:
            safetensors_file.read_into(entry, self._pieces[None])
            return
        rows, columns = self._shape
        dtype = next(iter(self._pieces.values())).dtype
        count = max(1, READ_BYTES // (columns * dtype.itemsize))
        for first in range(0, rows, count):
            some = np.empty((min(count, rows - first), columns), dtype)
            safetensors_file.read_into(entry, some, first)
            for held, piece in self._pieces.items():
                assert held is not None
                piece[first : first + len(some)] = some[:, slice(*held)]

    def on_devices(self, view: type[np.generic] | None = None) -> jax.Array:
        """The device array. With a `view`, of that type's bits."""
        pieces = {rows: piece if view is None else piece.view(view) for rows, piece in self._pieces.items()}
        if self._sharding is None:
            return jax.device_put(pieces[None])
        return jax.make_array_from_callback(self._shape, self._sharding, lambda index: pieces[_rows(index)])


def stacked(parts: Iterable[PyTree], count: int, shardings: PyTree | None) -> PyTree:
    """Trees of host arrays, one a layer, each copied into the stacks as it is made. `shardings` are those of the stacks."""
    stacks: list[Stack] = []
    structure = None
    for layer, part in enumerate(parts):
        leaves, structure = jax.tree.flatten(part)
        laid = [None] * len(leaves) if shardings is None else jax.tree.leaves(shardings)
        stacks = stacks or [
            Stack((count, *leaf.shape), leaf.dtype, sharding) for leaf, sharding in zip(leaves, laid, strict=True)
        ]
        for stack, leaf in zip(stacks, leaves, strict=True):
            stack.put(layer, leaf)
    return jax.tree.unflatten(structure, [stack.on_devices() for stack in stacks])


def _rows(index: tuple[slice, ...] | None) -> Rows:
    return None if index is None or len(index) < 2 or index[1].start is None else (index[1].start, index[1].stop)


def _cut(shape: tuple[int, ...], rows: Rows) -> tuple[int, ...]:
    return shape if rows is None else (shape[0], rows[1] - rows[0], *shape[2:])
