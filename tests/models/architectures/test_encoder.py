"""models/architectures/encoder.py, and its heads as models/architectures/heads.py describes them: each family on the one encoder.
transformers is the oracle for hidden states, logits and files.

What follows from the mathematics alone stands in models/test_encoder.py.
"""

from dataclasses import replace

import encoder_folders
import encoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import KINDS
from safetensors.numpy import load_file

from bidora_jax.errors import InputError
from bidora_jax.kernels import quantized, rope_frequencies
from bidora_jax.models import encoder
from bidora_jax.models.architectures.architecture import Architecture, endings, linear_names, name_table
from bidora_jax.models.compute import Compute
from bidora_jax.models.formats import hf, hf_config
from bidora_jax.models.settings import ModelConfig

TOLERANCE = 1e-5
"""Of float32, by the largest number: the models have two layers."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(transformers' model, its folder, its config and base here) of a kind with a head, made once."""
    made = {}

    def of(kind, task="none"):
        if (kind, task) not in made:
            import encoder_oracle

            model, folder = encoder_oracle.random(kind, task), tmp_path_factory.mktemp("encoder")
            model.save_pretrained(folder)
            config = hf_config.read_config(folder)
            made[kind, task] = model, folder, config, hf.load_base(folder, config)
        return made[kind, task]

    return of


def hidden(config, base, batch, **how):
    return np.asarray(encoder.hidden(config, None, Compute(**how), base, ({}, {}), batch))


def assert_close(found, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# Numbers


@pytest.mark.torch
@pytest.mark.parametrize("task", ["sequence", "token"])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_logits_are_those_of_transformers(saved, kind, task):
    import encoder_oracle

    model, _, config, base = saved(kind, task)
    texts = encoders.texts(config)
    batch = encoders.padded(texts)
    expected, expected_logits = encoder_oracle.outputs(model, batch)
    expected = encoders.of_texts(expected, batch)
    x = hidden(config, base, batch)
    for found, own in zip(encoders.of_texts(x, batch), expected, strict=True):
        assert_close(found, own)
    found = encoder_oracle.logits(model, config.head(task, encoder_oracle.OUTPUTS), x, batch["lengths"])
    for row, length in enumerate(batch["lengths"]):  # of a token, those of padding mean nothing
        own = slice(length) if task == "token" else slice(None)
        assert_close(found[row][own], expected_logits[row][own])
    packed = encoders.packed(texts)
    first, second, third = expected
    for found, own in zip(
        encoders.of_texts(hidden(config, base, packed), packed),
        (first, second, third, second, first, second),
        strict=True,
    ):
        assert_close(found, own)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["bert", "roberta", "esm-2"])
def test_so_they_are_alone_and_as_long_as_a_text_can_be(saved, kind):
    import encoder_oracle

    model, _, config, base = saved(kind, "sequence")
    assert config.max_positions == {"bert": 47, "roberta": 45, "esm-2": 47}[kind]
    (text,) = encoders.texts(config, (config.max_positions,))
    batch = encoders.padded([text], width=config.max_positions)
    assert_close(hidden(config, base, batch, attention_chunk=7), encoder_oracle.outputs(model, batch)[0])


# Traps


@pytest.mark.torch
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("roberta", {"first_position": 0}),
        ("bert", {"types": 0}),
        ("bert, gelu_new", {"activation": "gelu"}),
        ("bert, gelu_new", {"eps": 1e-5}),
        ("esm-2", {"dropped_token": None}),
        ("esm-1b", {"first_position": 0}),
        ("esm-1b", {"embed_norm": False}),
    ],
)
def test_what_config_says_shows(saved, kind, changes):
    import encoder_oracle

    model, _, config, base = saved(kind, "sequence")
    batch = encoders.padded(encoders.texts(config))
    expected = encoders.of_texts(encoder_oracle.outputs(model, batch)[0], batch)
    found = encoders.of_texts(hidden(replace(config, **changes), base, batch), batch)
    assert all(np.abs(a - b).max() > 3 * TOLERANCE * np.abs(b).max() for a, b in zip(found, expected, strict=True))


