"""Adapter folders: PEFT is the oracle for the function, the gradients and the files; what it lets pass is refused."""

import dataclasses
import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from adapter_folders import METHODS, change_config, logits_of, refused
from peft_oracle import DEPRECATED, TIED, peft_model
from random_adapters import random_adapter
from safetensors.numpy import load_file, save_file

from bidora_jax.errors import InputError
from bidora_jax.models import decoder
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial, merging
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.base import dense_shapes
from bidora_jax.models.formats import hf, hf_config, peft

pytestmark = pytest.mark.filterwarnings(f"ignore:{DEPRECATED}:FutureWarning")
WHOLE = {"embed_tokens": "base_model.model.model.embed_tokens.weight", "lm_head": "base_model.model.lm_head.weight"}


# The function and its gradients


@pytest.mark.torch
@pytest.mark.parametrize("method", METHODS)
def test_outputs_and_gradients_are_those_of_peft(tmp_path, method):
    import oracle
    import torch

    settings = METHODS[method]
    oracle.qwen3(attention_bias=True).save_pretrained(tmp_path / "base")
    adapted = peft_model(oracle.qwen3(attention_bias=True), settings)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.double()
    ids = oracle.tokens()
    weights = torch.randn((*ids.shape, oracle.SIZES["vocab_size"]), generator=torch.Generator().manual_seed(5)).double()
    out = adapted(input_ids=ids).logits
    (out * weights).sum().backward()
    expected = {
        name.replace(".default", "").replace(".modules_to_save", ""): parameter.grad.numpy()
        for name, parameter in adapted.named_parameters()
        if parameter.requires_grad
    }

    with jax.enable_x64(True):
        config = hf_config.read_config(tmp_path / "base")
        adapter, direction, magnitude = peft.load_adapter(tmp_path / "adapter", config)
        direction, magnitude = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (direction, magnitude))
        base = initial.prepare_base(hf.load_base(tmp_path / "base", config, jnp.float64), adapter)

        def projected(trained):
            found = decoder.logits(config, adapter, base, *trained, jnp.asarray(ids.numpy()))
            return jnp.sum(found * jnp.asarray(weights.numpy())), found

        gradients, found = jax.tree.map(np.asarray, jax.grad(projected, has_aux=True)((direction, magnitude)))

    # transformers computes norms and rotation angles in float32 even in a float64 model: 1e-6 is what that leaves.
    _assert_close(found, out.detach().numpy(), 2e-6)
    compared = set()
    for site in adapter.sites:
        stacks = adapters.get(gradients[0]["layers"], site.path)
        stacks |= adapters.get(gradients[1]["layers"], site.path) if adapter.magnitude else {}
        for leaf, suffix in (("A", "lora_A.weight"), ("B", "lora_B.weight"), ("m", "lora_magnitude_vector.weight")):
            for layer in range(config.num_layers) if leaf in stacks else ():
                name, stack = f"base_model.model.model.layers.{layer}.{site.path}.{suffix}", stacks[leaf][layer]
                rank = site.ranks[layer]
                used = {"A": np.s_[:rank], "B": np.s_[:, :rank], "m": np.s_[: None if rank else 0]}[leaf]
                if rank:
                    _assert_close(stack[used], expected[name], 1e-5)
                    compared.add(name)
                # What fills the stack up is not trained.
                assert np.count_nonzero(stack) == np.count_nonzero(stack[used])
    for name in adapter.whole_modules:
        _assert_close(gradients[0][name]["weight"], expected[WHOLE[name]], 1e-5)
        compared.add(WHOLE[name])
    assert compared == expected.keys()


def _assert_close(found, expected, relative):
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.mark.torch
@pytest.mark.filterwarnings(TIED)
@pytest.mark.parametrize("method", METHODS)
def test_the_trained_parameters_are_counted_as_peft_counts_them(tmp_path, method):
    import oracle

    for tied in (False, True):
        model = oracle.qwen3(attention_bias=True, tie_word_embeddings=tied)
        model.save_pretrained(tmp_path / str(tied))
        config = hf_config.read_config(tmp_path / str(tied))
        groups = adapters.trainable(adapters.resolve(METHODS[method], config), config)
        trained, everything = peft_model(model, METHODS[method]).get_nb_trainable_parameters()
        assert sum(groups.values()) == trained
        assert adapters.count(dense_shapes(config, jnp.float32)) + trained == everything


