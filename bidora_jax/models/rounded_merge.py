"""Folds an adapter into weights of 16 bits so that what was learned is still there.

A short run changes a weight by 1e-4 of itself; a step of bfloat16 is 4e-3 to 8e-3 of it. Rounded to the nearest value, most entries
of W' are those of W0 again. Here W' is summed in float32 and rounded by kernels/rounding.py: by feedback over the inputs that the
run's own records bring about, or without records in a way that is right on average.
"""

import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import repeat

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bidora_jax.kernels import dora, quantized, rounding
from bidora_jax.models import moments
from bidora_jax.models.adapters import merging
from bidora_jax.models.adapters.adapter import Adapter, get, update_factors
from bidora_jax.models.adapters.targets import Site
from bidora_jax.models.architectures.architecture import Architecture

TRIES, CLOSE = 3, 0.05
"""Times that a layer is rounded at most, and how near to all of the change is near enough."""


def merge(
    architecture: Architecture,
    adapter: Adapter,
    base: PyTree,
    direction: PyTree,
    magnitude: PyTree,
    dtype,
    batches: Sequence[dict] = (),
) -> PyTree:
    """`merging.merge` in this dtype. `batches` of the run's records give the inputs, as `moments.of_layers` takes them; the base is
    prepared for the adapter. A wider dtype than 16 bits loses nothing, and is rounded to the nearest value."""
    dtype = np.dtype(dtype)
    if dtype.itemsize > 2:
        return merging.merge(adapter, base, direction, magnitude, dtype)
    merged = {site.path: np.empty(get(base["layers"], site.path)["weight"].shape, dtype) for site in adapter.sites}
    factors = {site.path: update_factors(adapter, site, base, direction) for site in adapter.sites}
    inputs: Iterator[moments.Moments] = (
        moments.of_layers(architecture, adapter, base, (direction, magnitude), batches) if batches else repeat({})
    )
    for layer in range(len(adapter.sites[0].ranks)):
        found = next(inputs)
        for site in adapter.sites:
            leaf = get(base["layers"], site.path)
            m = get(magnitude["layers"], site.path)["m"] if adapter.magnitude else None
            w0, changed = _change(site, leaf["weight"], factors[site.path], m, jnp.int32(layer))
            if site.path in found:
                one = _kept_whole(w0, changed, found[site.path], dtype)
            else:
                key = jax.random.fold_in(jax.random.key(zlib.crc32(site.path.encode())), layer)
                one = _without_inputs(key, w0, changed, dtype)
            merged[site.path][layer] = np.asarray(one)
    return merging.assembled(adapter, base, direction, merged, dtype)


@partial(jax.jit, static_argnums=0)
def _change(site: Site, weight, factors, m, layer) -> tuple[Float[Array, "O I"], Float[Array, "O I"]]:
    """(W0, W' − W0) of one layer of a site, in float32."""
    own = quantized.Layer(weight, layer) if quantized.is_packed(weight) else weight[layer]
    w0 = quantized.dense(own).astype(jnp.float32)
    scale = site.scale if site.scale is not None else jnp.asarray(site.scales, jnp.float32)[layer]
    pair = dora.Direction(*(factor[layer] for factor in factors))
    return w0, merging.merged_layer(site, w0, pair, scale, None if m is None else m[layer]) - w0


def _kept_whole(w0, changed, moments: Float[Array, "I I"], dtype) -> Float[Array, "O I"]:
    """Q by feedback with W0 + γ·ΔW as the target, and γ such that the outputs keep all of the change.

    Where a step is much larger than the change, feedback to W' itself keeps a quarter to three quarters of it, as the grid's points
    near W' lie nearer to W0. γ is found by interpolation between one that keeps too little and one that keeps too much.
    """
    inputs = _inputs(moments)
    gain, below, above, best = 1.0, (0.0, 0.0), None, None
    for _ in range(TRIES):
        q, found = _by_feedback(w0, changed, jnp.float32(gain), inputs, dtype)
        kept = float(found)
        if best is None or abs(kept - 1) < abs(best[0] - 1):
            best = kept, q
        if abs(kept - 1) <= CLOSE:
            break
        below, above = ((gain, kept), above) if kept < 1 else (below, (gain, kept))
        if above is None:
            gain *= min(1 / max(kept, 0.5), 2.0)
        else:
            gain = below[0] + (above[0] - below[0]) * (1 - below[1]) / (above[1] - below[1])
    assert best is not None
    return best[1]


_inputs = jax.jit(rounding.inputs)


@partial(jax.jit, static_argnums=4)
def _by_feedback(w0, changed, gain, inputs: rounding.Inputs, dtype) -> tuple[Float[Array, "O I"], Float[Array, ""]]:
    """Q for the target W0 + γ·ΔW, and the share of the change that it keeps in the outputs, ⟨(Q − W0)·M, ΔW⟩ / ⟨ΔW·M, ΔW⟩."""
    w = w0 + gain * changed
    low, high = rounding.neighbours(w, dtype)
    q = rounding.feedback(w, low, high, inputs)
    along = changed @ inputs.moments
    whole = jnp.sum(along * changed)
    kept = jnp.where(whole > 0, jnp.sum((q - w0) * along) / jnp.where(whole > 0, whole, 1.0), 1.0)
    return q.astype(dtype), kept


@partial(jax.jit, static_argnums=3)
def _without_inputs(key, w0, changed, dtype) -> Float[Array, "O I"]:
    w = w0 + changed
    return rounding.without_inputs(key, w, w0, *rounding.neighbours(w, dtype)).astype(dtype)
