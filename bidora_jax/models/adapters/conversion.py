"""Converts an adapter whose factors start away from zero to an ordinary one of twice the rank, for the original base.

    W0 + s·(B·A − B0·A0) = W0 + s·[B, −B0]·[A; A0]          s stays: alpha is doubled too, with rsLoRA times √2

PEFT calls this path_initial_model_for_weight_conversion. PEFT drops a DoRA magnitude in it and refuses rsLoRA with patterns;
here the magnitude is kept unchanged, since V is the same, and each pattern is converted like the rest.
"""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bidora_jax.models.adapters.adapter import Adapter, put, update_factors
from bidora_jax.models.adapters.settings import AdapterConfig


def converted(
    adapter: Adapter, settings: AdapterConfig, base: PyTree, direction: PyTree
) -> tuple[Adapter, AdapterConfig, PyTree]:
    """The same function as an adapter whose factors fit the original base. One that fits it already is returned unchanged."""
    if not adapter.starts_nonzero:
        return adapter, settings, direction
    twice = 2**0.5 if settings.rslora else 2.0  # s stays as it was
    settings = replace(
        settings, init="kaiming", rank=2 * settings.rank, alpha=twice * settings.alpha,
        rank_pattern=tuple((key, 2 * rank) for key, rank in dict(settings.rank_pattern).items()),
        alpha_pattern=tuple((key, twice * alpha) for key, alpha in dict(settings.alpha_pattern).items()),
    )  # fmt: skip
    layers, sites = {}, []
    for site in adapter.sites:
        a, b = update_factors(adapter, site, base, direction)
        # Each layer's own rows come first, and the zeros that fill the stack up come last.
        unused = [np.arange(2 * site.rank) % site.rank >= rank for rank in site.ranks]
        order = np.argsort(np.array(unused), axis=1, kind="stable")
        a, b = jnp.take_along_axis(a, order[:, :, None], axis=1), jnp.take_along_axis(b, order[:, None, :], axis=2)
        layers = put(layers, site.path, {"A": a, "B": b})
        sites.append(replace(site, ranks=tuple(2 * rank for rank in site.ranks)))
    return replace(adapter, init="kaiming", sites=tuple(sites)), settings, {**direction, "layers": layers}
