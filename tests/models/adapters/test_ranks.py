"""Layers of different rank under one scan: the same training as a Python loop over layers with factors of their own size.

Training is training/step.py and training/bilevel.py.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bilevel_problem import MODEL, batch
from forms import quantised
from tiny import CONFIG, noisy, random_base

from bidora_jax.kernels import losses, norms, quantized
from bidora_jax.models import decoder
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial, merging
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.adapters.targets import Site
from bidora_jax.models.base import head_of
from bidora_jax.models.decoder import DecoderLayer
from bidora_jax.training import objective, optim
from bidora_jax.training.bilevel import bilevel_step
from bidora_jax.training.settings import OptimizerConfig
from bidora_jax.training.state import init_state, init_train_state
from bidora_jax.training.step import train_step

DEEP = replace(CONFIG, num_layers=3)
RAGGED = {
    "rank": 3, "alpha": 7.0, "target_modules": ("q_proj", "down_proj", "up_proj"), "exclude_modules": ("layers.1.mlp.up_proj",),
    "rank_pattern": (("layers.1.self_attn.q_proj", 5), ("layers.2.self_attn.q_proj", 0), ("0.mlp.down_proj", 1)),
    "alpha_pattern": (("2.mlp.down_proj", 2.0),),
}  # fmt: skip
OPTIMIZERS = {
    "adamw": OptimizerConfig(learning_rate=0.02, weight_decay=0.1, clip=0.3),
    "sgd": OptimizerConfig(optimizer="sgd", learning_rate=0.3, weight_decay=0.1, clip=0.3),
    "adamw_8bit": OptimizerConfig(optimizer="adamw_8bit", learning_rate=0.02, weight_decay=0.1, clip=0.3, eps=1e-6),
}


def ragged(method, base=None, **settings):
    """(adapter, prepared base, direction, magnitude) of three layers that are adapted in different ways."""
    adapter = adapters.resolve(AdapterConfig(method=method, **(RAGGED | settings)), DEEP)
    base = initial.prepare_base(random_base(DEEP) if base is None else base, adapter)
    return adapter, base, *noisy(adapter, *initial.init(adapter, base, jax.random.key(0)))


def layer_adapter(adapter, layer):
    """The adapter of one layer, of the layer's own ranks."""
    sites = (Site(s.path, (s.ranks[layer],), (s.scales[layer],)) for s in adapter.sites if s.ranks[layer])
    return replace(adapter, sites=tuple(sites))


def own_size(adapter, direction, magnitude):
    """The trees as lists over layers, each leaf as large as its layer uses it."""
    out = []
    for layer in range(DEEP.num_layers):
        d, m = {}, {}
        for site in layer_adapter(adapter, layer).sites:
            factors = adapters.get(direction["layers"], site.path)
            cut = {"A": factors["A"][layer, : site.rank], "B": factors["B"][layer, :, : site.rank]}
            d = adapters.put(d, site.path, cut)
            if adapter.magnitude:
                m = adapters.put(m, site.path, {"m": adapters.get(magnitude["layers"], site.path)["m"][layer]})
        out.append((d, m))
    return [d for d, _ in out], [m for _, m in out]


def looped_loss(adapter):
    """The mean loss with a Python loop over layers."""

    def loss(directions, magnitudes, base, data, key):
        tokens, mask = data["tokens"][0], data["loss_mask"][0]
        x = base["embed_tokens"]["weight"][tokens]
        cos, sin = decoder.angles(DEEP, jnp.arange(tokens.shape[1]), x.dtype)
        for number, (d, m) in enumerate(zip(directions, magnitudes, strict=True)):
            layer = DecoderLayer(DEEP, layer_adapter(adapter, number))
            weights = jax.tree.map(lambda leaf, number=number: leaf[number], base["layers"])
            x = layer.apply({"base": weights, "direction": d, "magnitude": m}, x, cos, sin)[0]
        x = norms.rms_norm(x, base["norm"]["weight"], eps=DEEP.rms_norm_eps)
        flat, weight = x[:, :-1].reshape(-1, DEEP.hidden_size), mask[:, 1:].reshape(-1)
        total = losses.cross_entropy_sum(flat, head_of(base), tokens[:, 1:].reshape(-1), weight, chunk=64)
        return total / jnp.sum(weight)

    return loss


