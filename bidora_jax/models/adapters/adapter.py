"""The adapter over a whole decoder: which layers it touches, its two trained trees, and the merge.

Trees are stacked over layers like the base: direction['layers']['self_attn']['q_proj'] = {'A': (L, r, I), 'B': (L, O, r)},
magnitude['layers']['self_attn']['q_proj'] = {'m': (L, O)}; a method without magnitude has the empty tree {}. A module that is
trained whole (modules_to_save) stands in the direction under its name: direction['lm_head'] = {'weight': (V, D)}, in float32.

Layers may differ in rank and scale, and a layer may have none. They are stacked with the largest rank, and what a layer does
not use is zero: rows of A, columns of B, all of m where there is no adapter. Their gradients are exactly zero (∂A = BᵀG, and
∂B = G·Aᵀ), so are the moments and the decay of zero, and they stay zero in every optimiser. Where the scale differs it is
data, 'scale' (L,) beside the weight; scale 0 says that a layer is the frozen one, whose gain is 1 whatever m is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bidora_jax.errors import InputError
from bidora_jax.kernels import dora, lora_init, quantized
from bidora_jax.models.adapters import targets
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.adapters.targets import Site
from bidora_jax.models.architectures.decoder import linear_shapes

if TYPE_CHECKING:
    from bidora_jax.models.architectures.decoder import DecoderConfig


@dataclass(frozen=True)
class LayerAdapter:
    """What one linear layer has to know of its adapter."""

    rank: int
    scale: float | None
    """None: it is in the base beside the weight."""
    magnitude: bool
    dropout: float
    constant_norm: bool
    starts_nonzero: bool
    """The base holds the start of the factors, and what counts is the change since then."""


@dataclass(frozen=True)
class Adapter:
    """What is adapted, and how."""

    sites: tuple[Site, ...]
    magnitude: bool
    dropout: float = 0.0
    constant_norm: bool = False
    init: str = "kaiming"
    """See kernels/lora_init.py."""
    whole_modules: tuple[str, ...] = ()
    """Modules outside the layers that are trained whole."""

    @property
    def starts_nonzero(self) -> bool:
        """Whether the factors start away from zero, so that their start is taken off."""
        return self.init not in ("kaiming", "gaussian")

    @property
    def targets(self) -> tuple[str, ...]:
        """Paths inside a layer, such as 'self_attn.q_proj'."""
        return tuple(site.path for site in self.sites)

    def at(self, path: str) -> LayerAdapter | None:
        """The part of the linear layer of this path; None where no layer of it is adapted."""
        found = [
            LayerAdapter(site.rank, site.scale, self.magnitude, self.dropout, self.constant_norm, self.starts_nonzero)
            for site in self.sites
            if site.path == path
        ]
        return found[0] if found else None


def resolve(settings: AdapterConfig, config: "DecoderConfig", *, strict: bool = True) -> Adapter:
    """The adapter that the settings mean on this model. Raises InputError for settings that can't be meant.

    Without `strict`, for files of other programs, what is excluded or has a rank of its own need not be there.
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
        sites=targets.sites(settings, linear_shapes(config), config.num_layers, strict=strict),
        magnitude=settings.method != "lora",
        dropout=settings.dropout,
        constant_norm=constant,
        init=settings.init,
        whole_modules=targets.whole_modules(settings),
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


def trainable(adapter: Adapter, config: "DecoderConfig") -> dict[str, int]:
    """Trained parameters by group, as PEFT counts them: what fills a stack up is not counted."""
    shapes = linear_shapes(config)
    direction = sum(sum(site.ranks) * sum(shapes[site.path]) for site in adapter.sites)
    magnitude = sum(len(site.layers) * shapes[site.path][0] for site in adapter.sites)
    groups = {"direction": direction} | ({"magnitude": magnitude} if adapter.magnitude else {})
    return groups | dict.fromkeys(adapter.whole_modules, config.vocab_size * config.hidden_size)


def with_saved(base: PyTree, direction: PyTree) -> PyTree:
    """The base with what is trained whole in the place of what is frozen. Tied embeddings come apart."""
    whole = {name: direction[name] for name in targets.WHOLE if name in direction}
    return {**base, "lm_head": base.get("lm_head", base["embed_tokens"]), **whole} if whole else base


def update_factors(adapter: Adapter, site: Site, base: PyTree, direction: PyTree) -> dora.Direction:
    """The stacked factors of what is added to a site's weight, a start that is taken off included."""
    factors, leaf = (get(tree["layers"], site.path) for tree in (direction, base))
    pair = dora.Direction(factors["A"], factors["B"])
    return lora_init.change_since(pair, dora.Direction(leaf["A0"], leaf["B0"])) if adapter.starts_nonzero else pair


def over_layers(function: Callable[..., Any], site: Site, weight: Any, pair: dora.Direction, *stacks: PyTree) -> Any:
    """`lax.map` of function(weight, direction, scale, *parts) over the layers of a site; a scale is a float or a scalar."""
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
