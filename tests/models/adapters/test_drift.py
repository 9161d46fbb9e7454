"""Magnitude and direction changes against loops over rows in float64, and their laws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from drift_by_hand import rows
from forms import quantised
from random_adapters import prepared

from bidora_jax.kernels import dora, quantized
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.drift import drift
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.adapters.targets import Site

TARGETS = ("q_proj", "down_proj")


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 30.0])
def test_drift_is_the_plain_formula_for_turns_small_and_large(size):
    random = np.random.default_rng(3)
    w0, a, b = (random.normal(size=shape).astype(np.float32) for shape in ((7, 13), (3, 13), (7, 3)))
    b *= np.float32(size)
    b[2] = 0.0
    pair = dora.Direction(jnp.asarray(a), jnp.asarray(b))
    found = dora.drift(jnp.asarray(w0), dora.square_norm(jnp.asarray(w0)), pair, scale=1.7)
    expected = rows(w0, a, b, 1.7)
    # Relative to each value, however small: the plain formula in float32 would give 0 for turns of 1e-8.
    np.testing.assert_allclose(np.asarray(found[0], np.float64), expected[0], rtol=2e-4, atol=0)
    np.testing.assert_allclose(np.asarray(found[1], np.float64), expected[1], rtol=2e-4, atol=1e-18)
    assert found[0][2] == found[1][2] == 0


def test_a_row_that_turns_round_has_turned_by_two_and_a_zero_row_not_at_all():
    w0 = jnp.asarray([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [1.0, 2.0, 2.0]])
    pair = dora.Direction(jnp.asarray([[1.0, 2.0, 2.0]]), jnp.asarray([[-3.0], [1.0], [-1.0]]))
    growth, turn = dora.drift(w0, dora.square_norm(w0), pair, scale=1.0)
    np.testing.assert_allclose(growth, [3, 3, -3], rtol=1e-6)
    np.testing.assert_allclose(turn, [2, 0, 0], rtol=1e-6)


def by_hand(adapter, base, direction, magnitude):
    """(ΔM, ΔD) of each (module, layer), one layer after the other in float64."""
    found = {}
    for site in adapter.sites:
        leaf, pair = adapters.get(base["layers"], site.path), adapters.get(direction["layers"], site.path)
        for layer in site.layers:
            w0 = quantized.dense(jax.tree.map(lambda stack, layer=layer: stack[layer], leaf["weight"]))
            a, b = np.asarray(pair["A"][layer], np.float64), np.asarray(pair["B"][layer], np.float64)
            if adapter.starts_nonzero:
                a = np.concatenate([a, leaf["A0"][layer]])
                b = np.concatenate([b, -np.asarray(leaf["B0"][layer])], axis=1)
            growth, turn = rows(w0, a, b, site.scales[layer])
            if adapter.magnitude:
                m = np.asarray(adapters.get(magnitude["layers"], site.path)["m"][layer], np.float64)
                growth = m - np.linalg.norm(np.asarray(w0, np.float64), axis=1)
            found[site.path, layer] = np.abs(growth).mean(), turn.mean()
    return found


SETTINGS = {
    "lora": AdapterConfig("lora", rank=3, target_modules=TARGETS),
    "bidora": AdapterConfig("bidora", rank=3, target_modules=TARGETS),
    "ranks": AdapterConfig("dora", rank=3, target_modules=TARGETS, rank_pattern=(("0.self_attn.q_proj", 5),
                           ("1.mlp.down_proj", 0))),
    "pissa": AdapterConfig("dora", rank=3, target_modules=TARGETS, init="pissa"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "form"), [("lora", "none"), ("bidora", "none"), ("ranks", "none"), ("pissa", "none"),
                                            ("lora", "int8"), ("bidora", "nf4"), ("bidora", "int8")])  # fmt: skip
def test_changes_are_those_of_a_loop_in_float64(kind, form):
    base = tiny.random_base()
    if form != "none":
        base = quantised(base, form)
    whole = prepared(SETTINGS[kind], base)
    expected, found = by_hand(*whole), drift(*whole)
    assert [(change.module, change.layer) for change in found] == list(expected)
    for change in found:
        magnitude, turn = expected[change.module, change.layer]
        assert change.magnitude == pytest.approx(magnitude, rel=2e-5)  # float32 sums of some tens of rows
        assert change.direction == pytest.approx(turn, rel=1e-4)
        assert change.magnitude > 0.001


def test_an_untrained_adapter_has_changed_nothing():
    adapter = adapters.resolve(dataclasses.replace(SETTINGS["bidora"], init="olora"), tiny.CONFIG)
    base = initial.prepare_base(tiny.random_base(dtype=jnp.bfloat16), adapter)
    found = drift(adapter, base, *initial.init(adapter, base, jax.random.key(0)))
    assert all(change.magnitude == change.relative == 0 and change.direction < 1e-9 for change in found)


def test_a_magnitude_twice_the_row_norms_is_a_relative_change_of_one():
    adapter, base, direction, _ = prepared(SETTINGS["bidora"], tiny.random_base())
    _, magnitude = initial.init(adapter, base, jax.random.key(0))
    doubled = jax.tree.map(lambda m: 2 * m, magnitude)
    assert [change.relative for change in drift(adapter, base, direction, doubled)] == pytest.approx([1.0] * 4)


def test_a_layer_without_adapter_is_not_listed():
    adapter = dataclasses.replace(
        adapters.resolve(SETTINGS["lora"], tiny.CONFIG), sites=(Site("self_attn.q_proj", (0, 3), (0.0, 2.0)),)
    )
    base = initial.prepare_base(tiny.random_base(), adapter)
    found = drift(adapter, base, *initial.init(adapter, base, jax.random.key(0)))
    assert [(change.module, change.layer) for change in found] == [("self_attn.q_proj", 1)]