def assert_close(found, expected, start):
    """Every leaf within 1e-5, and moved by much more than that."""
    for a, b, c in zip(*map(jax.tree.leaves, (found, expected, start)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        assert np.abs(b - c).max() > 1e-3


def assert_nothing_fills_up(adapter, direction, magnitude):
    for site in adapter.sites:
        factors = adapters.get(direction["layers"], site.path)
        for layer, rank in enumerate(site.ranks):
            assert not np.asarray(factors["A"][layer, rank:]).any()
            assert not np.asarray(factors["B"][layer, :, rank:]).any()
            if adapter.magnitude and not rank:
                assert not np.asarray(adapters.get(magnitude["layers"], site.path)["m"][layer]).any()


@pytest.mark.parametrize(("method", "optimizer"), [("lora", "adamw"), ("dora", "sgd"), ("dora", "adamw")])
def test_training_is_that_of_a_loop_over_layers(method, optimizer):
    adapter, base, direction, magnitude = ragged(method)
    tx = optim.transformation(OPTIMIZERS[optimizer], 4)

    def trained(loss, params):
        def flat(params, base, data, key):
            return loss(*params, base, data, key)

        step = jax.jit(partial(train_step, loss=flat, tx=tx))
        state = init_train_state(params, tx, jax.random.key(1))
        for number in range(4):
            state, _ = step(state, base, batch(number, 1, np.float32))
        return state.params

    found = trained(objective.inner_loss(DEEP, adapter, MODEL), (direction, magnitude))
    start = own_size(adapter, direction, magnitude)
    expected = trained(looped_loss(adapter), start)
    assert_close(own_size(adapter, *found), expected, start)
    assert_nothing_fills_up(adapter, *found)


def test_bilevel_training_is_that_of_a_loop_over_layers():
    adapter, base, direction, magnitude = ragged("bidora")
    tx = optim.transformation(OPTIMIZERS["adamw"], 3)

    def trained(inner, outer, direction, magnitude):
        step = jax.jit(partial(bilevel_step, inner_loss=inner, outer_loss=outer, inner_tx=tx, outer_tx=tx))
        state = init_state(direction, magnitude, tx, tx, jax.random.key(1))
        for number in range(3):
            state, _ = step(state, base, batch(number, 1, np.float32), batch(9 + number, 1, np.float32))
        return state.direction, state.magnitude

    stacked = objective.inner_loss(DEEP, adapter, MODEL), objective.outer_loss(DEEP, adapter, MODEL)
    found = trained(*stacked, direction, magnitude)
    start = own_size(adapter, direction, magnitude)
    expected = trained(*[looped_loss(adapter)] * 2, *start)
    assert_close(own_size(adapter, *found), expected, start)
    assert_nothing_fills_up(adapter, *found)


@pytest.mark.parametrize(("optimizer", "gram"), [("adamw", 0.1), ("sgd", 0.0), ("adamw_8bit", 0.1)])
def test_what_fills_the_stacks_up_stays_zero(optimizer, gram):
    """Both levels decayed and clipped; the stack of B is large enough for moments in 8 bits."""
    large = (("layers.1.self_attn.q_proj", 24), ("layers.2.self_attn.q_proj", 0))
    adapter, base, direction, magnitude = ragged(
        "bidora", target_modules=("q_proj",), exclude_modules=(), rank_pattern=large, alpha_pattern=()
    )
    assert direction["layers"]["self_attn"]["q_proj"]["B"].size >= 4096
    tx = optim.transformation(OPTIMIZERS[optimizer], 3)
    inner = objective.inner_loss(DEEP, adapter, MODEL, gram_weight=gram)
    outer = objective.outer_loss(DEEP, adapter, MODEL)
    step = jax.jit(partial(bilevel_step, inner_loss=inner, outer_loss=outer, inner_tx=tx, outer_tx=tx))
    state = init_state(direction, magnitude, tx, tx, jax.random.key(1))
    for number in range(3):
        state, metrics = step(state, base, batch(number, 1, np.float32), batch(9 + number, 1, np.float32))
        assert all(map(jnp.isfinite, metrics.values()))
    assert_nothing_fills_up(adapter, state.direction, state.magnitude)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("form", [None, "nf4"])
def test_a_layer_that_is_not_adapted_is_exactly_the_frozen_one(method, form):
    base = random_base(DEEP) if form is None else quantised(random_base(DEEP), form)
    adapter, base, direction, magnitude = ragged(method, base)
    merged = merging.merge(adapter, base, direction, magnitude)["layers"]
    for site in adapter.sites:
        before, after = (adapters.get(tree, site.path)["weight"] for tree in (base["layers"], merged))
        before = quantized.over_layers(quantized.dense, before)
        for layer, rank in enumerate(site.ranks):
            assert bool(jnp.all(before[layer] == after[layer])) == (rank == 0)
    logits = partial(decoder.logits, DEEP, tokens=jnp.arange(22).reshape(2, 11) % 97)
    changed = jax.tree.map(lambda m: jnp.where(m == 0, 3.0, m), magnitude)  # a magnitude of no layer
    first, second = logits(adapter, base, direction, magnitude), logits(adapter, base, direction, changed)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, logits(None, {**base, "layers": merged}, {}, {}), rtol=1e-4, atol=1e-4)


def test_a_start_is_the_identity_whatever_the_ranks():
    adapter, base, _, _ = ragged("dora")
    direction, magnitude = initial.init(adapter, base, jax.random.key(0))
    assert_nothing_fills_up(adapter, direction, magnitude)
    tokens = jnp.arange(22).reshape(2, 11) % 97
    found, expected = (
        decoder.logits(DEEP, *rest, tokens) for rest in ((adapter, base, direction, magnitude), (None, base, {}, {}))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_gram_penalty_is_the_mean_over_adapted_layers():
    adapter, base, direction, _ = ragged("dora")
    each = []
    for site in adapter.sites:
        leaf, factors = (adapters.get(tree["layers"], site.path) for tree in (base, direction))
        for layer in site.layers:
            v = leaf["weight"][layer] + site.scales[layer] * factors["B"][layer] @ factors["A"][layer]
            each.append(losses.gram_penalty(v / jnp.linalg.norm(v, axis=1, keepdims=True)))
    assert len(each) == 7
    np.testing.assert_allclose(objective.mean_gram_penalty(adapter, base, direction), np.mean(each), rtol=1e-5)
