"""Folds an adapter into weights of 16 bits so that what was learned is still there.

A short run changes a weight by 1e-4 of itself; a step of bfloat16 is 4e-3 to 8e-3 of it. Rounded to the nearest value, most entries
of W' are those of W0 again. Here W' is summed in float32 and rounded so that it is right on average (kernels/rounding.py), with a
seed of its own for each layer: the same run gives the same bytes.
"""

import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bidora_jax.kernels import dora, quantized, rounding
from bidora_jax.models.adapters import merging
from bidora_jax.models.adapters.adapter import Adapter, get, update_factors
from bidora_jax.models.adapters.targets import Site


def merge(adapter: Adapter, base: PyTree, direction: PyTree, magnitude: PyTree, dtype) -> PyTree:
    """`merging.merge` in this dtype; the base is prepared for the adapter. Into a dtype wider than 16 bits it takes the nearest
    values, which lose nothing."""
    dtype = np.dtype(dtype)
    if dtype.itemsize > 2:
        return merging.merge(adapter, base, direction, magnitude, dtype)
    merged = {site.path: np.empty(get(base["layers"], site.path)["weight"].shape, dtype) for site in adapter.sites}
    for site in adapter.sites:
        weight, factors = get(base["layers"], site.path)["weight"], update_factors(adapter, site, base, direction)
        m = get(magnitude["layers"], site.path)["m"] if adapter.magnitude else None
        for layer in range(len(site.ranks)):
            key = jax.random.fold_in(jax.random.key(zlib.crc32(site.path.encode())), layer)
            merged[site.path][layer] = np.asarray(_rounded(site, dtype, key, weight, factors, m, jnp.int32(layer)))
    return merging.assembled(adapter, base, direction, merged, dtype)


@partial(jax.jit, static_argnums=(0, 1))
def _rounded(site: Site, dtype, key, weight, factors, m, layer) -> Float[Array, "O I"]:
    """Q of one layer of a site, from W0 and W' in float32."""
    own = quantized.Layer(weight, layer) if quantized.is_packed(weight) else weight[layer]
    w0 = quantized.dense(own).astype(jnp.float32)
    scale = site.scale if site.scale is not None else jnp.asarray(site.scales, jnp.float32)[layer]
    pair = dora.Direction(*(factor[layer] for factor in factors))
    w = merging.merged_layer(site, w0, pair, scale, None if m is None else m[layer])
    return rounding.keeping_change(key, w, w0, *rounding.neighbours(w, dtype)).astype(dtype)
