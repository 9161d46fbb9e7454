"""A run over the devices of a mesh: the rows of a batch are cut over all of them, and the frozen base over some.

    axes       `replica` copies of the base, each cut into `shard` × `tensor` parts
    rows       cut over `replica` and `shard`: Σ w·l of a batch is a sum over devices of sums over their own rows; along `tensor`
               devices have the same rows, and share the products of each layer (models/tensor.py)
    base       stacked weights of linear layers (L, O, I) cut along O over `tensor` and `shard`, and embeddings (V, D) along D; all
               else of it is whole on every device
    trained    direction, magnitude and optimisers are whole on every device

One `jax.shard_map` stands around each loss, and inside it everything is the program of one device on fewer rows. A linear layer
gathers its weight where it opens it (kernels/quantized.py), one layer at a time, as codes; the backward pass opens and gathers it
again. An embedding is looked up, and its rows gathered, by kernels/table.py. Adapters' gradients are summed once, after the loop
over layers: `varying` makes each device's copy of an adapter one of its own, and the cotangent of that is the sum. Steps,
optimisers and hypergradients see global arrays and know nothing of a mesh.

A `Spread` of one device is never made: a run on one device takes none of this.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from bidora_jax.kernels import quantized
from bidora_jax.kernels.hypergrad import TwoPass
from bidora_jax.kernels.table import Columns
from bidora_jax.kernels.varying import varying
from bidora_jax.models.architectures.architecture import EMBEDDING, HEAD, LAYERS
from bidora_jax.models.compute import Compute
from bidora_jax.models.tensor import SUMMED

AXES = REPLICA, SHARD, TENSOR = "replica", "shard", "tensor"
WHOLE, OWN = PartitionSpec(), PartitionSpec(AXES)
"""Of arrays that are whole on every device, and of what each holds for itself."""
ROWS, BATCH = PartitionSpec(None, (REPLICA, SHARD)), PartitionSpec((REPLICA, SHARD))
"""Of arrays (M, B, …) and (B, …), cut along B."""
WEIGHT = "weight"
"""In a batch: Σ w over the rows of all devices, that each one's Σ w·l is divided by."""


def mesh_over(devices: Sequence[Any], replica: int, shard: int, tensor: int = 1) -> Mesh:
    """The first replica × shard × tensor of the devices as a mesh."""
    sizes, auto = (replica, shard, tensor), jax.sharding.AxisType.Auto
    return jax.make_mesh(sizes, AXES, axis_types=(auto,) * 3, devices=devices[: prod(sizes)])


