"""Which weights are quantised: the settings, and the road from a configuration through training to every export."""

import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import SMALL, contents, inputs, refused_export
from tiny import CONFIG

from bidora_jax import evaluate, export, train
from bidora_jax.errors import InputError, command
from bidora_jax.kernels import quantized
from bidora_jax.models import decoder, quantization
from bidora_jax.models.formats import hf, hf_config
from bidora_jax.models.settings import ModelConfig

DIFFERENCE = r"largest logit difference to the [a-z ]+ ([\d.e+-]+)"
SHORT = [*SMALL, "--search.steps", "2", "--retrain.steps", "2", "--inner.learning-rate", "0.05", "--inner.warmup", "0"]


def settings(**changes):
    return ModelConfig(**{"quantization": "nf4"} | changes)


def resolved(tied=False, **changes):
    found = quantization.resolve(settings(**changes), replace(CONFIG, tie_word_embeddings=tied))
    assert found is not None
    return found


# The settings


def test_nothing_is_quantised_unless_asked():
    assert quantization.resolve(ModelConfig(), CONFIG) is None


def test_the_linear_layers_are_and_the_rest_is_not():
    found = resolved()
    assert len(found.modules) == 7
    assert found.covers(("layers", "self_attn", "q_proj", "weight"))
    assert not found.covers(("layers", "self_attn", "q_proj", "bias"))
    assert not any(found.covers((name, "weight")) for name in ("norm", "embed_tokens", "lm_head"))
    assert found.modules == resolved(quantized_modules=("all-linear",)).modules


def test_modules_are_named():
    found = resolved(quantized_modules=("down_proj", "lm_head", "embed_tokens"))
    assert found.modules == ("layers.mlp.down_proj", "lm_head", "embed_tokens")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("q_porj",), "'q_porj' (did you mean 'q_proj'?)"),
        ((), "none at all"),
        (("norm",), "nothing in this model is called"),
    ],
)
def test_a_module_that_is_not_there_is_refused(names, said):
    with pytest.raises(InputError, match=re.escape(said)):
        resolved(quantized_modules=names)


def test_the_head_of_a_tied_model_is_its_embedding():
    with pytest.raises(InputError, match="name embed_tokens to quantise the two"):
        resolved(tied=True, quantized_modules=("lm_head",))


