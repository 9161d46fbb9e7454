"""Folds an adapter into the weights, and makes quantised weights dense."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Float, PyTree

from bidora_jax.kernels import dora, quantized
from bidora_jax.models.adapters.adapter import (
    Adapter,
    get,
    over_layers,
    put,
    update_factors,
)
from bidora_jax.models.adapters.targets import Site
from bidora_jax.models.architectures.architecture import EMBEDDING, HEAD
from bidora_jax.models.architectures.heads import HEAD_TREE
from bidora_jax.models.base import dtype_of, with_whole_modules


def merge(adapter: Adapter, base: PyTree, direction: PyTree, magnitude: PyTree, dtype=None) -> PyTree:
    """The base with every adapted weight replaced by W', summed in float32 and rounded once to `dtype` (the base's own).

    Quantised weights without an adapter are left as they are. Tied embeddings stay tied where both have the same new values. The
    trained parts of a head take their place in the base, in float32.
    """
    merged = {}
    for site in adapter.sites:
        weight = get(base["layers"], site.path)["weight"]
        m = get(magnitude["layers"], site.path)["m"] if adapter.magnitude else None
        to = jnp.dtype(dtype or weight.dtype)
        merged[site.path] = _merge_stack(weight, update_factors(adapter, site, base, direction), m, site, to)
    return assembled(adapter, base, direction, merged, dtype)


def assembled(
    adapter: Adapter, base: PyTree, direction: PyTree, merged: Mapping[str, Float[ArrayLike, "L O I"]], dtype=None
) -> PyTree:
    """The base with these stacks in place of the adapted weights, by path, and what was trained outside them in its place."""
    layers = base["layers"]
    for path, stack in merged.items():
        kept = {name: value for name, value in get(layers, path).items() if name == "bias"}
        layers = put(layers, path, kept | {"weight": stack})
    if adapter.head is not None:
        base = {**base, HEAD_TREE: {**base.get(HEAD_TREE, {}), **direction[HEAD_TREE]}}
    to = jnp.dtype(dtype or dtype_of(base))
    rounded = {name: {"weight": direction[name]["weight"].astype(to)} for name in adapter.whole_modules}
    if HEAD not in base and len(rounded) == 2 and jnp.array_equal(*(one["weight"] for one in rounded.values())):
        return {**base, EMBEDDING: rounded[EMBEDDING], "layers": layers}
    return {**with_whole_modules(base, rounded), "layers": layers}


def move_whole_modules(adapter: Adapter, base: PyTree, direction: PyTree) -> tuple[PyTree, Adapter, PyTree]:
    """Moves the modules that were trained whole from the direction into the base: the new base, and an adapter and a direction
    of linear layers alone."""
    layers, base = {"layers": direction["layers"]}, with_whole_modules(base, direction)
    if adapter.head is not None:
        base = {**base, HEAD_TREE: {**base.get(HEAD_TREE, {}), **direction[HEAD_TREE]}}
    return base, replace(adapter, whole_modules=(), head=None), layers


def place_frozen(adapter: Adapter, base: PyTree, direction: PyTree) -> tuple[PyTree, PyTree]:
    """Moves the modules that an adapter's folder holds and that are not trained from the direction into the base, in its dtype."""
    to, rest = dtype_of(base), {name: part for name, part in direction.items() if name not in adapter.frozen_modules}
    found = {name: {"weight": direction[name]["weight"].astype(to)} for name in adapter.frozen_modules}
    if HEAD in found and HEAD not in base:  # tied: one matrix is both
        found = {EMBEDDING: found[HEAD]}
    return {**base, **found}, rest


def held_whole(adapter: Adapter, base: PyTree, direction: PyTree) -> tuple[Adapter, PyTree]:
    """The adapter and the direction with the frozen modules that stand in the base, as its folder holds them."""
    frozen = {name: base.get(name, base[EMBEDDING])["weight"] for name in adapter.frozen_modules}
    whole = tuple(name for name in (EMBEDDING, HEAD) if name in adapter.whole_modules or name in frozen)
    direction = direction | {name: {"weight": weight.astype(jnp.float32)} for name, weight in frozen.items()}
    return replace(adapter, whole_modules=whole, frozen_modules=()), direction


def merged_layer(site: Site, w0: jax.Array, pair: dora.Direction, scale: dora.Scale, m: jax.Array | None) -> jax.Array:
    """W' (O, I) of one layer of a site, in float32; W0 where the layer is not adapted."""
    found = dora.merge(w0, pair, m, scale=scale)
    return found if site.scale is not None else jnp.where(scale == 0, w0, found)


def dequantise(base: PyTree, dtype=None) -> PyTree:
    """The base with every quantised weight dense, in `dtype` or its own, one layer at a time."""

    def dense(weight):
        if not quantized.is_quantised(weight):
            return weight
        to = jnp.dtype(dtype or weight.dtype)
        return _dense_stack(weight, to) if len(weight.shape) == 3 else quantized.dense(weight).astype(to)

    return jax.tree.map(dense, base, is_leaf=quantized.is_quantised)


@partial(jax.jit, static_argnames=("site", "dtype"))
def _merge_stack(weight, pair, m, site: Site, dtype):
    # One layer at a time: a whole stack in float32 would be twice a bf16 model's largest leaf.
    def one(w0, direction, scale, m):
        return merged_layer(site, quantized.dense(w0), direction, scale, m).astype(dtype)

    return over_layers(one, site, weight, pair, m)


@partial(jax.jit, static_argnames="dtype")
def _dense_stack(weight, dtype):
    return quantized.over_layers(lambda w0: quantized.dense(w0).astype(dtype), weight)