@pytest.mark.torch
@pytest.mark.filterwarnings(TIED)
@pytest.mark.parametrize("saved", [("lm_head",), ("embed_tokens",), ("lm_head", "embed_tokens")])
def test_tied_embeddings_come_apart_as_in_peft(tmp_path, saved):
    import oracle
    import transformers

    model = oracle.qwen3(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "base")
    settings = AdapterConfig("lora", rank=3, target_modules=("q_proj",), modules_to_save=saved)
    adapted, ids = peft_model(model, settings), oracle.tokens()
    adapted.save_pretrained(tmp_path / "adapter")
    expected = oracle.logits(adapted, ids)
    config = hf_config.read_config(tmp_path / "base")
    loaded = peft.load_adapter(tmp_path / "adapter", config)
    np.testing.assert_allclose(logits_of(tmp_path / "base", ids.numpy(), *loaded), expected, atol=1e-4)
    merged = merging.merge(loaded[0], hf.load_base(tmp_path / "base", config), *loaded[1:])
    hf.save_model(tmp_path / "merged", tmp_path / "base", config, merged, dtype="float32")
    assert not hf_config.read_config(tmp_path / "merged").tie_word_embeddings
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    np.testing.assert_allclose(oracle.logits(again, ids), expected, atol=1e-4)


# Files, both ways


@pytest.mark.torch
@pytest.mark.parametrize(("tied", "left_out"), [(False, None), (True, None), (True, "lm_head"), (True, "embed_tokens")])
def test_embeddings_that_were_saved_beside_the_adapter_take_the_bases_place_as_in_peft(tmp_path, tied, left_out):
    import oracle
    import torch
    from peft import PeftModel

    oracle.qwen3(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    adapted = peft_model(oracle.qwen3(tie_word_embeddings=tied), METHODS["lora"])
    for weight in {adapted.get_input_embeddings().weight, adapted.get_output_embeddings().weight}:
        weight.data += torch.rand(weight.shape, generator=torch.Generator().manual_seed(len(weight))) - 0.5
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if name != WHOLE.get(left_out or "")}, file)
    read = PeftModel.from_pretrained(oracle.qwen3(tie_word_embeddings=tied), tmp_path / "adapter")
    ids = oracle.tokens()
    expected = oracle.logits(read, ids)
    before = oracle.logits(oracle.qwen3(tie_word_embeddings=tied), ids)
    assert np.abs(before - expected).max() > 1
    config = hf_config.read_config(tmp_path / "base")
    loaded = peft.load_adapter(tmp_path / "adapter", config)
    np.testing.assert_allclose(logits_of(tmp_path / "base", ids.numpy(), *loaded), expected, atol=1e-4)
    # Tied embeddings stay tied, in a base under training and in a merged model.
    adapter, direction, magnitude = loaded
    frozen = dataclasses.replace(adapter, whole_modules=(), frozen_modules=adapter.whole_modules)
    base, direction = merging.place_frozen(frozen, hf.load_base(tmp_path / "base", config), direction)
    for again in (merging.merge(adapter, hf.load_base(tmp_path / "base", config), *loaded[1:]),
                  merging.merge(frozen, base, direction, magnitude)):  # fmt: skip
        assert ("lm_head" in again) is not tied
        found = decoder.logits(config, None, again, {}, {}, jnp.asarray(ids.numpy()))
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize("method", METHODS)
def test_peft_files_load_here(tmp_path, method):
    import oracle

    oracle.qwen3().save_pretrained(tmp_path / "base")
    adapted = peft_model(oracle.qwen3(), METHODS[method])
    adapted.save_pretrained(tmp_path / "adapter")
    ids = oracle.tokens()
    loaded = peft.load_adapter(tmp_path / "adapter", hf_config.read_config(tmp_path / "base"))
    assert loaded[0].magnitude == (METHODS[method].method == "dora")
    assert loaded[0].dropout == METHODS[method].dropout
    expected = oracle.logits(adapted, ids)
    assert np.abs(expected - oracle.logits(oracle.qwen3(), ids)).max() > 1  # the adapter does something
    np.testing.assert_allclose(logits_of(tmp_path / "base", ids.numpy(), *loaded), expected, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize("method", METHODS)
def test_peft_loads_what_is_written_without_a_warning(tmp_path, method):
    import oracle
    import peft as oracle_peft

    oracle.qwen3().save_pretrained(tmp_path / "base")
    settings, config = METHODS[method], hf_config.read_config(tmp_path / "base")
    trained = random_adapter(settings, config, hf.load_base(tmp_path / "base", config))
    peft.save_adapter(tmp_path / "adapter", config, trained[0], settings, *trained[1:], base_model_name="base")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", DEPRECATED, FutureWarning)
        adapted = oracle_peft.PeftModel.from_pretrained(oracle.qwen3(), tmp_path / "adapter").eval()
    ids = oracle.tokens()
    expected = oracle.logits(adapted, ids)
    np.testing.assert_allclose(logits_of(tmp_path / "base", ids.numpy(), *trained), expected, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize(
    "settings",
    [AdapterConfig("dora", rank=3, target_modules=r".*\.(1\.self_attn|mlp)\..*"),
     AdapterConfig("lora", rank=3, exclude_modules=r".*\.1\..*"),
     AdapterConfig("lora", rank=3, rank_pattern=((r"1\..*", 0), ("q_proj", 2))),
     AdapterConfig("lora", rank=3, target_modules=("all-linear",), layers_to_transform=(2,))],
)  # fmt: skip
def test_what_peft_has_no_setting_for_is_written_by_name(tmp_path, settings):
    """Its regular expressions must not match what is no linear layer, ranks must not be 0, all-linear takes no layers."""
    import oracle
    import peft as oracle_peft

    oracle.qwen3().save_pretrained(tmp_path / "base")
    config = hf_config.read_config(tmp_path / "base")
    trained = random_adapter(settings, config, hf.load_base(tmp_path / "base", config))
    peft.save_adapter(tmp_path / "a", config, trained[0], settings, *trained[1:], base_model_name=None)
    adapted = oracle_peft.PeftModel.from_pretrained(oracle.qwen3(), tmp_path / "a").eval()
    ids = oracle.tokens()
    expected = oracle.logits(adapted, ids)
    np.testing.assert_allclose(logits_of(tmp_path / "base", ids.numpy(), *trained), expected, atol=1e-4)
    loaded = peft.load_adapter(tmp_path / "a", config)
    assert loaded[0].sites == trained[0].sites
    jax.tree.map(np.testing.assert_array_equal, loaded[1:], trained[1:])


@pytest.mark.torch
@pytest.mark.parametrize("method", METHODS)
def test_the_files_are_those_that_peft_writes(tmp_path, method):
    import oracle

    oracle.qwen3().save_pretrained(tmp_path / "base")
    settings = METHODS[method]
    peft_model(oracle.qwen3(), settings).save_pretrained(tmp_path / "theirs")
    config = hf_config.read_config(tmp_path / "base")
    adapter, *trained = peft.load_adapter(tmp_path / "theirs", config)
    peft.save_adapter(tmp_path / "ours", config, adapter, settings, *trained, base_model_name=None)
    theirs, ours = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("theirs", "ours"))
    assert list(ours) == sorted(ours)
    assert ours.pop("target_modules") == sorted(theirs.pop("target_modules"))
    for settings in (theirs, ours):
        settings.pop("peft_version")
    assert ours.items() >= theirs.items()
    theirs, ours = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "ours"))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        np.testing.assert_array_equal(ours[name], tensor)


