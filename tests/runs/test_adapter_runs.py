"""Runs of the command line whose adapters are not the plain ones: trained, exported, evaluated, and trained on.

They go through train.py, export.py and evaluate.py.
"""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from runs import contents, inputs, metrics
from safetensors.numpy import load_file

from bidora_jax import evaluate, export, train
from bidora_jax.errors import command
from bidora_jax.models.formats import hf_config

pytestmark = pytest.mark.slow

TRAINED = ["--adapter.method", "dora", "--adapter.target-modules", "q_proj", "up_proj", "--adapter.rank", "3",
           "--adapter.init", "pissa", "--adapter.modules-to-save", "lm_head", "--adapter.rank-pattern",
           "layers.1.self_attn.q_proj", "2", "layers.0.mlp.up_proj", "0", "--data.buckets", "1", "--search.steps", "3",
           "--inner.learning-rate", "0.01", "--inner.warmup", "0"]  # fmt: skip


@pytest.fixture(scope="module")
def run(model_folder, data_files, tmp_path_factory):
    """The folder of a run that starts from the weights' largest parts and trains the head whole."""
    folder = tmp_path_factory.mktemp("adapters") / "run"
    command(train.main, [*inputs(model_folder, data_files, folder), *TRAINED, "--merged"])
    return folder


def final_loss(said: str) -> float:
    found = re.search(r"validation loss of the result ([\d.]+)", said)
    assert found
    return float(found[1])


def test_the_adapter_fits_the_original_base(run):
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    module = "base_model.model.model.layers.{}.{}.lora_A.weight"
    assert {name: t.shape for name, t in tensors.items() if "lora_A" in name} == {
        module.format(0, "self_attn.q_proj"): (6, 26), module.format(1, "self_attn.q_proj"): (4, 26),
        module.format(1, "mlp.up_proj"): (6, 26),
    }  # fmt: skip
    assert tensors["base_model.model.lm_head.weight"].shape == (97, 26)
    settings = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["init_lora_weights"], settings["modules_to_save"]) == (6, True, ["lm_head"])
    assert settings["target_modules"] == ["model.layers.1.mlp.up_proj", "q_proj"]
    assert settings["rank_pattern"] == {"layers.1.self_attn.q_proj": 4}


def test_the_merged_model_has_embeddings_of_two_kinds(run, model_folder):
    assert hf_config.read_config(model_folder).tie_word_embeddings
    assert not hf_config.read_config(run / "merged").tie_word_embeddings
    before, after = load_file(model_folder / "model.safetensors"), load_file(run / "merged" / "model.safetensors")
    assert set(after) - set(before) == {"lm_head.weight"}
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {
        f"model.layers.{name}.weight" for name in ("0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.up_proj")
    }
    head = after["lm_head.weight"] - before["model.embed_tokens.weight"]
    assert np.abs(head).max() > 1e-3


def test_export_writes_the_same_again(run, tmp_path):
    for kind in ("adapter", "merged"):
        command(export.main, ["--run", str(run), "--format", kind, "--output", str(tmp_path / kind)])
    assert contents(tmp_path / "adapter") == contents(run / "adapter")
    merged = (load_file(folder / "merged" / "model.safetensors") for folder in (run, tmp_path))
    for one, other in zip(*(tensors.values() for tensors in merged), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_training_goes_on_from_an_adapter(run, model_folder, data_files, tmp_path, capsys):
    """At rates near zero the result is the one before; its settings are those of the folder, without a word."""
    where = ["--model", str(model_folder), "--data-file", str(data_files[1])]
    command(evaluate.main, [*where, "--adapter", str(run / "adapter"), "--json", str(tmp_path / "loss.json")])
    expected = json.loads((tmp_path / "loss.json").read_text())["loss"]
    start = ["--adapter.path", str(run / "adapter"), "--adapter.method", "dora", "--inner.learning-rate", "1e-12"]
    flags = ["--data.buckets", "1", "--search.steps", "2", "--eval-every", "1"]
    command(train.main, [*inputs(model_folder, data_files, tmp_path / "on"), *start, *flags])
    said = capsys.readouterr().out
    assert "dora, rank 4 and 6: direction 1,244 (" in said
    assert "trainable params: 3,924 || all params: " in said
    assert abs(final_loss(said) - expected) < 2e-4
    before, after = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (run, tmp_path / "on"))
    for name, tensor in before.items():
        np.testing.assert_allclose(after[name], tensor, atol=1e-6)
    assert all(np.isfinite(line["train_loss"]) for line in metrics(tmp_path / "on"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--adapter.rank", "8"], ["self_attn.q_proj: rank 4, 8 and s ", "found rank 4, 6 and s"]),
        (["--adapter.target-modules", "q_proj"], ["mlp.up_proj: not adapted, found rank 6 and s 5.33333 in layers 1"]),
        (["--adapter.method", "lora"], ["adapter.method is lora, and the folder has a magnitude"]),
        (["--adapter.init", "olora"], ["adapter.init olora makes factors of its own"]),
        (["--adapter.preset", "balanced"], ["self_attn.k_proj: rank 8 and s 2, found not adapted"]),
    ],
)
def test_settings_that_disagree_with_the_folder_are_refused(
    run, model_folder, data_files, tmp_path, capsys, flags, words
):
    argv = [*inputs(model_folder, data_files, tmp_path / "on"), "--adapter.path", str(run / "adapter"), *flags]
    with pytest.raises(SystemExit) as stopped:
        command(train.main, argv)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    for word in [f"adapter.path {run / 'adapter'} does not fit", *words]:
        assert word in said
    assert not (tmp_path / "on").exists()


def test_trained_embeddings_keep_their_digits_on_a_narrow_base(model_folder, data_files, tmp_path):
    flags = ["--adapter.method", "bidora", "--adapter.target-modules", "q_proj", "--adapter.modules-to-save", "lm_head",
             "embed_tokens", "--model.dtype", "bfloat16", "--search.steps", "2", "--data.buckets", "1", "--retrain.epochs", "0",
             "--adapter.init", "olora"]  # fmt: skip
    command(train.main, [*inputs(model_folder, data_files, tmp_path / "run"), *flags])
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    for name in ("base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"):
        rounded = np.asarray(jnp.asarray(tensors[name]).astype(jnp.bfloat16).astype(jnp.float32))
        assert np.any(rounded != tensors[name])
