"""Quantised model folders: transformers with bitsandbytes is the oracle for what they mean, in both directions."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bidora_jax.errors import InputError
from bidora_jax.kernels import quantized
from bidora_jax.models import decoder
from bidora_jax.models.formats import bnb, hf, hf_config, parity
from bidora_jax.models.settings import ModelConfig

KINDS = ["nf4", "nf4 nested", "int8"]
WEIGHT = "model.layers.1.mlp.up_proj.weight"


def _settings(kind, dtype="auto"):
    return ModelConfig(dtype=dtype, quantization="int8" if kind == "int8" else "nf4", double_quant=kind == "nf4 nested")


@pytest.fixture(scope="session")
def written(tmp_path_factory, model_folder):
    """The tiny model written here in each form."""
    folder, config = tmp_path_factory.mktemp("written"), hf_config.read_config(model_folder)
    for kind in KINDS:
        base = hf.load(_settings(kind), model_folder, config)
        hf.save_model(folder / kind, model_folder, config, base, dtype="float32")
    return folder


@pytest.fixture
def damaged(written, tmp_path):
    """A copy of a written folder with a change to its tensors, and what reading it says."""

    def refusal(kind, change):
        folder = shutil.copytree(written / kind, tmp_path / "damaged")
        tensors = dict(load_file(folder / "model.safetensors"))
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(InputError) as refused:
            hf.load(ModelConfig(), folder, hf_config.read_config(folder))
        return str(refused.value)

    return refusal


def _saved_by_transformers(folder, kind, dtype):
    """A random Qwen3 that transformers quantised, and its own logits."""
    import oracle
    import torch
    import transformers

    model = oracle.qwen3(dtype=getattr(torch, dtype))
    model.save_pretrained(folder / "dense")
    settings = (
        transformers.BitsAndBytesConfig(load_in_8bit=True)
        if kind == "int8"
        else transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=kind == "nf4 nested",
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
    )  # fmt: skip
    quantised = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "dense", quantization_config=settings, dtype=getattr(torch, dtype), attn_implementation="eager"
    ).train()  # in evaluation its CPU kernels for 4 bits round the scales to bfloat16
    quantised.save_pretrained(folder / "quantised")
    ids = oracle.tokens()
    return folder / "quantised", ids.numpy(), oracle.logits(quantised, ids)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_bitsandbytes_quantised_is_that_model(tmp_path, kind, dtype):
    folder, ids, expected = _saved_by_transformers(tmp_path, kind, dtype)
    config = hf_config.read_config(folder)
    base = hf.load(ModelConfig(), folder, config)
    up_proj = base["layers"]["mlp"]["up_proj"]["weight"]
    assert isinstance(up_proj, quantized.Int8 if kind == "int8" else quantized.NF4)
    found = np.asarray(decoder.logits(config, None, base, {}, {}, jnp.asarray(ids)))
    # bitsandbytes' int8 product also rounds the activations of each token to 8 bits, which is not done here.
    tolerance = 0.05 if kind == "int8" else {"bfloat16": 0.03, "float32": 2e-5}[dtype]
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    # The weights themselves are the same to the byte, so quantising the dense folder here gives this folder.
    ours = hf.load(_settings(kind, dtype), tmp_path / "dense", config)["layers"]["mlp"]["up_proj"]["weight"]
    np.testing.assert_array_equal(ours.codes, up_proj.codes)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_what_is_written_here(written, kind):
    import oracle
    import torch
    import transformers

    folder = written / kind
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model.model.layers[0].mlp.up_proj).__name__ == ("Linear8bitLt" if kind == "int8" else "Linear4bit")
    ids = torch.arange(22).reshape(2, 11) % 97
    config = hf_config.read_config(folder)
    found = np.asarray(decoder.logits(config, None, hf.load(ModelConfig(), folder, config), {}, {}, jnp.asarray(ids)))
    expected = oracle.logits(model.train(), ids)
    # The 4-bit product is float32 here and there; int8 activations are rounded there, see above.
    assert np.abs(found - expected).max() <= (0.05 if kind == "int8" else 2e-5) * np.abs(expected).max()


@pytest.mark.parametrize("kind", KINDS)
def test_written_then_read_is_bit_equal(written, model_folder, kind):
    config = hf_config.read_config(written / kind)
    base, again = (hf.load(s, f, config) for s, f in ((_settings(kind), model_folder), (ModelConfig(), written / kind)))
    assert jax.tree.structure(base) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(base), jax.tree.leaves(again), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    expected = parity.probe_logits(config, None, base, {}, {})
    assert parity.verify_saved(written / kind, expected).largest == 0
    assert hf.is_quantised(written / kind)
    assert not hf.is_quantised(model_folder)


def test_codes_filed_under_another_dtype_are_the_same_bytes(written, tmp_path):
    """bnb_4bit_quant_storage: sharded trainers want all tensors of a model to have one dtype."""
    folder = shutil.copytree(written / "nf4", tmp_path / "stored")
    tensors = dict(load_file(folder / "model.safetensors"))
    codes = tensors[WEIGHT]
    tensors[WEIGHT] = codes.reshape(-1).view(np.float16).reshape(-1, 1)
    save_file(tensors, folder / "model.safetensors")
    config = hf_config.read_config(folder)
    found = hf.load(ModelConfig(), folder, config)["layers"]["mlp"]["up_proj"]["weight"]
    np.testing.assert_array_equal(found.codes[1], codes.reshape(-1))


def _state(tensors, **changes):
    name = f"{WEIGHT}.quant_state.bitsandbytes__nf4"
    state = json.loads(bytes(tensors[name])) | changes
    tensors[name] = np.frombuffer(json.dumps(state).encode(), np.uint8)


def test_a_missing_part_is_named(damaged):
    assert f"missing {WEIGHT}.absmax" in damaged("nf4", lambda tensors: tensors.pop(f"{WEIGHT}.absmax"))


@pytest.mark.parametrize("part", ["nested_absmax", "nested_quant_map"])
def test_a_missing_nested_part_is_named(damaged, part):
    assert f"missing {WEIGHT}.{part}" in damaged("nf4 nested", lambda tensors: tensors.pop(f"{WEIGHT}.{part}"))


def test_missing_codes_are_named(damaged):
    assert f"missing {WEIGHT}" in damaged("nf4", lambda tensors: tensors.pop(WEIGHT))


def test_missing_int8_codes_are_named(damaged):
    assert f"{WEIGHT}: missing, beside" in damaged("int8", lambda tensors: tensors.pop(WEIGHT))


def test_missing_int8_scales_are_named(damaged):
    said = damaged("int8", lambda tensors: tensors.pop(WEIGHT.replace("weight", "SCB")))
    assert f"{WEIGHT}: 8-bit codes without their scales" in said


def test_another_block_size_is_refused(damaged):
    assert "blocksize 128, expected 64" in damaged("nf4", lambda tensors: _state(tensors, blocksize=128))


def test_another_shape_than_the_codes_have_is_refused(damaged):
    said = damaged("nf4", lambda tensors: _state(tensors, shape=[38, 28]))
    assert f"{WEIGHT}: weight has 494 bytes, too many or too few for shape (38, 28)" in said


def test_another_codebook_is_refused(damaged):
    said = damaged("nf4", lambda tensors: tensors.update({f"{WEIGHT}.quant_map": np.linspace(-1, 1, 16, dtype="f4")}))
    assert f"{WEIGHT}.quant_map is not bitsandbytes' codebook" in said


def test_a_state_that_is_no_json_is_refused(damaged):
    name = f"{WEIGHT}.quant_state.bitsandbytes__nf4"
    assert "quant_state is not the JSON of a matrix" in damaged(
        "nf4", lambda t: t.update({name: np.zeros(9, np.uint8)})
    )


def test_fp4_is_refused(damaged):
    def rename(tensors):
        state = f"{WEIGHT}.quant_state.bitsandbytes__"
        tensors[f"{state}fp4"] = tensors.pop(f"{state}nf4")

    assert f"{WEIGHT}: bitsandbytes' fp4" in damaged("nf4", rename)


def test_columns_first_is_refused(damaged):
    assert "not filed row by row" in damaged("int8", lambda t: t.update({f"{WEIGHT}_format": np.ones((), np.uint8)}))


def test_layers_in_different_forms_are_refused(damaged):
    def one_dense(tensors):
        for name in [name for name in tensors if name.startswith(WEIGHT)]:
            del tensors[name]
        tensors[WEIGHT] = np.zeros((38, 26), np.float32)

    said = damaged("nf4", one_dense)
    assert "mlp.up_proj.weight is nf4 in layers 0; dense in layers 1; layers are stacked here" in said


@pytest.mark.parametrize("change", [{"quant_method": "gptq"}, {"bnb_4bit_quant_type": "fp4"}])
def test_another_quantisation_in_the_config_is_refused(written, tmp_path, change):
    folder = shutil.copytree(written / "nf4", tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"{next(iter(change.values()))}.*\n.*use another model|fp4"):
        hf_config.read_config(folder)


def test_quantising_twice_is_refused(written):
    with pytest.raises(InputError, match=r"is quantised already: leave model\.quantization at none"):
        hf.load(_settings("nf4"), written / "int8", hf_config.read_config(written / "int8"))


def test_tensors_of_a_weight_are_a_closed_format():
    """What is written is what `grouped` folds back: no side tensor is left over."""
    random = np.random.default_rng(0)
    stack = quantized.Int8(
        random.integers(-127, 128, (2, 3, 5)).astype(np.int8), np.ones((2, 3), np.float32), np.dtype("f4")
    )
    assert set(bnb.tensors("x.weight", stack, 1)) == {"x.weight", "x.SCB", "x.weight_format"}