@pytest.mark.torch
@pytest.mark.parametrize("targets", ["all-linear", r".*self_attn\.(q|v)_proj", ["self_attn.q_proj", "up_proj"]])
def test_targets_match_as_in_peft(tmp_path, targets):
    import oracle
    import peft as oracle_peft

    oracle.qwen3().save_pretrained(tmp_path / "base")
    wanted = oracle_peft.LoraConfig(r=3, target_modules=targets, exclude_modules=["v_proj"], task_type="CAUSAL_LM")
    oracle_peft.get_peft_model(oracle.qwen3(), wanted).save_pretrained(tmp_path / "adapter")
    adapter, _, _ = peft.load_adapter(tmp_path / "adapter", hf_config.read_config(tmp_path / "base"))
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {".".join(name.split(".")[5:7]) for name in tensors} == set(adapter.targets)
    assert "self_attn.v_proj" not in adapter.targets


@pytest.mark.parametrize("method", METHODS)
def test_save_then_load_is_the_identity(tmp_path, method):
    adapter, *trained = random_adapter(METHODS[method])
    peft.save_adapter(tmp_path / "a", tiny.CONFIG, adapter, METHODS[method], *trained, base_model_name=None)
    again, *loaded = peft.load_adapter(tmp_path / "a", tiny.CONFIG)
    assert again == adapter
    assert jax.tree.structure(loaded) == jax.tree.structure(trained)
    jax.tree.map(np.testing.assert_array_equal, loaded, trained)


def test_the_magnitude_of_older_files_has_a_suffix(adapter_folder):
    expected = peft.load_adapter(adapter_folder, tiny.CONFIG)
    file = adapter_folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name + ".weight" * name.endswith("_vector"): tensor for name, tensor in tensors.items()}, file)
    assert all(name.endswith(".weight") for name in load_file(file))
    jax.tree.map(np.testing.assert_array_equal, peft.load_adapter(adapter_folder, tiny.CONFIG)[1:], expected[1:])


def test_the_name_of_the_adapter_may_stand_in_a_tensors_name(adapter_folder):
    expected = peft.load_adapter(adapter_folder, tiny.CONFIG)
    file = adapter_folder / "adapter_model.safetensors"
    for magnitude in ("lora_magnitude_vector.default", "lora_magnitude_vector.default.weight"):
        named = {name.replace(".weight", ".default.weight").replace("lora_magnitude_vector", magnitude): tensor
                 for name, tensor in load_file(file).items()}  # fmt: skip
        copy = shutil.copytree(adapter_folder, adapter_folder.with_name(magnitude))
        save_file(named, copy / file.name)
        jax.tree.map(np.testing.assert_array_equal, peft.load_adapter(copy, tiny.CONFIG)[1:], expected[1:])


