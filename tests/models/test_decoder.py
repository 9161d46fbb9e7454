"""models/decoder.py and the adapters over it: laws that hold whatever the weights are.

models/adapters/adapter.py, models/adapters/initial.py and models/adapters/merging.py make the adapters; the oracles
stand in models/formats/test_hf.py.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_adapters import adapted
from tiny import CONFIG, random_base

from bidora_jax.errors import InputError
from bidora_jax.kernels import norms
from bidora_jax.models import decoder
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial, merging
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.compute import Compute
from bidora_jax.tasks.language_modeling import token_loss_sum

TOKENS = jnp.asarray(np.random.default_rng(3).integers(CONFIG.vocab_size, size=(2, 11), dtype=np.int32))
MASK = jnp.asarray(np.random.default_rng(4).random((2, 11)) < 0.7, jnp.float32)
BATCH = {"tokens": TOKENS, "loss_mask": MASK}


@pytest.mark.parametrize("method", ["lora", "dora", "bidora"])
def test_a_fresh_adapter_changes_nothing(method):
    adapter = adapters.resolve(AdapterConfig(method=method, rank=3), CONFIG)
    base = initial.prepare_base(random_base(), adapter)
    direction, magnitude = initial.init(adapter, base, jax.random.key(0))
    found = decoder.logits(CONFIG, adapter, base, direction, magnitude, TOKENS)
    np.testing.assert_allclose(found, decoder.logits(CONFIG, None, base, {}, {}, TOKENS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "bidora"])
def test_merged_is_adapted(method):
    adapter, base, direction, magnitude = adapted(method, rslora=True, target_modules=("q_proj", "down_proj"))
    merged = merging.merge(adapter, base, direction, magnitude)
    found = decoder.logits(CONFIG, adapter, base, direction, magnitude, TOKENS)
    assert jax.tree.structure(merged) == jax.tree.structure(random_base())
    np.testing.assert_allclose(decoder.logits(CONFIG, None, merged, {}, {}, TOKENS), found, rtol=1e-4, atol=1e-4)
    assert np.abs(found - decoder.logits(CONFIG, None, base, {}, {}, TOKENS)).max() > 0.1


def test_padding_on_the_right_changes_nothing_on_the_left():
    base = random_base()
    padded = jnp.concatenate([TOKENS, jnp.full((2, 5), 7, jnp.int32)], axis=1)
    short, long = (decoder.logits(CONFIG, None, base, {}, {}, tokens) for tokens in (TOKENS, padded))
    np.testing.assert_allclose(long[:, :11], short, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("backend", "dtype"), [("gpu", jnp.bfloat16), ("cpu", jnp.float32)])
@pytest.mark.parametrize("method", ["lora", "bidora"])
def test_activations_are_kept_in_the_dtype_of_the_base_off_a_cpu(monkeypatch, backend, dtype, method):
    adapter, base, direction, magnitude = adapted(method, jnp.bfloat16)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)

    def loss(trained):
        return token_loss_sum(CONFIG, adapter, Compute(remat="dots"), base, trained, BATCH)[0]

    residuals = jax.tree.leaves(jax.eval_shape(lambda trained: jax.vjp(loss, trained)[1], (direction, magnitude)))
    kept = [leaf for leaf in residuals if leaf.shape[:3] == (CONFIG.num_layers, *TOKENS.shape)]
    # What goes from layer to layer, and the sum of each linear layer.
    assert [leaf.dtype for leaf in kept] == [jnp.dtype(dtype)] * 8


def test_scan_over_layers_is_the_loop():
    adapter, base, direction, magnitude = adapted()
    x = base["embed_tokens"]["weight"][TOKENS]
    cos, sin = decoder.angles(CONFIG, jnp.arange(11), x.dtype)
    layer = decoder.DecoderLayer(CONFIG, adapter)
    stacks = {"base": base["layers"], "direction": direction["layers"], "magnitude": magnitude["layers"]}
    for index in range(CONFIG.num_layers):
        x, _ = layer.apply(jax.tree.map(lambda leaf, index=index: leaf[index], stacks), x, cos, sin)
    x = norms.rms_norm(x, base["norm"]["weight"], eps=CONFIG.rms_norm_eps)
    found = decoder.hidden(CONFIG, adapter, Compute(), base, (direction, magnitude), BATCH)
    np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-5)


def test_a_constant_norm_changes_the_directions_gradient_and_not_the_magnitudes():
    adapter, base, direction, magnitude = adapted()

    def gradients(adapter):
        def loss(direction, magnitude):
            return token_loss_sum(CONFIG, adapter, Compute(), base, (direction, magnitude), BATCH)[0]

        return jax.grad(loss, (0, 1))(direction, magnitude)

    free, constant = gradients(adapter), gradients(replace(adapter, constant_norm=True))
    for a, b in zip(jax.tree.leaves(free[1]), jax.tree.leaves(constant[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(*map(jax.tree.leaves, (free[0], constant[0])), strict=True))


def test_dropout_is_a_function_of_the_key():
    adapter, base, direction, _ = adapted("lora", dropout=0.5)

    def loss(key):
        return float(token_loss_sum(CONFIG, adapter, Compute(), base, (direction, {}), BATCH, key)[0])

    first, again, other, none = loss(jax.random.key(1)), loss(jax.random.key(1)), loss(jax.random.key(2)), loss(None)
    assert first == again
    assert len({first, other, none}) == 3


def test_keys_come_from_paths():
    few = adapted(target_modules=("v_proj",))[0]
    many = adapters.resolve(AdapterConfig(rank=3), CONFIG)
    base = initial.prepare_base(random_base(), many)
    ones, others = (initial.init(a, base, jax.random.key(0))[0]["layers"] for a in (few, many))
    np.testing.assert_array_equal(ones["self_attn"]["v_proj"]["A"], others["self_attn"]["v_proj"]["A"])
    assert np.abs(others["self_attn"]["v_proj"]["A"] - others["self_attn"]["k_proj"]["A"]).max() > 0.01


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, ["adapter.rank", "at least 1", "0"]),
        ({"rank": 27}, ["adapter.rank", "27", "20"]),
        ({"dropout": 1.0}, ["adapter.dropout", "1.0"]),
        ({"target_modules": ("q_porj",)}, ["'q_porj'", "did you mean 'q_proj'"]),
        ({"target_modules": ()}, ["none at all", "all-linear"]),
        ({"method": "lora", "norm": "constant"}, ["adapter.norm", "lora"]),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, words):
    with pytest.raises(InputError) as refusal:
        adapters.resolve(AdapterConfig(**settings), CONFIG)
    assert all(word in str(refusal.value) for word in words)