def test_esm_multiplies_by_088_where_nothing_is_masked_and_counts_masks_text_by_text():
    config = encoders.config("esm-2")
    base = encoders.random_base(config)
    plain = replace(config, dropped_token=None)
    (text,) = encoders.texts(plain, (13,))
    batch = encoders.padded([text])
    scaled = {**base, "embed_tokens": {"weight": 0.88 * base["embed_tokens"]["weight"]}}
    assert_close(hidden(config, base, batch)[:, :13], hidden(plain, scaled, batch)[:, :13])
    # Two masked tokens in a row of 13: 0.88 · 13/11.
    text["tokens"][5:7] = config.dropped_token
    batch = encoders.padded([text])
    rows = base["embed_tokens"]["weight"].at[config.dropped_token].set(0) * (0.88 * 13 / 11)
    expected = hidden(plain, {**base, "embed_tokens": {"weight": rows}}, batch)[:, :13]
    assert_close(hidden(config, base, batch)[:, :13], expected)


@pytest.mark.torch
def test_frequencies_are_those_of_the_file_in_each_of_its_spellings(saved, tmp_path):
    model, folder, config, base = saved("esm-2", "sequence")
    rounded = model.base_model.rotary_embeddings.inv_freq.numpy()
    computed = rope_frequencies.frequencies(config.head_dim, 1e4)
    assert np.abs(rounded / computed - 1).max() > 1e-5
    np.testing.assert_array_equal(base["rotary"]["inv_freq"], rounded)
    tensors = load_file(folder / "model.safetensors")
    (own,) = (name for name in tensors if name.endswith("inv_freq"))
    for names in (
        ["esm.rotary_embeddings.inv_freq"],
        [f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq" for layer in range(config.num_layers)],
    ):
        changed = {name: tensor for name, tensor in tensors.items() if name != own} | dict.fromkeys(names, rounded)
        other = encoder_folders.copied(folder, tmp_path / str(len(names)), changed)
        found = hf.load_base(other, config, jnp.bfloat16)["rotary"]["inv_freq"]
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, rounded)
        out = tmp_path / f"out {len(names)}"
        hf.save_model(out, other, config, hf.load_base(other, config), dtype="bfloat16")
        again = load_file(out / "model.safetensors")
        assert {name for name in again if name.endswith("inv_freq")} == set(names)
        assert all(np.array_equal(again[name], rounded) and again[name].dtype == np.float32 for name in names)


# Files


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_the_model_alone_is_read_and_written_as_it_is_spelled(saved, tmp_path, kind):
    import encoder_oracle

    model, folder, config, base = saved(kind)
    names = load_file(folder / "model.safetensors").keys()
    assert not any(name.startswith(f"{config.prefix}.") for name in names)
    hf.save_model(tmp_path / "out", folder, config, base, dtype="float32", max_shard_bytes=30_000)
    assert hf_config.read_config(tmp_path / "out") == config
    written = hf.read_entries(tmp_path / "out").keys()
    assert written == {name for name in names if not name.startswith(("pooler", "contact_head"))}
    again, report = encoder_oracle.again(tmp_path / "out")
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert all(name.startswith(("pooler", "contact_head")) for name in report["missing_keys"])
    assert type(again) is type(model)
    batch = encoders.padded(encoders.texts(config))
    found, expected = (encoders.of_texts(encoder_oracle.outputs(m, batch)[0], batch) for m in (again, model))
    assert all(map(np.array_equal, found, expected))


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
def test_a_folder_with_a_head_keeps_its_prefix_and_its_names_are_the_tables(saved, tmp_path, kind):
    _, folder, config, base = saved(kind, "token")
    names = load_file(folder / "model.safetensors").keys()
    beside = {name for name in names if name not in name_table(config)}
    assert beside == {"classifier.weight", "classifier.bias"} and all(map(config.ignores, beside))
    hf.save_model(tmp_path / "out", folder, config, base, dtype="float32")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == names - beside


