"""Tensor parallelism: the devices along an axis of a mesh share the products of each layer, and have the same rows.

    q, k, v, gate, up    the rows of W0, of B and of what stands beside them are cut: each device makes its heads and its units
    o, down              the columns of W0 and of A are cut: the output, and the norm's terms, are sums over the devices

    y = Σ (x·W0ᵀ + s·(x·Aᵀ)·Bᵀ)        ‖V‖² = ‖W0‖² + Σ (2s·rowsum(B ∘ (W0·Aᵀ)) + s²·rowsum((B·(A·Aᵀ)) ∘ B))

The gain m/‖V‖ is applied after the sum. All that stands between two sums each device computes for itself, and it takes its share of
the tokens for the loss (tasks/language_modeling.py), so that the sum over all devices of what they give is the loss. Adapters are
whole on every device and cut inside of the map: their cotangents are summed at its border as on any mesh (models/spread.py). The
cut of a frozen weight is kernels/quantized.py's.
"""

from typing import Any

import jax
from jaxtyping import PyTree

from bidora_jax.kernels import quantized
from bidora_jax.kernels.varying import own_part
from bidora_jax.models.architectures.architecture import LAYERS
from bidora_jax.models.architectures.decoder import DecoderConfig

SUMMED = ("o_proj", "down_proj")
"""Layers whose inputs are cut, and whose outputs are sums over the devices. Of all others the outputs are cut."""
CUT = {True: {"A": 2, "A0": 2}, False: {"B": 1, "B0": 1, "m": 1, "norm_sq": 1, "bias": 1}}
"""By whether a layer is summed: the axis of a stack beside its weight that is cut."""


def own(tree: PyTree, axis: str) -> PyTree:
    """What this device uses of a base, or of a direction or a magnitude. Weights are left as they are."""

    def one(path: Any, leaf: Any) -> Any:
        if path[0].key != LAYERS or not path[-2].key.endswith("_proj"):
            return leaf
        cut = CUT[path[-2].key in SUMMED].get(path[-1].key)
        return leaf if cut is None else own_part(leaf, axis, cut)

    return jax.tree_util.tree_map_with_path(one, tree, is_leaf=quantized.is_packed)


def uneven(config: DecoderConfig, devices: int) -> list[str]:
    """The sizes of a model that so many devices cannot share, in words."""
    sizes = {
        "heads": config.num_heads,
        "heads of keys and values": config.num_kv_heads,
        "units of a layer": config.intermediate_size,
    }
    return [f"{size} {name}" for name, size in sizes.items() if size % devices]
