"""The start of an adapter: the arrays that the base holds beside each weight, and the first direction and magnitude."""

import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bidora_jax.kernels import dora, lora_init, quantized
from bidora_jax.kernels.precision import wide
from bidora_jax.models.adapters.adapter import Adapter, get, put
from bidora_jax.models.adapters.targets import Site
from bidora_jax.models.architectures.heads import HEAD_TREE, TrainedHead
from bidora_jax.models.base import embedding_of


def prepare_base(base: PyTree, adapter: Adapter) -> PyTree:
    """The base with the arrays that this adapter needs beside a weight: 'norm_sq' (L, O), the constant term of the factored
    norm; 'scale' (L,) where the scale differs between layers; 'A0' and 'B0' where the factors start away from zero.

    A base is prepared for one adapter: norm_sq, A0 and B0 that are already there are kept.
    """
    for site in adapter.sites:
        leaf = get(base["layers"], site.path)
        beside = {}
        if adapter.magnitude and "norm_sq" not in leaf:
            beside["norm_sq"] = _square_norms(leaf["weight"])
        if site.scale is None:
            beside["scale"] = jnp.asarray(site.scales, wide(leaf["weight"].dtype))
        if adapter.starts_nonzero and "A0" not in leaf:
            beside["A0"], beside["B0"] = _starts(leaf["weight"], site, adapter.init)
        if beside:
            base = {**base, "layers": put(base["layers"], site.path, {**leaf, **beside})}
    return base


def init(adapter: Adapter, base: PyTree, key: jax.Array) -> tuple[PyTree, PyTree]:
    """A direction and a magnitude that leave the prepared base unchanged: A and B as kernels/lora_init.py says, m the row norms.

    The key of a layer is folded from its path, so that adding a target never moves the others' seeds.
    """
    direction, magnitude = {}, {}
    for site in adapter.sites:
        leaf = get(base["layers"], site.path)
        if adapter.starts_nonzero:  # copies: a training step may take over what it is given
            factors = {"A": jnp.copy(leaf["A0"]), "B": jnp.copy(leaf["B0"])}
        else:
            factors = _zero_start(
                adapter, site, leaf["weight"], jax.random.fold_in(key, zlib.crc32(site.path.encode()))
            )
        direction = put(direction, site.path, factors)
        if adapter.magnitude:
            magnitude = put(magnitude, site.path, {"m": _used_layers(site, jnp.sqrt(leaf["norm_sq"]))})
    whole = {name: {"weight": _whole(base, name)} for name in adapter.whole_modules}
    if adapter.head is not None:
        whole[HEAD_TREE] = _head(adapter.head, base, key)
    return {"layers": direction} | whole, {"layers": magnitude} if adapter.magnitude else {}


def _whole(base: PyTree, name: str) -> jax.Array:
    """A float32 copy of an embedding. Where the two are tied, the output embedding is a copy of the input embedding."""
    weight = quantized.dense(base[name]["weight"] if name in base else embedding_of(base))
    return jnp.array(weight, wide(weight.dtype))


def _head(head: TrainedHead, base: PyTree, key: jax.Array) -> PyTree:
    """The trained parts of a head: those of the model's folder as they are, the others as transformers draws them: weights normal,
    biases 0, a norm's weight 1."""
    held, parts = base.get(HEAD_TREE, {}), {}
    for part in head.parts:
        if part.name in held:
            parts[part.name] = jax.tree.map(jnp.copy, held[part.name])  # a training step may take over what it is given
            continue
        own = jax.random.fold_in(key, zlib.crc32(part.module.encode()))
        drawn = (
            jnp.ones(part.shape) if part.name == "norm" else jax.random.normal(own, part.shape) * head.initializer_range
        )
        zeros = {"bias": jnp.zeros(part.tensors["bias"])} if part.bias else {}
        parts[part.name] = {"weight": drawn.astype(jnp.float32)} | {k: v.astype(jnp.float32) for k, v in zeros.items()}
    return parts


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


@jax.jit
def _square_norms(weight):
    return quantized.over_layers(lambda w0: dora.square_norm(quantized.dense(w0)), weight)


@partial(jax.jit, static_argnames=("site", "init"))
def _starts(weight, site: Site, init: str) -> tuple[jax.Array, jax.Array]:
    """A0 and B0 of every layer, zero beyond its rank."""
    # The key draws the subspace of the randomised SVD, which hardly changes the result: it needs no seed of the run.
    path_key = jax.random.fold_in(jax.random.key(0), zlib.crc32(site.path.encode()))
    safe = jnp.asarray([scale or 1.0 for scale in site.scales], wide(weight.dtype))

    def one(w0, number, scale):
        w0 = quantized.dense(w0)
        if init == "olora":
            return lora_init.olora(w0, rank=site.rank)
        if init == "pissa":
            return lora_init.pissa(w0, rank=site.rank, scale=scale)
        key, iterations = jax.random.fold_in(path_key, number), int(init.removeprefix("pissa_niter_"))
        return lora_init.randomised_pissa(key, w0, rank=site.rank, scale=scale, iterations=iterations)

    a, b = quantized.over_layers(one, weight, jnp.arange(len(site.ranks)), safe)
    return _used_rows(site, a), _used_rows(site, b.swapaxes(1, 2)).swapaxes(1, 2)