def test_what_old_files_hold_and_how_they_spell_it(tmp_path):
    config = encoders.config("bert")
    plain = encoder_folders.write(tmp_path / "plain", "bert")
    tensors = load_file(plain / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    old |= {
        "bert.embeddings.position_ids": np.arange(47)[None], "cls.seq_relationship.weight": np.zeros((2, 42), np.float16),
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
        "bert.pooler.dense.weight": np.zeros((42, 42), np.float32),
    }  # fmt: skip
    other = encoder_folders.copied(plain, tmp_path / "old", old)
    bases = hf.load_base(plain, config), hf.load_base(other, config)
    assert jax.tree.all(jax.tree.map(np.array_equal, *bases))
    hf.save_model(tmp_path / "out", other, config, bases[1], dtype="float32")
    assert {name for name in load_file(tmp_path / "out" / "model.safetensors") if "beta" in name} == {
        name for name in old if "beta" in name
    }
    stray = encoder_folders.copied(
        plain, tmp_path / "stray", tensors | {"bert.adapter.weight": np.zeros(3, np.float32)}
    )
    with pytest.raises(InputError, match=r"not part of this model: bert\.adapter\.weight"):
        hf.load_base(stray, config)
    lost = {name: tensor for name, tensor in tensors.items() if "layer.1.output.dense" not in name}
    with pytest.raises(InputError, match=r"2 tensors do not fit[^$]*missing: bert\.encoder\.layer\.1\.output\.dense"):
        hf.load_base(encoder_folders.copied(plain, tmp_path / "lost", lost), config)


@pytest.mark.parametrize(("kind", "form"), [("bert", "nf4"), ("distilbert", "int8"), ("esm-2", "nf4")])
def test_a_quantised_encoder_is_written_and_read_byte_for_byte(tmp_path, kind, form):
    config = encoders.config(kind)
    folder = encoder_folders.write(tmp_path / "dense", kind)
    base = hf.load(ModelConfig(quantization=form, quantized_modules=("all-linear",)), folder, config)
    packed = [leaf for leaf in jax.tree.leaves(base, is_leaf=quantized.is_packed) if quantized.is_quantised(leaf)]
    assert len(packed) == 6
    hf.save_model(tmp_path / "packed", folder, config, base, dtype="float32")
    again = hf.load(ModelConfig(), tmp_path / "packed", hf_config.read_config(tmp_path / "packed"))
    assert jax.tree.structure(again) == jax.tree.structure(base)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, base))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_what_bitsandbytes_quantised_is_read(saved, tmp_path):
    import encoder_oracle
    import torch
    import transformers

    _, folder, config, _ = saved("bert", "token")
    four = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        folder, quantization_config=four, dtype=torch.float32, attn_implementation="eager"
    )
    for module in model.modules():  # in evaluation its CPU kernels for 4 bits round the scales to bfloat16
        module.training = type(module).__name__ == "Linear4bit"
    model.save_pretrained(tmp_path)
    batch = encoders.padded(encoders.texts(config))
    expected = encoders.of_texts(encoder_oracle.outputs(model, batch)[0], batch)
    here = ModelConfig(quantization="nf4", double_quant=False, quantized_modules=("all-linear",))
    for asked, source in ((ModelConfig(), tmp_path), (here, folder)):
        found = encoders.of_texts(hidden(config, hf.load(asked, source, config), batch), batch)
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b, 2e-5)


# Data


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_is_an_architecture_with_its_linear_layers_by_role(kind):
    config = encoders.config(kind)
    assert isinstance(config, Architecture) and hash(config) is not None
    roles = [role for linear in config.linears for role in linear.roles]
    own = {"modernbert": ["gate"], "modernbert, mean": ["gate"], "deberta-v2": ["rel_k", "rel_q"]}
    assert sorted(roles) == sorted(["q", "k", "v", "o", "up", "down", *own.get(kind, [])])
    assert not config.tied and config.untied() == config and config.window is None


def test_names_that_peft_selects_by_are_whole_where_an_ending_takes_another():
    config = encoders.config("bert")
    assert linear_names(config) == ("query", "key", "value", "dense")
    assert endings(config, "attention.output.dense") == ("attention.output.dense",)
    assert endings(config, "output.dense") == tuple(f"bert.encoder.layer.{layer}.output.dense" for layer in range(2))