def test_a_folder_is_replaced_only_on_request(adapter_folder):
    adapter, *trained = random_adapter(METHODS["lora"])
    with pytest.raises(InputError, match="not empty"):
        peft.save_adapter(adapter_folder, tiny.CONFIG, adapter, METHODS["lora"], *trained, base_model_name=None)
    assert peft.load_adapter(adapter_folder, tiny.CONFIG)[0].magnitude
    peft.save_adapter(
        adapter_folder, tiny.CONFIG, adapter, METHODS["lora"], *trained, base_model_name=None, replace=True
    )
    assert not peft.load_adapter(adapter_folder, tiny.CONFIG)[0].magnitude
    assert [path.name for path in adapter_folder.parent.iterdir()] == ["a"]


# What is refused


def _change_tensors(folder, change):
    file = folder / "adapter_model.safetensors"
    tensors = dict(load_file(file))
    change(tensors)
    save_file(tensors, file)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def test_tensors_that_do_not_fit_are_listed_at_once(adapter_folder):
    def change(tensors):
        del tensors[f"{Q0}.lora_A.weight"]
        tensors["model.layers.0.self_attn.q_proj.lora_A.weight"] = np.zeros((5, 26), np.float32)
        tensors[f"{Q0}.lora_B.weight"] = np.zeros((5, 60), np.float32)
        tensors[f"{Q0}.lora_magnitude_vector"] = np.zeros(60, np.int8)

    _change_tensors(adapter_folder, change)
    refused(
        adapter_folder,
        r"(?s)4 tensors do not fit.*dtype of .*q_proj\.lora_magnitude_vector: expected F32, BF16, F16, found I8.*"
        r"missing: base_model.*q_proj\.lora_A\.weight.*"
        r"not used by adapter_config\.json: model\.layers\.0\.self_attn\.q_proj\.lora_A\.weight.*"
        r"shape of base_model.*q_proj\.lora_B\.weight: expected \(60, 5\), found \(5, 60\)",
    )


def test_magnitudes_and_use_dora_belong_together(adapter_folder, tmp_path):
    change_config(adapter_folder, use_dora=False)
    refused(adapter_folder, "holds magnitudes, but use_dora is false")
    change_config(adapter_folder, use_dora=True)
    _change_tensors(adapter_folder, lambda t: [t.pop(name) for name in list(t) if name.endswith("vector")])
    refused(adapter_folder, "holds no magnitudes, but use_dora is true")


def test_one_magnitude_missing(adapter_folder):
    _change_tensors(adapter_folder, lambda tensors: tensors.pop(f"{Q0}.lora_magnitude_vector"))
    refused(adapter_folder, r"missing: .*q_proj\.lora_magnitude_vector")


def test_an_adapter_of_another_model(adapter_folder):
    config = DecoderConfig(**(vars(tiny.CONFIG) | {"hidden_size": 28, "num_layers": 3}))
    refused(adapter_folder, r"(?s)missing: .*layers\.2.*shape of.*belong together; the adapter was made for x$", config)
    change_config(adapter_folder, base_model_name_or_path=None)
    refused(adapter_folder, "belong together$", config)


def test_folders_that_are_no_adapter(adapter_folder, model_folder, tmp_path):
    refused(tmp_path / "nowhere", "there is no folder")
    refused(model_folder, r"has no adapter_config\.json; point at a PEFT adapter folder")
    (adapter_folder / "adapter_model.safetensors").rename(adapter_folder / "adapter_model.bin")
    refused(adapter_folder, r"has no adapter_model\.safetensors.*pickled")


def test_an_adapter_in_the_place_of_a_model(adapter_folder):
    with pytest.raises(InputError, match=r"/a is an adapter; .*name its base model, and the folder as the adapter"):
        hf_config.read_config(adapter_folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_factors_that_are_no_numbers(adapter_folder, value):
    copy = shutil.copytree(adapter_folder, adapter_folder.parent / f"diverged-{value}")
    tensors = load_file(copy / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name] = np.full_like(tensors[name], value)
    save_file(tensors, copy / "adapter_model.safetensors", metadata={"format": "pt"})
    refused(copy, r"adapter_model\.safetensors holds NaN or infinity:\n.*B\nthe training that wrote it diverged")


def test_a_truncated_adapter(adapter_folder):
    copy = shutil.copytree(adapter_folder, adapter_folder.parent / "b")
    file = copy / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    refused(copy, r"adapter_model\.safetensors.*fetch it again")
