"""models/formats/hf.py, models/formats/hf_tensors.py, models/formats/tokenizer_files.py: transformers is the oracle for what
model folders mean, bit equality the law for the way there and back."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from runs import contents
from safetensors.numpy import load_file, save_file

from bidora_jax.errors import InputError
from bidora_jax.kernels import quantized
from bidora_jax.kernels.xla_cpu import weights
from bidora_jax.models import decoder
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.base import dense_shapes
from bidora_jax.models.formats import hf, hf_config
from bidora_jax.models.settings import ModelConfig

UNTIED_WITH_BIAS = {"tie_word_embeddings": False, "attention_bias": True}


def _logits(folder, ids, dtype=None):
    config = hf_config.read_config(folder)
    return np.asarray(decoder.logits(config, None, hf.load_base(folder, config, dtype), {}, {}, jnp.asarray(ids)))


def _assert_equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def _assert_same_model(folder, other):
    config = hf_config.read_config(folder)
    assert hf_config.read_config(other) == config
    _assert_equal_trees(hf.load_base(folder, config), hf.load_base(other, config))


def _keep_tensors(folder, change):
    """Rewrites model.safetensors with `change` applied to its dictionary."""
    tensors = dict(load_file(folder / "model.safetensors"))
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy of the tiny model that a test may damage."""
    return shutil.copytree(model_folder, tmp_path / "damaged")


# What the files mean


@pytest.mark.torch
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spelling", ["rope_theta", "rope_parameters"])
def test_logits_are_those_of_transformers(tmp_path, tied, bias, spelling):
    import oracle

    model = oracle.qwen3(tie_word_embeddings=tied, attention_bias=bias)
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    if spelling == "rope_theta":  # as transformers 4 writes it
        settings |= {"rope_theta": settings.pop("rope_parameters")["rope_theta"], "rope_scaling": None}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert spelling in settings
    ids, lengths = oracle.tokens(), np.array([23, 17, 5])
    mask = np.arange(23)[None, :] < lengths[:, None]
    import torch

    expected = oracle.logits(model, ids, torch.from_numpy(mask).long())
    # 1e-4 is float32's share: logits reach 10 and pass through 3 layers; a wrong theta moves them by more than 0.1.
    np.testing.assert_allclose(_logits(tmp_path, ids.numpy())[mask], expected[mask], atol=1e-4)


@pytest.mark.torch
def test_the_table_names_what_transformers_writes(tmp_path):
    import oracle

    for flags in (UNTIED_WITH_BIAS, {"tie_word_embeddings": True}):
        model = oracle.qwen3(**flags)
        model.save_pretrained(tmp_path)
        expected = load_file(tmp_path / "model.safetensors")
        config = hf_config.read_config(tmp_path)
        assert hf.name_table(config).keys() == expected.keys()
        base = hf.load_base(tmp_path, config)
        assert len(set(hf.name_table(config).values())) == len(expected)
        for name, (path, layer) in hf.name_table(config).items():
            leaf = base
            for step in path:
                leaf = leaf[step]
            np.testing.assert_array_equal(leaf if layer is None else leaf[layer], expected[name])


def test_layers_are_numbers_and_not_text():
    # With more than ten layers "10" sorts before "2".
    config = DecoderConfig(**(vars(tiny.CONFIG) | {"num_layers": 12}))
    places = [place.layer for place in hf.name_table(config).values() if place.path[-2] == "q_proj"]
    assert places == list(range(12))
    assert hf.name_table(config)["model.layers.10.mlp.up_proj.weight"].layer == 10


@pytest.mark.torch
def test_shards_load_as_the_single_file(tmp_path):
    import oracle

    model = oracle.qwen3(**UNTIED_WITH_BIAS)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    assert not (tmp_path / "many" / "model.safetensors").exists()
    _assert_same_model(tmp_path / "one", tmp_path / "many")


def test_the_base_has_the_announced_shapes_and_the_dtype_of_the_files(model_folder):
    config = hf_config.read_config(model_folder)
    assert hf.source_dtype(model_folder) == jnp.float32
    for dtype in (None, jnp.bfloat16):
        base = hf.load_base(model_folder, config, dtype)
        announced = dense_shapes(config, dtype or jnp.float32)
        found = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), base, is_leaf=quantized.is_packed)
        assert found == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), announced)


def test_narrowing_while_loading_rounds_to_nearest(model_folder):
    config = hf_config.read_config(model_folder)
    wide = hf.load_base(model_folder, config)
    narrow = hf.load_base(model_folder, config, jnp.bfloat16)
    stack = narrow["layers"]["mlp"]["up_proj"]["weight"]
    assert isinstance(stack, weights.Bits)  # on a CPU, where the tests run

    def plain(leaf):
        return jax.lax.bitcast_convert_type(leaf.bits, leaf.dtype) if isinstance(leaf, weights.Bits) else leaf

    _assert_equal_trees(
        jax.tree.map(plain, narrow, is_leaf=quantized.is_packed),
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), wide),
    )


