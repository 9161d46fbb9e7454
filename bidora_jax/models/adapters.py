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
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bidora_jax.errors import InputError
from bidora_jax.kernels import dora, lowrank, quant
from bidora_jax.kernels.products import wide
from bidora_jax.models import targets
from bidora_jax.models.settings import LINEARS, AdapterConfig
from bidora_jax.models.targets import Site

if TYPE_CHECKING:
    from bidora_jax.models.decoder import DecoderConfig

ATTENTION, MLP = LINEARS[:4], LINEARS[4:]
PATHS = tuple(f"self_attn.{name}" for name in ATTENTION) + tuple(f"mlp.{name}" for name in MLP)


@dataclass(frozen=True)
class Adapted:
    """What one linear layer has to know of its adapter."""

    rank: int
    scale: float | None
    """None: it is in the base beside the weight."""
    magnitude: bool
    dropout: float
    constant_norm: bool
    subtracts: bool
    """The base holds the start of the factors, and what counts is the change since then."""


@dataclass(frozen=True)
class Adapter:
    """What is adapted, and how."""

    sites: tuple[Site, ...]
    magnitude: bool
    dropout: float = 0.0
    constant_norm: bool = False
    init: str = "kaiming"
    """See kernels/lowrank.py."""
    saved: tuple[str, ...] = ()
    """Modules outside the layers that are trained whole."""

    @property
    def subtracts(self) -> bool:
        """Whether the factors start away from zero, so that their start is taken off."""
        return self.init not in ("kaiming", "gaussian")

    @property
    def targets(self) -> tuple[str, ...]:
        """Paths inside a layer, such as 'self_attn.q_proj'."""
        return tuple(site.path for site in self.sites)

    def at(self, path: str) -> Adapted | None:
        """The part of the linear layer of this path; None where no layer of it is adapted."""
        found = [
            Adapted(site.rank, site.scale, self.magnitude, self.dropout, self.constant_norm, self.subtracts)
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
        saved=targets.saved(settings),
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


def linear_shapes(config: "DecoderConfig") -> dict[str, tuple[int, int]]:
    """(O, I) of every linear layer, by its path inside a decoder layer."""
    d, f = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return dict(zip(PATHS, ((q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f)), strict=True))


def prepare_base(base: PyTree, adapter: Adapter) -> PyTree:
    """The base with what this adapter keeps beside a weight: 'norm_sq' (L, O), the constant term of the factored norm,
    'scale' (L,) where it differs between layers, and 'A0' and 'B0' where the factors start away from zero.

    A base is prepared for one adapter: what depends on the weight is not made a second time.
    """
    for site in adapter.sites:
        leaf = get(base["layers"], site.path)
        beside = {}
        if adapter.magnitude and "norm_sq" not in leaf:
            beside["norm_sq"] = _square_norms(leaf["weight"])
        if site.scale is None:
            beside["scale"] = jnp.asarray(site.scales, wide(leaf["weight"].dtype))
        if adapter.subtracts and "A0" not in leaf:
            beside["A0"], beside["B0"] = _starts(leaf["weight"], site, adapter.init)
        if beside:
            base = {**base, "layers": put(base["layers"], site.path, {**leaf, **beside})}
    return base


def init(adapter: Adapter, base: PyTree, key: jax.Array) -> tuple[PyTree, PyTree]:
    """A direction and a magnitude that leave the prepared base unchanged: A and B as kernels/lowrank.py says, m the row norms.

    The key of a layer is folded from its path, so that adding a target never moves the others' seeds.
    """
    direction, magnitude = {}, {}
    for site in adapter.sites:
        leaf = get(base["layers"], site.path)
        if adapter.subtracts:  # copies: a training step may take over what it is given
            factors = {"A": jnp.copy(leaf["A0"]), "B": jnp.copy(leaf["B0"])}
        else:
            factors = _zero_start(
                adapter, site, leaf["weight"], jax.random.fold_in(key, zlib.crc32(site.path.encode()))
            )
        direction = put(direction, site.path, factors)
        if adapter.magnitude:
            magnitude = put(magnitude, site.path, {"m": _used_layers(site, jnp.sqrt(leaf["norm_sq"]))})
    whole = {name: {"weight": _whole(base, name)} for name in adapter.saved}
    return {"layers": direction} | whole, {"layers": magnitude} if adapter.magnitude else {}


def _whole(base: PyTree, name: str) -> jax.Array:
    """A float32 copy of an embedding; the input one is the output one where there is no other."""
    weight = quant.dense(base[name if name in base else "embed_tokens"]["weight"])
    return jnp.array(weight, wide(weight.dtype))


def _zero_start(adapter: Adapter, site: Site, weight, key: jax.Array) -> PyTree:
    layers, out_features, in_features = weight.shape
    dtype, shape = wide(weight.dtype), (layers, site.rank, in_features)
    if adapter.init == "gaussian":
        a = jax.random.normal(key, shape, dtype) / np.maximum(np.array(site.ranks), 1).astype(dtype)[:, None, None]
    else:
        bound = in_features**-0.5
        a = jax.random.uniform(key, shape, dtype, -bound, bound)
    return {"A": _used_rows(site, a), "B": jnp.zeros((layers, out_features, site.rank), dtype)}


def _used_rows(site: Site, a: jax.Array) -> jax.Array:
    """A (L, r, I) with zeros beyond the rank of each layer."""
    if len(set(site.ranks)) == 1:
        return a
    used = np.arange(site.rank) < np.array(site.ranks)[:, None]
    return jnp.where(used[..., None], a, 0.0)


def _used_layers(site: Site, m: jax.Array) -> jax.Array:
    """m (L, O) with zeros where a layer is not adapted."""
    return m if all(site.ranks) else jnp.where(np.array(site.ranks)[:, None] > 0, m, 0.0)


def trainable(adapter: Adapter, config: "DecoderConfig") -> dict[str, int]:
    """Trained parameters by group, as PEFT counts them: what fills a stack up is not counted."""
    shapes = linear_shapes(config)
    direction = sum(sum(site.ranks) * sum(shapes[site.path]) for site in adapter.sites)
    magnitude = sum(len(site.layers) * shapes[site.path][0] for site in adapter.sites)
    groups = {"direction": direction} | ({"magnitude": magnitude} if adapter.magnitude else {})
    return groups | dict.fromkeys(adapter.saved, config.vocab_size * config.hidden_size)


def merge(adapter: Adapter, base: PyTree, direction: PyTree, magnitude: PyTree, dtype=None) -> PyTree:
    """The base with every adapted weight replaced by W', summed in float32 and rounded once to `dtype` (the base's own).

    Quantised weights without an adapter are left as they are.
    """
    layers = base["layers"]
    for site in adapter.sites:
        leaf = get(layers, site.path)
        m = get(magnitude["layers"], site.path)["m"] if adapter.magnitude else None
        to = jnp.dtype(dtype or leaf["weight"].dtype)
        merged = _merge_stack(leaf["weight"], change(adapter, site, base, direction), m, site, to)
        kept = {name: value for name, value in leaf.items() if name == "bias"}
        layers = put(layers, site.path, kept | {"weight": merged})
    to = jnp.dtype(dtype or base["norm"]["weight"].dtype)
    rounded = {name: {"weight": direction[name]["weight"].astype(to)} for name in adapter.saved}
    return {**with_saved(base, rounded), "layers": layers}


def with_saved(base: PyTree, direction: PyTree) -> PyTree:
    """The base with what is trained whole in the place of what is frozen. Tied embeddings come apart."""
    whole = {name: direction[name] for name in targets.WHOLE if name in direction}
    return {**base, "lm_head": base.get("lm_head", base["embed_tokens"]), **whole} if whole else base


def placed(adapter: Adapter, base: PyTree, direction: PyTree) -> tuple[PyTree, Adapter, PyTree]:
    """The base, the adapter and the direction once what is trained whole is in the base, and only layers are adapted."""
    layers = {"layers": direction["layers"]}
    return with_saved(base, direction), replace(adapter, saved=()), layers


def change(adapter: Adapter, site: Site, base: PyTree, direction: PyTree) -> dora.Direction:
    """The stacked factors of what is added to a site's weight, a start that is taken off included."""
    factors, leaf = (get(tree["layers"], site.path) for tree in (direction, base))
    pair = dora.Direction(factors["A"], factors["B"])
    return lowrank.since(pair, dora.Direction(leaf["A0"], leaf["B0"])) if adapter.subtracts else pair


def over_layers(function: Callable[..., Any], site: Site, weight: Any, pair: dora.Direction, *stacks: PyTree) -> Any:
    """`lax.map` of function(weight, direction, scale, *parts) over the layers of a site; a scale is a float or a scalar."""
    if site.scale is not None:
        scale = site.scale
        return quant.over_layers(lambda w, d, *parts: function(w, d, scale, *parts), weight, pair, *stacks)
    scales = jnp.asarray(site.scales, pair.A.dtype)
    return quant.over_layers(function, weight, pair, scales, *stacks)


def merged_layer(site: Site, w0: jax.Array, pair: dora.Direction, scale: dora.Scale, m: jax.Array | None) -> jax.Array:
    """W' (O, I) of one layer of a site, in float32; W0 where the layer is not adapted."""
    found = dora.merge(w0, pair, m, scale=scale)
    return found if site.scale is not None else jnp.where(scale == 0, w0, found)


def dequantise(base: PyTree, dtype=None) -> PyTree:
    """The base with every quantised weight dense, in `dtype` or its own, one layer at a time."""

    def dense(weight):
        if not quant.is_quantised(weight):
            return weight
        to = jnp.dtype(dtype or weight.dtype)
        return _dense_stack(weight, to) if len(weight.shape) == 3 else quant.dense(weight).astype(to)

    return jax.tree.map(dense, base, is_leaf=quant.is_quantised)


def count(tree: PyTree) -> int:
    """Number of parameters."""
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(tree, is_leaf=quant.is_packed))


