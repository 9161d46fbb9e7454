"""The second moments M = Σ x·xᵀ of what enters each linear layer, one layer of the model at a time.

    x ← embedding;   for each layer:  M of its linear layers, x ← layer(x)

They say which errors of a weight show in a layer's outputs (kernels/rounding.py). Padding does not count. The M of one layer of
the model exist at a time: for in_features of 12,288 one takes 604 MB.
"""

import operator
from collections.abc import Iterator, Sequence
from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from bidora_jax.models import backbone, stacks
from bidora_jax.models.adapters.adapter import Adapter
from bidora_jax.models.architectures.architecture import Architecture
from bidora_jax.models.compute import Compute
from bidora_jax.models.linear import Linear
from bidora_jax.models.stacks import Trained

MOMENTS = "moments"
"""The collection of Flax that they are written to."""
INPUTS = Compute(remat="none", dtype=jnp.float32)
Moments = dict[str, Float[Array, "I I"]]
"""By the path of a linear layer inside a layer of the model."""


def of_layers(
    architecture: Architecture, adapter: Adapter | None, base: PyTree, trained: Trained, batches: Sequence[dict]
) -> Iterator[Moments]:
    """The moments of each layer in turn, over all `batches`: tokens (B, T), lengths (B,) or segments (B, T), types (B, T) where the
    model has a table of them. The base is prepared for the adapter."""
    xs: list[Array | None] = [None] * len(batches)
    for layer in range(len(jax.tree.leaves(base["layers"])[0])):
        total: Moments = {}
        for number, batch in enumerate(batches):
            xs[number], found = _one(architecture, adapter, base, trained, batch, xs[number], jnp.int32(layer))
            total = {path: total[path] + one if path in total else one for path, one in found.items()}
        yield total


@partial(jax.jit, static_argnums=(0, 1))
def _one(architecture, adapter, base, trained, batch, x, index) -> tuple[Float[Array, "B T D"], Moments]:
    """The x of the next layer, and the moments of this one; the first one has no x yet."""
    parts, layer = backbone.parts(architecture, adapter, INPUTS, base, trained, batch)
    one = jax.tree.map(lambda leaf: leaf[index], (parts.variables, parts.frozen))
    with nn.intercept_methods(partial(_recorded, stacks.segments_of(batch))):
        x, written = layer(*one, parts.shared, parts.x if x is None else x, (MOMENTS,))
    return x, dict(_by_path(written[MOMENTS]))


def _recorded(segments: Int[Array, "B T"], method, arguments, keywords, context):
    """Writes the moments of a linear layer's x beside calling it."""
    if isinstance(context.module, Linear) and context.method_name == "__call__":
        x = arguments[0].astype(jnp.float32)
        if x.shape[:-1] == segments.shape:  # rows of positions are not padded
            x = jnp.where(segments[..., None] > 0, x, 0.0)
        x = x.reshape(-1, x.shape[-1])
        context.module.sow(MOMENTS, "x", x.T @ x)
    return method(*arguments, **keywords)


def _by_path(tree: PyTree, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Float[Array, "I I"]]]:
    for name, part in tree.items():
        if isinstance(part, tuple):  # one of each call of the layer
            first, *others = part
            yield ".".join(path), reduce(operator.add, others, first)
        else:
            yield from _by_path(part, (*path, name))