def test_a_folder_that_was_saved_from_automodel(folder, model_folder, tmp_path):
    def bare(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    _keep_tensors(folder, bare)
    settings = json.loads((folder / "config.json").read_text()) | {"architectures": ["Qwen3Model"]}
    (folder / "config.json").write_text(json.dumps(settings))
    _assert_same_model(folder, model_folder)
    hf.save_model(tmp_path / "out", folder, tiny.CONFIG, hf.load_base(folder, tiny.CONFIG), dtype="float32")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    _assert_same_model(tmp_path / "out", model_folder)
    # Beside the usual names such a one is still a stray tensor.
    shutil.copyfile(model_folder / "model.safetensors", folder / "model.safetensors")
    _keep_tensors(folder, lambda tensors: tensors.update({"norm.weight": np.zeros(26, np.float32)}))
    _refused(folder, "not part of this model: norm.weight")


@pytest.mark.torch
def test_what_automodel_saves_is_what_transformers_reads_of_it(tmp_path):
    import oracle
    import transformers

    oracle.qwen3(tie_word_embeddings=True).model.save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert not any(name.startswith("model.") for name in load_file(tmp_path / "model.safetensors"))
    ids = oracle.tokens()
    np.testing.assert_allclose(_logits(tmp_path, ids.numpy()), oracle.logits(model, ids), atol=1e-4)


def test_rotary_buffers_of_old_checkpoints_are_ignored(folder, model_folder):
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(5, np.float32)}
    _keep_tensors(folder, lambda tensors: tensors.update(buffer))
    _assert_same_model(folder, model_folder)
    hf.save_model(folder.parent / "out", folder, tiny.CONFIG, hf.load_base(folder, tiny.CONFIG), dtype="float32")
    assert not buffer.keys() & load_file(folder.parent / "out" / "model.safetensors").keys()


# There and back


@pytest.mark.parametrize("limit", [5_000_000_000, 20_000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_load_save_load_is_the_identity(model_folder, tmp_path, dtype, limit):
    config = hf_config.read_config(model_folder)
    base = hf.load_base(model_folder, config, jnp.dtype(dtype))
    hf.save_model(tmp_path / "out", model_folder, config, base, dtype=dtype, max_shard_bytes=limit)
    assert hf_config.read_config(tmp_path / "out") == config
    assert hf.source_dtype(tmp_path / "out") == jnp.dtype(dtype)
    _assert_equal_trees(hf.load_base(tmp_path / "out", config), base)
    assert (limit < 1e9) == (tmp_path / "out" / "model.safetensors.index.json").exists()


@pytest.mark.torch
@pytest.mark.parametrize("limit", [5_000_000_000, 20_000])
@pytest.mark.parametrize("flags", [UNTIED_WITH_BIAS, {"tie_word_embeddings": True}])
def test_transformers_loads_what_is_written(tmp_path, flags, limit):
    import oracle
    import transformers

    model = oracle.qwen3(**flags)
    model.save_pretrained(tmp_path / "source")
    config = hf_config.read_config(tmp_path / "source")
    base = hf.load_base(tmp_path / "source", config)
    hf.save_model(tmp_path / "out", tmp_path / "source", config, base, dtype="float32", max_shard_bytes=limit)
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    np.testing.assert_array_equal(oracle.logits(loaded, oracle.tokens()), oracle.logits(model, oracle.tokens()))


@pytest.mark.torch
@pytest.mark.parametrize("spelling", ["dtype", "torch_dtype", None])
def test_the_written_dtype_is_the_one_transformers_finds(tmp_path, spelling):
    import oracle
    import torch
    import transformers

    source = tmp_path / "source"
    oracle.qwen3().save_pretrained(source)
    settings = json.loads((source / "config.json").read_text())
    settings.pop("dtype")
    (source / "config.json").write_text(json.dumps(settings | ({spelling: "float32"} if spelling else {})))
    config = hf_config.read_config(source)
    hf.save_model(tmp_path / "out", source, config, hf.load_base(source, config), dtype="bfloat16")
    assert json.loads((tmp_path / "out" / "config.json").read_text())[spelling or "torch_dtype"] == "bfloat16"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == torch.bfloat16


def test_shards_respect_the_limit_and_the_index_adds_up(model_folder, tmp_path):
    config = hf_config.read_config(model_folder)
    out, limit = tmp_path / "out", 20_000
    hf.save_model(out, model_folder, config, hf.load_base(model_folder, config), dtype="float32", max_shard_bytes=limit)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert files == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
    held = {file: load_file(out / file) for file in files}
    assert {name: file for file, tensors in held.items() for name in tensors} == index["weight_map"]
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in held.values()]
    assert max(sizes) <= limit
    assert sum(sizes) == index["metadata"]["total_size"] == 4 * 16_940
    assert len(files) == 4  # no tensor is larger than 10,088 bytes, so 67,760 bytes fill four times 20,000


def test_everything_but_the_weights_comes_from_the_source(folder, tmp_path):
    extra = {"generation_config.json": "{}", "chat_template.jinja": "{{ x }}", "merges.txt": "a b", "vocab.json": "{}"}
    extra |= {"chat_template.json": "{}", "additional_chat_templates/tool_use.jinja": "{{ tools }}"}
    (folder / "additional_chat_templates").mkdir()
    for name, text in extra.items():
        (folder / name).write_text(text)
    (folder / "modeling_evil.py").write_text("")
    (folder / "additional_chat_templates" / "evil.py").write_text("")
    settings = json.loads((folder / "config.json").read_text()) | {"quantization_config": None, "kept": [1]}
    (folder / "config.json").write_text(json.dumps(settings))
    hf.save_model(tmp_path / "out", folder, tiny.CONFIG, hf.load_base(folder, tiny.CONFIG), dtype="bfloat16")
    written = {path for path, content in contents(tmp_path / "out").items() if content is not None}
    assert written == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", *extra}
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    settings.pop("quantization_config")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == settings | {"dtype": "bfloat16"}


def test_a_tied_model_that_ships_its_head_keeps_shipping_it(folder, model_folder, tmp_path):
    _keep_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}))
    _assert_same_model(folder, model_folder)
    changed = jax.tree.map(lambda leaf: leaf + 1, hf.load_base(folder, tiny.CONFIG))
    hf.save_model(tmp_path / "out", folder, tiny.CONFIG, changed, dtype="float32")
    written = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(written["lm_head.weight"], changed["embed_tokens"]["weight"])
    hf.save_model(tmp_path / "plain", model_folder, tiny.CONFIG, changed, dtype="float32")
    assert "lm_head.weight" not in load_file(tmp_path / "plain" / "model.safetensors")


