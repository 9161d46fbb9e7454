"""How far training has moved each layer, taken apart into magnitude and direction (DoRA, arXiv:2402.09353, section 3.2).

    ΔM = mean over rows n of |m_n − ‖W0_n‖|            ΔD = mean over rows n of 1 − cos(V_n, W0_n)

V = W0 + s·B·A, with one row per output as everywhere here (the papers have columns of the transpose). LoRA has no magnitude:
m_n is ‖V_n‖ then, the row norm of W'. Both are float32 and come from the factored norm: neither V nor B·A is computed, and of
a quantised base one layer at a time is dequantised.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bidora_jax.kernels import dora, quantized
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters.adapter import Adapter, get
from bidora_jax.models.adapters.targets import Site


class Drift(NamedTuple):
    """How far one module has moved in one layer."""

    module: str
    """Path inside a layer, such as 'self_attn.q_proj'."""
    layer: int
    magnitude: float
    """ΔM, in units of the weight's row norms."""
    direction: float
    """ΔD, from 0 to 2."""
    relative: float
    """ΔM over the mean row norm of W0."""


def drift(adapter: Adapter, base: PyTree, direction: PyTree, magnitude: PyTree) -> list[Drift]:
    """ΔM and ΔD of every adapted layer, module by module. The base must be prepared for the adapter."""
    found = []
    for site in adapter.sites:
        leaf = get(base["layers"], site.path)
        m = get(magnitude["layers"], site.path)["m"] if adapter.magnitude else None
        pair = adapters.update_factors(adapter, site, base, direction)
        values = _of_stack(leaf["weight"], leaf.get("norm_sq"), pair, m, site)
        moved, turned, before = (np.asarray(value, np.float64) for value in values)
        found += [
            Drift(site.path, layer, float(moved[layer]), float(turned[layer]), float(moved[layer] / before[layer]))
            for layer in site.layers
        ]
    return found


@partial(jax.jit, static_argnames="site")
def _of_stack(weight, norm_sq, pair, m, site: Site):
    """ΔM, ΔD and the mean row norm of W0, each (L,)."""

    def one(weight, direction, scale, norm_sq, m):
        matrix, row_scale = quantized.opened(weight)
        norm_sq = dora.square_norm(quantized.dense(weight)) if norm_sq is None else norm_sq
        growth, turned = dora.drift(matrix, norm_sq, direction, scale=scale, row_scale=row_scale)
        start = jnp.sqrt(norm_sq)
        return jnp.mean(jnp.abs(growth if m is None else m - start)), jnp.mean(turned), jnp.mean(start)

    return adapters.over_layers(one, site, weight, pair, norm_sq, m)