class Placement:
    """How a base comes to lie on a mesh while it is read."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def shardings(self, path: Any, weight: PyTree) -> PyTree:
        """Where the leaves of a stack lie, by its path in the base; `weight` may be shapes."""
        cut = _cut_of(path, weight, _parts(self._mesh))
        return jax.tree.map(lambda cut: NamedSharding(self._mesh, _spec(cut)), cut)

    def whole(self, array: np.ndarray | np.generic) -> jax.Array:
        """An array of the host, on every device."""
        return laid(array, NamedSharding(self._mesh, WHOLE))


class Spread:
    """A mesh, and how a base lies on it."""

    def __init__(self, mesh: Mesh, base: PyTree) -> None:
        """`base` may be shapes. It is the base that the adapter was prepared for (models/adapters/initial.py)."""
        self.mesh = mesh
        self._cut = _cut(base, _parts(mesh))
        self._tensor = TENSOR if mesh.shape[TENSOR] > 1 else None
        self._specs = jax.tree.map(_spec, self._cut)

    @property
    def sizes(self) -> tuple[int, ...]:
        """(replica, shard, tensor)"""
        return tuple(self.mesh.shape[axis] for axis in AXES)

    @property
    def devices(self) -> int:
        return self.mesh.size

    @property
    def row_parts(self) -> int:
        """Into how many parts the rows of a batch are cut."""
        return self.mesh.shape[REPLICA] * self.mesh.shape[SHARD]

    # Where arrays lie

    def place(self, base: PyTree) -> PyTree:
        """The base, each device with its parts."""
        return jax.tree.map(laid, base, self._shardings())

    def copies(self, tree: PyTree) -> PyTree:
        """The tree, whole on every device. It may share memory with the tree that it is made of."""
        return jax.tree.map(lambda leaf: laid(leaf, self._sharding(WHOLE)), tree)

    def gathered(self, tree: PyTree) -> PyTree:
        """The tree, whole on the first device alone: of several processes, on the first of each."""
        if not _is_shared(self._sharding(WHOLE)):
            return jax.device_put(tree, self.mesh.devices.flat[0])
        return jax.tree.map(lambda leaf: _moved(self._sharding(WHOLE))(leaf).addressable_data(0), tree)

    def batch(self, batch: PyTree, spec: PartitionSpec) -> PyTree:
        """A batch of the host, as programs of several processes take it; each process has made all of it."""
        sharding = self._sharding(spec)
        return jax.tree.map(lambda leaf: laid(leaf, sharding), batch) if _is_shared(sharding) else batch

    def held_bytes(self, frozen: PyTree) -> int:
        """Bytes that one device holds of the base, or of (base, what else)."""
        if isinstance(frozen, tuple):
            base, others = frozen
            return self.held_bytes(base) + quantized.tree_bytes(others)
        return held_bytes(frozen, _parts(self.mesh))

    # Programs

    def compiled_by(self, step: Callable[..., Any], frozen: PyTree, batches: int) -> Any:
        """`jax.jit` of a step (state, frozen, *batches) that donates its state. `frozen` is the base, or (base, what else)."""
        base, whole = self._shardings(), self._sharding(WHOLE)
        held = (base, whole) if isinstance(frozen, tuple) else base
        rows = [self._sharding(ROWS)] * batches
        return jax.jit(step, donate_argnums=0, in_shardings=(whole, held, *rows), out_shardings=whole)

    def share(self, compute: Compute) -> Compute:
        """How a device computes its share of the rows."""
        return replace(compute, loss_devices=self.devices, tensor_axis=self._tensor)

    def across(self, loss: Any, weight: Callable[[PyTree], Array]) -> Any:
        """A loss(direction, magnitude, base, batch, key, *tape), or its two passes, over the rows of all devices.

        `weight` is Σ w of a batch, which the loss divides by (training/objective.py).
        """
        if isinstance(loss, TwoPass):
            return TwoPass(self._first(loss.first, weight), self.across(loss.second, weight))

        def local(direction, magnitude, base, batch, key, *tape):
            own = self._own((direction, magnitude))
            return jax.lax.psum(loss(*own, self._held(base), self._own(batch), key, *tape), AXES)

        def over_rows(direction, magnitude, base, batch, key, *tape):
            batch = _weighed(batch, weight, direction)
            specs = *self._of_a_loss(batch), *[OWN] * len(tape)
            return self._mapped(local, specs, WHOLE)(direction, magnitude, base, batch, key, *tape)

        return over_rows

    def _first(self, first: Callable[..., Any], weight: Callable[[PyTree], Array]) -> Callable[..., Any]:
        """A first pass. The derivative is taken inside the map and summed after it; the tape stays on the device that made it."""

        def local(direction, magnitude, base, batch, key):
            trained = self._own((direction, magnitude))
            value, gradient, tape = first(*trained, self._held(base), self._own(batch), key)
            return *jax.lax.psum((value, gradient), AXES), tape

        def over_rows(direction, magnitude, base, batch, key):
            batch = _weighed(batch, weight, direction)
            outs = WHOLE, WHOLE, OWN
            return self._mapped(local, self._of_a_loss(batch), outs)(direction, magnitude, base, batch, key)

        return over_rows

    def sums(self, function: Callable[[PyTree, PyTree, PyTree], PyTree]) -> Callable[..., PyTree]:
        """function(base, trained, batch), numbers that are sums over the rows (B, …) of a batch, over the rows of all devices."""

        def local(base, trained, batch):
            leaves, tree = jax.tree.flatten(function(self._held(base), self._own(trained), self._own(batch)))
            return jax.tree.unflatten(tree, list(jax.lax.psum(jnp.stack(leaves), AXES)))  # one sum, after the loop

        return self._mapped(local, (self._specs, WHOLE, BATCH), WHOLE)

    def rows(
        self, function: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
    ) -> Callable[..., tuple[PyTree, PyTree]]:
        """function(base, trained, batch), arrays (B, …) of the rows of a batch and sums over them, over the rows of all devices."""

        def local(base, trained, batch):
            found, sums = function(self._held(base), self._own(trained), self._own(batch))
            return found, jax.lax.psum(sums, AXES)

        return self._mapped(local, (self._specs, WHOLE, BATCH), (OWN, WHOLE))

    def _mapped(self, local: Callable[..., Any], ins: Any, outs: Any) -> Callable[..., Any]:
        return jax.shard_map(local, mesh=self.mesh, in_specs=ins, out_specs=outs)

    def _of_a_loss(self, batch: dict[str, Any]) -> tuple[Any, ...]:
        """The specs of direction, magnitude, base, batch and key."""
        return WHOLE, WHOLE, self._specs, {name: WHOLE if name == WEIGHT else ROWS for name in batch}, WHOLE

    def _own(self, tree: PyTree) -> PyTree:
        return jax.tree.map(partial(varying, axes=AXES), tree)

    def _held(self, base: PyTree) -> PyTree:
        """What a device holds of the base, in which each weight that is cut knows it."""

        def one(path, weight, cut):
            leaves = tuple(jax.tree.leaves(cut))
            if path[0].key != LAYERS:
                return Columns(weight, (TENSOR, SHARD)) if any(leaves) else weight
            if self._tensor is not None and _is_linear(path, weight):
                return quantized.Part(weight, leaves, SHARD, (TENSOR, path[-2].key in SUMMED))
            return quantized.Part(weight, leaves, SHARD) if any(leaves) else weight

        return jax.tree_util.tree_map_with_path(one, self._own(base), self._cut, is_leaf=quantized.is_packed)

    def _shardings(self) -> PyTree:
        return jax.tree.map(self._sharding, self._specs)

    def _sharding(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self.mesh, spec)


def _is_shared(sharding: NamedSharding) -> bool:
    """Whether other processes hold some of the devices."""
    return not sharding.is_fully_addressable


def laid(leaf: Any, sharding: NamedSharding) -> Any:
    """An array that every process has made, on the devices of all of them. `jax.device_put` would compare all its values."""
    if not _is_shared(sharding):
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf if leaf.sharding == sharding else _moved(sharding)(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        impl = jax.random.key_impl(leaf)
        return jax.random.wrap_key_data(laid(jax.random.key_data(leaf), sharding), impl=impl)
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


@lru_cache
def _moved(sharding: NamedSharding) -> Any:
    """A program that lays an array of all processes as the sharding says. It is kept: a program of its own would be compiled for
    every batch."""
    return jax.jit(_same, out_shardings=sharding)


def _same(array: Array) -> Array:
    return array


def _weighed(batch: dict[str, Array], weight: Callable[[PyTree], Array], direction: PyTree) -> dict[str, Array]:
    """The batch with Σ w of all its rows.

    Its tokens wait for that sum, and for the direction, which the upper level has from the lower one. XLA's CPU backend starts a
    collective of its own as soon as its operands are there, beside a loop that has others: virtual devices would enter the two in
    different orders, and wait for each other (2026-11-30).
    """
    total, made = weight(batch), jax.tree.leaves(direction)[0].reshape(-1)[0]
    there = (total > 0) & ~jnp.isnan(made)  # the loss of a direction that is no number is none either
    return {**batch, "tokens": jnp.where(there, batch["tokens"], 0), WEIGHT: total}


def held_bytes(base: PyTree, parts: int) -> int:
    """Bytes that one of so many devices holds of a base, which may be shapes."""
    leaves = zip(jax.tree.leaves(base), jax.tree.leaves(_cut(base, parts)), strict=True)
    return sum(quantized.tree_bytes(leaf) // (parts if cut else 1) for leaf, cut in leaves)


def _cut(base: PyTree, parts: int) -> PyTree:
    """Whether each leaf of the base is cut into so many parts along its axis 1."""
    return jax.tree_util.tree_map_with_path(partial(_cut_of, parts=parts), base, is_leaf=quantized.is_packed)


def _cut_of(path: Any, weight: PyTree, parts: int) -> PyTree:
    """Whether each leaf of a weight of the base is cut: those of stacked weights and of dense embeddings, where they divide.

    The axis of layers is never cut: XLA would gather a whole stack to slice one layer of it.
    """
    stacked = _is_linear(path, weight)
    embedding = path[0].key in (EMBEDDING, HEAD) and not quantized.is_packed(weight)
    cut = jax.tree.map(
        lambda leaf: (stacked or embedding) and parts > 1 and len(leaf.shape) > 1 and leaf.shape[1] % parts == 0, weight
    )
    if isinstance(weight, quantized.NF4) and isinstance(weight.absmax, quantized.Nested):
        # A share of 16,384 weights: too small to be worth a collective.
        cut = replace(cut, absmax=cut.absmax._replace(absmax=False, offset=False))
    return cut


def _is_linear(path: Any, weight: PyTree) -> bool:
    return path[0].key == LAYERS and path[-1].key == "weight" and len(weight.shape) == 3


def _parts(mesh: Mesh) -> int:
    """Into how many parts the base is cut."""
    return mesh.shape[SHARD] * mesh.shape[TENSOR]


def _spec(cut: bool) -> PartitionSpec:
    return PartitionSpec(None, (TENSOR, SHARD)) if cut else WHOLE