def test_a_failing_write_leaves_nothing(model_folder, tmp_path):
    base = hf.load_base(model_folder, tiny.CONFIG)
    broken = {**base, "norm": {"weight": "no array"}}
    with pytest.raises(AttributeError):
        hf.save_model(tmp_path / "out", model_folder, tiny.CONFIG, broken, dtype="float32")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_not_overwritten(folder):
    base, before = hf.load_base(folder, tiny.CONFIG), sorted(folder.iterdir())
    with pytest.raises(InputError, match="not empty"):
        hf.save_model(folder, folder, tiny.CONFIG, base, dtype="float32")
    assert sorted(folder.iterdir()) == before


# What is refused


def _refused(folder, message):
    with pytest.raises(InputError, match=message):
        hf.load_base(folder, hf_config.read_config(folder))


def test_every_tensor_that_does_not_fit_is_listed_before_any_is_read(folder):
    def change(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((38, 26), np.float32)
        q_proj = tensors["model.layers.0.self_attn.q_proj.weight"]
        tensors["model.layers.0.self_attn.q_proj.weight"] = np.ascontiguousarray(q_proj.T)

    _keep_tensors(folder, change)
    _refused(
        folder,
        r"(?s)3 tensors do not fit.*missing: model\.layers\.1\.mlp\.up_proj\.weight.*"
        r"not part of this model: model\.layers\.2\.mlp\.up_proj\.weight.*"
        r"shape of model\.layers\.0\.self_attn\.q_proj\.weight: expected \(60, 26\), found \(26, 60\).*same model",
    )


def test_the_list_covers_all_shards(model_folder, tmp_path):
    base = hf.load_base(model_folder, tiny.CONFIG)
    out = tmp_path / "out"
    hf.save_model(out, model_folder, tiny.CONFIG, base, dtype="float32", max_shard_bytes=20_000)
    settings = json.loads((out / "config.json").read_text()) | {"attention_bias": True, "num_hidden_layers": 1}
    (out / "config.json").write_text(json.dumps(settings))
    _refused(out, r"(?s)missing: model\.layers\.0\.self_attn\.q_proj\.bias.*not part of this model: model\.layers\.1\.")


def test_an_untied_model_needs_its_head(folder):
    settings = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(settings))
    _refused(folder, r"missing: lm_head\.weight")


