"""What decoder and encoder share: a model's trees as the stacks that the scan over layers takes (layer_scan.py), a layer as the
function that it applies, and the documents of a row."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from bidora_jax.kernels.save_for_backward import saved_dtype
from bidora_jax.models import layer_scan
from bidora_jax.models.compute import Compute
from bidora_jax.models.layer_scan import Layer, Shared
from bidora_jax.models.tape import EmptyTape, TapeValues

Trained = tuple[PyTree, PyTree]
"""(direction, magnitude)"""
Apply = Callable[..., tuple[Array, PyTree]]
"""(variables of a layer, x, what every layer is given, what this one is given, rngs=, mutable=) -> (x of the next layer, the
collections that it wrote)"""


class Stacks(NamedTuple):
    """The arguments of the scan over layers, in its order."""

    variables: PyTree
    """Of what is trained."""
    frozen: PyTree
    """The base, the numbers of the layers, and what each layer is given of its own."""
    shared: Shared
    x: Float[Array, "B T D"]
    """Of the first layer."""

    def applied(self, layer: Layer, compute: Compute, tape: EmptyTape | TapeValues | None) -> Float[Array, "B T D"]:
        """x after all layers."""
        return layer_scan.apply_layers(layer, compute, *self, tape)

    def empty_tape(self, layer: Layer, compute: Compute, means: Array | None) -> EmptyTape:
        """The empty tape of a pass over these stacks, and of a head with these `means`."""
        return layer_scan.empty_tape(layer, compute, *self, means)


def stacked(
    base: PyTree, trained: Trained, x: Float[Array, "B T D"], given: PyTree, key: Array | None, *, own: PyTree = None
) -> Stacks:
    """The stacks of a model whose first layer takes x, in the dtype of the activations. `given` is what every layer is given beside
    x, and `own` stacks of what each is given alone."""
    named = zip(("direction", "magnitude"), trained, strict=True)
    variables = {name: tree["layers"] for name, tree in named if "layers" in tree}
    layers = jax.tree.leaves(base["layers"])[0].shape[0]
    frozen = layer_scan.packed({"base": base["layers"]}), jnp.arange(layers), own
    shared = Shared(base["layers"], given, key, x.dtype)
    return Stacks(variables, frozen, shared, x.astype(saved_dtype(x.dtype)))


def as_layer(apply: Apply) -> Layer:
    """The function that the scan takes of `apply`, which takes one slice of the stacked trees as variables."""

    def one(variables, frozen, shared: Shared, x, written: Any = ()):
        packed, index, own = frozen
        rngs = {} if shared.key is None else {"dropout": jax.random.fold_in(shared.key, index)}
        variables = layer_scan.unpacked({**variables, **packed}, shared.layers, index)
        out, written = apply(variables, x.astype(shared.dtype), shared.given, own, rngs=rngs, mutable=written)
        return out.astype(x.dtype), written

    return one


def documents(segments: Int[Array, "B T"]) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """The column that each token's document begins in, and its position in the document."""
    columns = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    starts = jax.lax.cummax(jnp.where(first, columns, 0), axis=1)
    return starts, columns - starts


def segments_of(batch: dict[str, Array]) -> Int[Array, "B T"]:
    """The number of each token's document in its row, and 0 of padding: `segments` as given, or of a document of `lengths` a
    row."""
    if "segments" in batch:
        return batch["segments"]
    return (jnp.arange(batch["tokens"].shape[1])[None] < batch["lengths"][:, None]).astype(jnp.int32)
