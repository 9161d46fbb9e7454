"""The adapter over a whole model: which linear layers it changes, and the layout of its two trained trees.

Trees are stacked over layers like the base: direction['layers']['self_attn']['q_proj'] = {'A': (L, r, I), 'B': (L, O, r)},
magnitude['layers']['self_attn']['q_proj'] = {'m': (L, O)}; a method without magnitude has the empty tree {}. A module that is
trained whole (modules_to_save) stands in the direction under its name: direction['lm_head'] = {'weight': (V, D)}, in float32,
and so does the head of a classifier: direction['head'] = {'out': {'weight': (C, D), 'bias': (C,)}, …} (models/heads.py).

Layers may differ in rank and scale, and a layer may have no adapter. The factors are stacked with the largest rank; the rows
of A and columns of B beyond a layer's rank are zero, and so is m of a layer without an adapter. The gradients of these zeros
are exactly zero (∂A = BᵀG and ∂B = G·Aᵀ), and so are their moments and their weight decay: every optimiser leaves them zero.
Where the scale differs between layers it is data, 'scale' (L,) beside the weight. Scale 0 marks a layer without an adapter:
its gain is 1 whatever m is.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bidora_jax.errors import InputError
from bidora_jax.kernels import dora, lora_init, quantized
from bidora_jax.models.adapters import targets
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.adapters.targets import Site
from bidora_jax.models.architectures.architecture import Architecture, embeddings, linear_shapes
from bidora_jax.models.architectures.heads import HEAD_TREE, HeadSpec, PartName, TrainedHead


@dataclass(frozen=True)
class LayerAdapter:
    """The adapter of one linear layer, as the layer needs it."""

    rank: int
    scale: float | None
    """None: the base holds the scale beside the weight."""
    magnitude: bool
    dropout: float
    constant_norm: bool
    starts_nonzero: bool
    """Whether the base holds the start of the factors; the update is then the change of B·A since the start."""


@dataclass(frozen=True)
class Adapter:
    """Which modules are trained, and how."""

    sites: tuple[Site, ...]
    magnitude: bool
    dropout: float = 0.0
    constant_norm: bool = False
    init: str = "kaiming"
    """See kernels/lora_init.py."""
    whole_modules: tuple[str, ...] = ()
    """Modules outside the layers that are trained whole, by their key in the base tree."""
    frozen_modules: tuple[str, ...] = ()
    """Those that the adapter's folder holds beside the adapter, and that are not trained: they stand in the base."""
    head: TrainedHead | None = None
    """Of a classifier: what of its head is trained. It stands in the direction, under `HEAD_TREE`."""

    @property
    def starts_nonzero(self) -> bool:
        """Whether the factors start away from zero, so that their start is taken off."""
        return self.init not in ("kaiming", "gaussian")

    @property
    def targets(self) -> tuple[str, ...]:
        """Paths inside a layer, such as 'self_attn.q_proj'."""
        return tuple(site.path for site in self.sites)

    def at(self, path: str) -> LayerAdapter | None:
        """The adapter of the linear layers of this path; None where none of them is adapted."""
        found = [
            LayerAdapter(site.rank, site.scale, self.magnitude, self.dropout, self.constant_norm, self.starts_nonzero)
            for site in self.sites
            if site.path == path
        ]
        return found[0] if found else None


def resolve(
    settings: AdapterConfig,
    architecture: Architecture,
    *,
    strict: bool = True,
    head: HeadSpec | None = None,
    present: Collection[PartName] = (),
) -> Adapter:
    """The adapter that the settings mean on this model. InputError for settings that contradict themselves or the model.

    `head` is that of a classifier, of which the model's folder has the parts that are `present`.

    Without `strict`, exclusions and patterns may name modules that the model lacks, as the files of other programs do.
    """
    if settings.rank < 1:
        raise InputError(f"adapter.rank must be at least 1, found {settings.rank}; ranks of 4 to 64 are usual")
    if not 0 <= settings.dropout < 1:
        raise InputError(f"adapter.dropout must be in [0, 1), found {settings.dropout}")
    if settings.norm != "auto" and settings.method == "lora":
        raise InputError(
            "adapter.norm is set, but adapter.method lora has no norm; leave it at auto or choose dora or bidora"
        )
    _refuse_init(settings)
    constant = settings.norm == "constant" or (settings.norm == "auto" and settings.method == "dora")
    return Adapter(
        sites=targets.sites(settings, architecture, strict=strict),
        magnitude=settings.method != "lora",
        dropout=settings.dropout,
        constant_norm=constant,
        init=settings.init,
        whole_modules=targets.whole_modules(settings, architecture, head),
        head=None if head is None else head.trained(present, settings.modules_to_save),
    )


def _refuse_init(settings: AdapterConfig) -> None:
    if not re.fullmatch(r"kaiming|gaussian|olora|pissa(_niter_\d+)?", settings.init):
        raise InputError(
            f"adapter.init: expected kaiming, gaussian, pissa, pissa_niter_N or olora, found {settings.init!r}"
        )
    if settings.dropout and settings.init not in ("kaiming", "gaussian"):
        raise InputError(
            f"adapter.init {settings.init} moves the largest part of the base weight into A and B, and adapter.dropout "
            f"{settings.dropout} would drop it with them; set adapter.dropout to 0"
        )


def trainable(adapter: Adapter, architecture: Architecture) -> dict[str, int]:
    """Trained parameters by group, as PEFT counts them: the zeros that fill a stack up are not counted."""
    shapes, outside = linear_shapes(architecture), embeddings(architecture)
    direction = sum(sum(site.ranks) * sum(shapes[site.path]) for site in adapter.sites)
    magnitude = sum(len(site.layers) * shapes[site.path][0] for site in adapter.sites)
    groups = {"direction": direction} | ({"magnitude": magnitude} if adapter.magnitude else {})
    groups |= {name: prod(outside[name].shape) for name in adapter.whole_modules}
    if adapter.head is None:
        return groups
    return groups | {HEAD_TREE: sum(prod(shape) for part in adapter.head.parts for shape in part.tensors.values())}


def update_factors(adapter: Adapter, site: Site, base: PyTree, direction: PyTree) -> dora.Direction:
    """The stacked factors of the update of a site's weight; where the factors start away from zero, those of the change since."""
    factors, leaf = (get(tree["layers"], site.path) for tree in (direction, base))
    pair = dora.Direction(factors["A"], factors["B"])
    return lora_init.change_since(pair, dora.Direction(leaf["A0"], leaf["B0"])) if adapter.starts_nonzero else pair


def over_layers(function: Callable[..., Any], site: Site, weight: Any, pair: dora.Direction, *stacks: PyTree) -> Any:
    """`lax.map` of function(weight, direction, scale, *parts) over the layers of a site. The scale is a float where all layers
    share it, else a scalar array."""
    if site.scale is not None:
        scale = site.scale
        return quantized.over_layers(lambda w, d, *parts: function(w, d, scale, *parts), weight, pair, *stacks)
    scales = jnp.asarray(site.scales, pair.A.dtype)
    return quantized.over_layers(function, weight, pair, scales, *stacks)


def count(tree: PyTree) -> int:
    """Number of parameters."""
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(tree, is_leaf=quantized.is_packed))


def get(tree: PyTree, path: str) -> PyTree:
    """The subtree at a dotted path."""
    for name in path.split("."):
        tree = tree[name]
    return tree


def put(tree: PyTree, path: str, value: PyTree) -> PyTree:
    """A copy of the tree with the subtree at a dotted path replaced."""
    name, _, rest = path.partition(".")
    return {**tree, name: put(tree.get(name, {}), rest, value) if rest else value}
