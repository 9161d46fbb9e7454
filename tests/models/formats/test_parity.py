"""The proof must hold for a right export, in every dtype, and fail for a wrong one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bidora_jax.kernels import quantized
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial, merging
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.formats import hf, parity, peft

DORA = AdapterConfig(method="dora", rank=5, alpha=7.0)


def _trained(folder, dtype="float32", settings=DORA):
    """A base and a random adapter on it: (adapter, prepared base, direction, magnitude)."""
    adapter = adapters.resolve(settings, tiny.CONFIG)
    base = initial.prepare_base(hf.load_base(folder, tiny.CONFIG, dtype), adapter)
    trained = initial.init(adapter, base, jax.random.key(0))
    random = np.random.default_rng(1)
    trained = jax.tree.map(lambda leaf: leaf + (0.1 * random.normal(size=leaf.shape)).astype(np.float32), trained)
    return adapter, base, *trained


@pytest.mark.parametrize("settings", [DORA, AdapterConfig(method="lora", rank=5, alpha=7.0)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_right_export_agrees(model_folder, tmp_path, dtype, settings):
    trained = _trained(model_folder, settings=settings)
    expected = parity.probe_logits(tiny.CONFIG, *trained)
    merged = merging.merge(*trained, dtype=jnp.dtype(dtype))
    hf.save_model(tmp_path / "out", model_folder, tiny.CONFIG, merged, dtype=dtype)
    found = parity.verify_saved(tmp_path / "out", expected)
    assert found.holds
    assert found.largest > 0 or dtype == "float32"
    assert found.scale == np.abs(expected).max()
    assert found.tolerance == parity.TOLERANCE[jnp.dtype(dtype)] * found.scale


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_export_that_lost_the_adapter_does_not(model_folder, tmp_path, dtype):
    trained = _trained(model_folder)
    expected = parity.probe_logits(tiny.CONFIG, *trained)
    hf.save_model(tmp_path / "out", model_folder, tiny.CONFIG, trained[1], dtype=dtype)
    assert not parity.verify_saved(tmp_path / "out", expected).holds


@pytest.mark.parametrize(("share", "holds"), [(0.0, False), (0.4, False), (0.6, True), (1.0, True)])
def test_an_export_must_hold_what_was_learned_however_little_it_is(model_folder, tmp_path, share, holds):
    """All of these are within what rounding to bfloat16 allows."""
    adapter, base, *trees = _trained(model_folder)
    fresh = initial.init(adapter, base, jax.random.key(0))
    little, part = (
        jax.tree.map(lambda a, b, by=by: a + by * (b - a), fresh, tuple(trees)) for by in (0.01, 0.01 * share)
    )
    expected = parity.probe_logits(tiny.CONFIG, adapter, base, *little)
    before = parity.before_training(tiny.CONFIG, base, little[0])
    merged = merging.merge(adapter, base, *part)
    hf.save_model(tmp_path / "out", model_folder, tiny.CONFIG, merged, dtype="float32")
    found = parity.verify_saved(tmp_path / "out", expected, before=before)
    assert found.largest < parity.TOLERANCE[jnp.dtype(jnp.bfloat16)] * found.scale
    assert found.kept == pytest.approx(share, abs=0.1)
    assert found._replace(tolerance=np.inf).holds is holds


def test_there_is_nothing_to_keep_of_an_adapter_that_changed_nothing(model_folder):
    adapter, base, *_ = _trained(model_folder)
    fresh = initial.init(adapter, base, jax.random.key(0))
    expected = parity.probe_logits(tiny.CONFIG, adapter, base, *fresh)
    before = parity.before_training(tiny.CONFIG, base, fresh[0])
    assert parity.compare(expected, expected, "float32", before).kept == 1


def test_one_transposed_or_scaled_matrix_shows(model_folder, tmp_path):
    trained = _trained(model_folder)
    expected = parity.probe_logits(tiny.CONFIG, *trained)
    merged = merging.merge(*trained)
    gate = merged["layers"]["mlp"]["gate_proj"]["weight"]
    merged["layers"]["mlp"]["gate_proj"] = {"weight": gate.at[1].multiply(1.01)}
    hf.save_model(tmp_path / "out", model_folder, tiny.CONFIG, merged, dtype="float32")
    assert not parity.verify_saved(tmp_path / "out", expected).holds


def test_not_a_number_never_agrees():
    assert not parity.Agreement(float("nan"), 1.0, 1.0).holds
    assert not parity.Agreement(float("nan"), float("nan"), float("nan")).holds


def test_an_adapter_folder_agrees_and_a_changed_one_does_not(model_folder, tmp_path):
    adapter, base, direction, magnitude = _trained(model_folder, "bfloat16")
    expected = parity.probe_logits(tiny.CONFIG, adapter, base, direction, magnitude)
    peft.save_adapter(tmp_path / "a", tiny.CONFIG, adapter, DORA, direction, magnitude, base_model_name=None)
    assert parity.verify_adapter(tmp_path / "a", tiny.CONFIG, base, expected).largest == 0
    wrong = jax.tree.map(lambda leaf: 1.001 * leaf, magnitude)
    peft.save_adapter(tmp_path / "b", tiny.CONFIG, adapter, DORA, direction, wrong, base_model_name=None)
    assert not parity.verify_adapter(tmp_path / "b", tiny.CONFIG, base, expected).holds


def test_the_probe_is_computed_in_float32_whatever_the_base(model_folder):
    adapter, base, direction, magnitude = _trained(model_folder, "bfloat16")
    plain = hf.load_base(model_folder, tiny.CONFIG, "bfloat16")

    def widened(leaf):
        each = quantized.over_layers(quantized.dense, leaf) if quantized.is_packed(leaf) else leaf
        return each.astype(jnp.float32)

    wide = initial.prepare_base(jax.tree.map(widened, plain, is_leaf=quantized.is_packed), adapter)
    expected = parity.probe_logits(tiny.CONFIG, adapter, wide, direction, magnitude)
    assert expected.dtype == np.float32
    # Not bit-equal: XLA may sum norm_sq of a bf16 weight in another order than that of a float32 one.
    found = parity.probe_logits(tiny.CONFIG, adapter, base, direction, magnitude)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
