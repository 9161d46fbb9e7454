"""Folds an adapter into the weights, and makes quantised weights dense."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bidora_jax.kernels import dora, quantized
from bidora_jax.models.adapters.adapter import (
    Adapter,
    get,
    over_layers,
    put,
    update_factors,
)
from bidora_jax.models.adapters.targets import Site
from bidora_jax.models.base import dtype_of, with_whole_modules


def merge(adapter: Adapter, base: PyTree, direction: PyTree, magnitude: PyTree, dtype=None) -> PyTree:
    """The base with every adapted weight replaced by W', summed in float32 and rounded once to `dtype` (the base's own).

    Quantised weights without an adapter are left as they are.
    """
    layers = base["layers"]
    for site in adapter.sites:
        leaf = get(layers, site.path)
        m = get(magnitude["layers"], site.path)["m"] if adapter.magnitude else None
        to = jnp.dtype(dtype or leaf["weight"].dtype)
        merged = _merge_stack(leaf["weight"], update_factors(adapter, site, base, direction), m, site, to)
        kept = {name: value for name, value in leaf.items() if name == "bias"}
        layers = put(layers, site.path, kept | {"weight": merged})
    to = jnp.dtype(dtype or dtype_of(base))
    rounded = {name: {"weight": direction[name]["weight"].astype(to)} for name in adapter.whole_modules}
    return {**with_whole_modules(base, rounded), "layers": layers}


def move_whole_modules(adapter: Adapter, base: PyTree, direction: PyTree) -> tuple[PyTree, Adapter, PyTree]:
    """Moves the modules that were trained whole from the direction into the base: the new base, and an adapter and a direction
    of linear layers alone."""
    layers = {"layers": direction["layers"]}
    return with_whole_modules(base, direction), replace(adapter, whole_modules=()), layers


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