def test_what_is_quantised_and_what_is_not_is_said(model_folder):
    config = hf_config.read_config(model_folder)
    base = hf.load(settings(quantized_modules=("gate_proj", "embed_tokens")), model_folder, config)
    packed, plain, by = quantization.describe(base)
    assert packed.startswith("nf4: embed_tokens, mlp.gate_proj at 4.1")
    assert "self_attn.q_proj" in plain and "mlp.gate_proj" not in plain and plain.startswith("kept in float32: ")
    assert by == "dequantised by XLA: there is no CUDA device"
    assert quantization.describe(hf.load(ModelConfig(), model_folder, config)) == []


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_a_model_quantised_while_it_loads_is_quantised_weight_by_weight(model_folder, form):
    config = hf_config.read_config(model_folder)
    dense = hf.load(ModelConfig(), model_folder, config)
    found = hf.load(settings(quantization=form, dtype="bfloat16"), model_folder, config)
    plan = resolved(quantization=form)
    stack = found["layers"]["self_attn"]["o_proj"]["weight"]
    assert (stack.dtype, found["norm"]["weight"].dtype) == (jnp.bfloat16, jnp.bfloat16)
    for layer in range(config.num_layers):
        alone = plan.quantise(np.asarray(dense["layers"]["self_attn"]["o_proj"]["weight"][layer]), jnp.bfloat16)
        for a, b in zip(jax.tree.leaves(stack), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(a[layer], b)


# The road


@pytest.fixture(scope="module")
def run(model_folder, data_files, tmp_path_factory):
    """A BiDoRA run on an NF4 base, with its merged model."""
    folder = tmp_path_factory.mktemp("quantised") / "run"
    command(train.main, [*inputs(model_folder, data_files, folder), *SHORT, "--model.quantization", "nf4", "--merged"])
    return folder


def loss(*argv, to):
    command(evaluate.main, [*map(str, argv), "--json", str(to)])
    return json.loads(to.read_text())["loss"]


@pytest.mark.slow
def test_a_merged_model_has_the_loss_of_base_and_adapter(run, model_folder, data_files, tmp_path):
    data = ["--data-file", data_files[2]]
    base = ["--model", model_folder, "--quantization", "nf4"]
    adapted = loss(*base, "--adapter", run / "adapter", *data, to=tmp_path / "adapted")
    merged = loss("--model", run / "merged", *data, to=tmp_path / "merged")
    assert merged == pytest.approx(adapted, rel=1e-5)  # float32 sums in another order
    others = [loss(*base, *data, to=tmp_path / "base"), loss("--model", model_folder, *data, to=tmp_path / "dense"),
              loss("--model", model_folder, "--adapter", run / "adapter", *data, to=tmp_path / "over the dense")]  # fmt: skip
    assert all(abs(other - adapted) > 1e-3 for other in others)


@pytest.mark.slow
def test_both_merged_models_are_measured_and_the_chosen_one_is_written(run, model_folder, tmp_path, capfd):
    command(export.main, ["--run", str(run), "--output", str(tmp_path / "trained")])
    said = capfd.readouterr().out
    original, quantised, proof = map(float, re.findall(DIFFERENCE, said))
    assert "update over the quantized weights" in said and "update over the original weights" in said
    assert quantised < 1e-5 and proof < 1e-5  # float32: sums in another order, logits below 10
    assert original > 100 * quantised
    assert contents(tmp_path / "trained") == contents(run / "merged")
    command(export.main, ["--run", str(run), "--output", str(tmp_path / "original"), "--merge-base", "original"])
    assert (
        "merged model read back: largest logit difference to the update over the original weights"
        in capfd.readouterr().out
    )
    config = hf_config.read_config(tmp_path / "original")
    found = hf.load_base(tmp_path / "original", config)["layers"]
    dense = hf.load_base(model_folder, config)["layers"]
    np.testing.assert_array_equal(found["mlp"]["up_proj"]["weight"], dense["mlp"]["up_proj"]["weight"])
    assert not np.array_equal(found["self_attn"]["q_proj"]["weight"], dense["self_attn"]["q_proj"]["weight"])


@pytest.mark.slow
@pytest.mark.parametrize(("method", "form", "flags"), [("lora", "int8", ["--adapter.rslora"]), ("dora", "nf4", [])])
def test_every_method_trains_on_a_quantised_base(model_folder, data_files, tmp_path, capfd, method, form, flags):
    folder = tmp_path / "run"
    argv = [*inputs(model_folder, data_files, folder), *SHORT, *flags, "--adapter.method", method]
    command(
        train.main, [*argv, "--model.quantization", form, "--model.no-double-quant", "--inner.optimizer", "adamw_8bit"]
    )
    said = capfd.readouterr().out
    bits = {"int8": "9.0", "nf4": "4.5"}[form]  # the rows are short
    assert re.search(rf"{form}: .*q_proj.* at {bits}\d bits a parameter\nkept in float32: embed_tokens", said)
    assert "adapter read back: largest logit difference to the trained model 0.00e+00" in said


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_a_model_is_quantised_and_taken_back_without_an_adapter(model_folder, tmp_path, capfd, form):
    packed, dense = tmp_path / "packed", tmp_path / "dense"
    command(export.main, ["--model", str(model_folder), "--quantization", form, "--output", str(packed)])
    assert "model read back: largest logit difference to the model in memory 0.00e+00" in capfd.readouterr().out
    command(export.main, ["--model", str(packed), "--output", str(dense)])
    assert "quantization_config" in json.loads((packed / "config.json").read_text())
    assert "quantization_config" not in json.loads((dense / "config.json").read_text())
    config, tokens = hf_config.read_config(dense), jnp.arange(22).reshape(2, 11)
    bases = [hf.load(s, f, config) for s, f in ((settings(quantization=form), model_folder), (ModelConfig(), dense))]
    assert not any(quantized.is_quantised(leaf) for leaf in jax.tree.leaves(bases[1], is_leaf=quantized.is_quantised))
    found, expected = (decoder.logits(config, None, base, {}, {}, tokens) for base in bases)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_quantised_evaluation_is_that_of_the_quantised_folder(model_folder, data_files, tmp_path):
    command(export.main, ["--model", str(model_folder), "--quantization", "nf4", "--output", str(tmp_path / "packed")])
    data = ["--data-file", data_files[2]]
    here = loss("--model", model_folder, "--quantization", "nf4", *data, to=tmp_path / "here")
    assert here == loss("--model", tmp_path / "packed", *data, to=tmp_path / "there")
    assert abs(here - loss("--model", model_folder, *data, to=tmp_path / "dense")) > 1e-3


# Refusals


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--quantization", "nf4"], "--quantization is for --model"), (["--model", "x"], "give either --run")],
)
def test_flags_that_contradict_a_run_are_refused(run, tmp_path, capfd, flags, said):
    assert said in refused_export(["--run", str(run), "--output", str(tmp_path / "out"), *flags], capfd)
    assert contents(tmp_path) == {}


@pytest.mark.slow
def test_a_dense_run_has_no_other_base(finished_run, tmp_path, capfd):
    argv = ["--run", str(finished_run / "run"), "--output", str(tmp_path / "out"), "--merge-base", "original"]
    assert "this one was trained on the weights as they are" in refused_export(argv, capfd)


def test_a_model_without_a_run_has_no_adapter_to_write(model_folder, tmp_path, capfd):
    argv = ["--model", str(model_folder), "--format", "adapter", "--output", str(tmp_path / "out")]
    assert "--format and --merge-base are for --run" in refused_export(argv, capfd)


def test_a_quantised_folder_is_not_quantised_again(model_folder, data_files, tmp_path, capfd):
    packed = tmp_path / "packed"
    command(export.main, ["--model", str(model_folder), "--quantization", "int8", "--output", str(packed)])
    with pytest.raises(SystemExit) as stopped:
        command(train.main, [*inputs(packed, data_files, tmp_path / "run"), *SHORT, "--model.quantization", "nf4"])
    said = capfd.readouterr().err
    assert stopped.value.code == 2
    assert f"error: {packed} is quantised already: leave model.quantization at none" in said
    assert not (tmp_path / "run").exists()


def test_an_unknown_quantisation_is_refused(model_folder, data_files, tmp_path, capfd):
    with pytest.raises(SystemExit) as stopped:
        command(train.main, [*inputs(model_folder, data_files, tmp_path / "run"), "--model.quantization", "nf3"])
    assert stopped.value.code == 2
    assert "nf3" in capfd.readouterr().err
