"""The adapter over a whole decoder: which layers it touches, its two trained trees, and the merge.

Trees are stacked over layers like the base: direction['layers']['self_attn']['q_proj'] = {'A': (L, r, I), 'B': (L, O, r)},
magnitude['layers']['self_attn']['q_proj'] = {'m': (L, O)}; a method without magnitude has the empty tree {}.
"""

import zlib
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bidora_jax.errors import InputError, did_you_mean
from bidora_jax.kernels import dora, quant
from bidora_jax.kernels.products import wide
from bidora_jax.models.settings import LINEARS, AdapterConfig

if TYPE_CHECKING:
    from bidora_jax.models.decoder import DecoderConfig

ATTENTION, MLP = LINEARS[:4], LINEARS[4:]
PATHS = tuple(f"self_attn.{name}" for name in ATTENTION) + tuple(f"mlp.{name}" for name in MLP)


@dataclass(frozen=True)
class Adapter:
    """What a layer has to know of its adapter."""

    rank: int
    scale: float
    targets: tuple[str, ...]
    """Paths inside a layer, such as 'self_attn.q_proj'."""
    magnitude: bool
    dropout: float = 0.0
    constant_norm: bool = False


def resolve(settings: AdapterConfig, config: "DecoderConfig") -> Adapter:
    """The adapter that the settings mean on this model. Raises InputError for settings that can't be meant."""
    if settings.rank < 1:
        raise InputError(f"adapter.rank must be at least 1, found {settings.rank}; ranks of 4 to 64 are usual")
    smallest = min(min(shape) for shape in linear_shapes(config).values())
    if settings.rank > smallest:
        raise InputError(
            f"adapter.rank is {settings.rank}, but the smallest linear layer of this model has a side of {smallest}; "
            f"choose a rank of at most {smallest}"
        )
    if not 0 <= settings.dropout < 1:
        raise InputError(f"adapter.dropout must be in [0, 1), found {settings.dropout}")
    if settings.alpha <= 0:
        raise InputError(f"adapter.alpha must be positive, found {settings.alpha}; it is often once or twice the rank")
    if settings.norm != "auto" and settings.method == "lora":
        raise InputError(
            "adapter.norm is set, but adapter.method lora has no norm; leave it at auto or choose dora or bidora"
        )
    constant = settings.norm == "constant" or (settings.norm == "auto" and settings.method == "dora")
    return Adapter(
        rank=settings.rank,
        scale=settings.alpha / (settings.rank**0.5 if settings.rslora else settings.rank),
        targets=match_targets(settings.target_modules),
        magnitude=settings.method != "lora",
        dropout=settings.dropout,
        constant_norm=constant,
    )


def match_targets(names: tuple[str, ...]) -> tuple[str, ...]:
    """Paths of the named linear layers in layer order. A name that matches nothing is an InputError."""
    if tuple(names) == ("all-linear",):
        return PATHS
    unknown = [name for name in names if name not in LINEARS]
    if unknown or not names:
        found = ", ".join(f"{name!r}{did_you_mean(name, LINEARS)}" for name in unknown) or "none at all"
        raise InputError(
            f"adapter.target_modules: no linear layer of this model matches {found}; "
            f"expected some of {', '.join(LINEARS)}, or all-linear"
        )
    return tuple(path for path in PATHS if path.split(".")[1] in names)


def linear_shapes(config: "DecoderConfig") -> dict[str, tuple[int, int]]:
    """(O, I) of every linear layer, by its path inside a decoder layer."""
    d, f = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return dict(zip(PATHS, ((q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f)), strict=True))


def prepare_base(base: PyTree, adapter: Adapter) -> PyTree:
    """The base with 'norm_sq' (L, O) beside each adapted weight, the constant term of the factored norm."""
    if not adapter.magnitude:
        return base
    for path in adapter.targets:
        leaf = get(base["layers"], path)
        if "norm_sq" not in leaf:
            base = {**base, "layers": put(base["layers"], path, {**leaf, "norm_sq": _square_norms(leaf["weight"])})}
    return base


def init(adapter: Adapter, base: PyTree, key: jax.Array) -> tuple[PyTree, PyTree]:
    """A direction and a magnitude that leave the prepared base unchanged: A uniform in ±1/√I, B zero, m the row norms.

    The key of a layer is folded from its path, so that adding a target never moves the others' seeds.
    """
    direction, magnitude = {}, {}
    for path in adapter.targets:
        leaf = get(base["layers"], path)
        layers, out_features, in_features = leaf["weight"].shape
        dtype = wide(leaf["weight"].dtype)
        path_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        bound = in_features**-0.5
        a = jax.random.uniform(path_key, (layers, adapter.rank, in_features), dtype, -bound, bound)
        direction = put(direction, path, {"A": a, "B": jnp.zeros((layers, out_features, adapter.rank), dtype)})
        if adapter.magnitude:
            magnitude = put(magnitude, path, {"m": jnp.sqrt(leaf["norm_sq"])})
    return {"layers": direction}, {"layers": magnitude} if adapter.magnitude else {}


def merge(adapter: Adapter, base: PyTree, direction: PyTree, magnitude: PyTree, dtype=None) -> PyTree:
    """The base with every adapted weight replaced by W', summed in float32 and rounded once to `dtype` (the base's own).

    Quantised weights without an adapter are left as they are.
    """
    layers = base["layers"]
    for path in adapter.targets:
        leaf = get(layers, path)
        factors = get(direction["layers"], path)
        m = get(magnitude["layers"], path)["m"] if adapter.magnitude else None
        to = jnp.dtype(dtype or leaf["weight"].dtype)
        merged = _merge_stack(leaf["weight"], factors["A"], factors["B"], m, adapter.scale, to)
        layers = put(layers, path, {name: value for name, value in leaf.items() if name == "bias"} | {"weight": merged})
    return {**base, "layers": layers}


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


@partial(jax.jit, static_argnames=("scale", "dtype"))
def _merge_stack(weight, a, b, m, scale: float, dtype):
    # One layer at a time: a whole stack in float32 would be twice a bf16 model's largest leaf.
    def one(w0, a, b, m):
        return dora.merge(quant.dense(w0), dora.Direction(a, b), m, scale=scale).astype(dtype)

    return quant.over_layers(one, weight, a, b, m)


@partial(jax.jit, static_argnames="dtype")
def _dense_stack(weight, dtype):
    return quant.over_layers(lambda w0: quant.dense(w0).astype(dtype), weight)