def test_a_truncated_file(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    _refused(folder, r"model\.safetensors has \d+ bytes where its header asks for \d+; .*fetch it again")


def _sharded(model_folder, tmp_path):
    base = hf.load_base(model_folder, tiny.CONFIG)
    hf.save_model(tmp_path / "out", model_folder, tiny.CONFIG, base, dtype="float32", max_shard_bytes=20_000)
    return tmp_path / "out"


def test_a_shard_that_is_not_there(model_folder, tmp_path):
    out = _sharded(model_folder, tmp_path)
    (out / "model-00002-of-00004.safetensors").unlink()
    _refused(out, r"(?s)shards that are not there.*model-00002-of-00004\.safetensors")


def test_a_shard_without_the_tensor_that_the_index_puts_there(model_folder, tmp_path):
    out = _sharded(model_folder, tmp_path)
    shutil.copyfile(out / "model-00001-of-00004.safetensors", out / "model-00002-of-00004.safetensors")
    _refused(out, r"(?s)tensors that their shards lack.* in model-00002-of-00004\.safetensors")


def test_a_stray_tensor_that_the_index_does_not_name(model_folder, tmp_path):
    out = _sharded(model_folder, tmp_path)
    file = out / "model-00002-of-00004.safetensors"
    save_file(load_file(file) | {"stray": np.zeros(3, np.float32)}, file)
    _refused(out, "not part of this model: stray")


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": {"x": "../../y.safetensors"}}', '{"weight_map": [1]}'])
def test_a_broken_index(model_folder, tmp_path, index):
    out = _sharded(model_folder, tmp_path)
    (out / "model.safetensors.index.json").write_text(index)
    _refused(out, r"index\.json (is not JSON|has no weight_map of file names)")


def test_a_folder_without_weights_or_with_pickled_ones(folder):
    (folder / "model.safetensors").unlink()
    _refused(folder, r"has no model\.safetensors and no model\.safetensors\.index\.json; point model\.path at")
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    _refused(folder, "pickled weights are not read: load the model with transformers and save it")


def test_integer_tensors(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    _keep_tensors(folder, lambda tensors: tensors.update({name: tensors[name].astype(np.int8)}))
    _refused(folder, rf"{name}: 8-bit codes without their scales")
    _keep_tensors(folder, lambda tensors: tensors.update({name: tensors[name].astype(np.int16)}))
    _refused(folder, r"dtype I16; expected F32, BF16, F16")


def _norms_apart(folder, dtype=None):
    """Makes the folder's norms float16; config.json names `dtype`, in both spellings, or none."""
    half = {"model.norm.weight": np.ones(26, np.float16)}
    _keep_tensors(folder, lambda tensors: tensors.update(half))
    settings = json.loads((folder / "config.json").read_text())
    settings.pop("dtype")
    (folder / "config.json").write_text(json.dumps(settings | (dtype or {})))


@pytest.mark.parametrize(
    "named", [{"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}, {"torch_dtype": "torch.bfloat16"}]
)
def test_of_mixed_dtypes_config_json_decides(folder, named):
    _norms_apart(folder, named)
    found = hf.load_base(folder, hf_config.read_config(folder))
    assert {leaf.dtype for leaf in jax.tree.leaves(found, is_leaf=quantized.is_packed)} == {jnp.dtype(jnp.bfloat16)}
    assert hf.source_dtype(folder) == hf.source_dtype(folder, "float32") == jnp.bfloat16


def test_of_mixed_dtypes_that_nothing_decides_the_message_names_the_flag(folder):
    _norms_apart(folder)
    said = r"mixes F16 and F32, and its config\.json names no dtype: say which one the model has with {} float16 or float32"
    _refused(folder, said.format("--model.dtype"))
    config = hf_config.read_config(folder)
    with pytest.raises(InputError, match=said.format("--dtype")):
        hf.load(ModelConfig(), folder, config, flag="--dtype")
    assert hf.load_base(folder, config, "float32")["norm"]["weight"].dtype == jnp.float32
    assert hf.source_dtype(folder, "float32") == jnp.float32


@pytest.mark.parametrize("listed", [None, 2, [2, 3], [3, 2, 9]])
def test_tokens_that_end_an_answer_are_listed(folder, listed):
    if listed is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": listed, "top_k": 5}))
    base = hf.load_base(folder, tiny.CONFIG)
    (out := folder.parent / "out").mkdir()
    hf.write_model(out, folder, tiny.CONFIG, base, dtype="float32", ends=[2, 9])
    found = json.loads((out / "generation_config.json").read_text())
    first = listed if isinstance(listed, list) else [token for token in [listed] if token is not None]
    assert found["eos_token_id"] == [*first, *(token for token in (2, 9) if token not in first)]
    assert listed is None or found["top_k"] == 5