def get(tree: PyTree, path: str) -> PyTree:
    """The subtree at a dotted path."""
    for name in path.split("."):
        tree = tree[name]
    return tree


def put(tree: PyTree, path: str, value: PyTree) -> PyTree:
    """A copy of the tree with the subtree at a dotted path replaced."""
    name, _, rest = path.partition(".")
    return {**tree, name: put(tree.get(name, {}), rest, value) if rest else value}


@jax.jit
def _square_norms(weight):
    return quant.over_layers(lambda w0: dora.square_norm(quant.dense(w0)), weight)


@partial(jax.jit, static_argnames=("site", "init"))
def _starts(weight, site: Site, init: str) -> tuple[jax.Array, jax.Array]:
    """A0 and B0 of every layer, zero beyond its rank."""
    path_key = jax.random.fold_in(jax.random.key(0), zlib.crc32(site.path.encode()))  # of a subspace, not of a result
    safe = jnp.asarray([scale or 1.0 for scale in site.scales], wide(weight.dtype))

    def one(w0, number, scale):
        w0 = quant.dense(w0)
        if init == "olora":
            return lowrank.olora(w0, rank=site.rank)
        if init == "pissa":
            return lowrank.pissa(w0, rank=site.rank, scale=scale)
        key, iterations = jax.random.fold_in(path_key, number), int(init.removeprefix("pissa_niter_"))
        return lowrank.randomised_pissa(key, w0, rank=site.rank, scale=scale, iterations=iterations)

    a, b = quant.over_layers(one, weight, jnp.arange(len(site.ranks)), safe)
    return _used_rows(site, a), _used_rows(site, b.swapaxes(1, 2)).swapaxes(1, 2)


@partial(jax.jit, static_argnames=("site", "dtype"))
def _merge_stack(weight, pair, m, site: Site, dtype):
    # One layer at a time: a whole stack in float32 would be twice a bf16 model's largest leaf.
    def one(w0, direction, scale, m):
        return merged_layer(site, quant.dense(w0), direction, scale, m).astype(dtype)

    return over_layers(one, site, weight, pair, m)


@partial(jax.jit, static_argnames="dtype")
def _dense_stack(weight, dtype):
    return quant.over_layers(lambda w0: quant.dense(w0).astype(dtype), weight)
