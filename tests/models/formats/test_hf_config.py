"""config.json in both spellings, and every reason to refuse one: also models/architectures/decoder_family.py."""

import json
import math

import huggingface_hub
import pytest
import tiny

from bidora_jax.errors import InputError
from bidora_jax.models.architectures import decoder_family, families
from bidora_jax.models.architectures.rope import RopeScaling
from bidora_jax.models.formats import hf_config
from bidora_jax.models.formats.hf_config import read_config, resolve_folder


def _write(folder, **changes):
    raw = tiny.hf_config(tiny.CONFIG) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value != "absent"}))
    return folder


def test_reads_the_old_spelling(tmp_path):
    assert read_config(_write(tmp_path, rope_scaling=None)) == tiny.CONFIG


def test_reads_the_new_spelling(tmp_path):
    rope = {"rope_type": "default", "rope_theta": 1e4}
    assert read_config(_write(tmp_path, rope_theta="absent", rope_parameters=rope)) == tiny.CONFIG


def test_the_new_spelling_wins_where_a_file_has_both(tmp_path):
    assert read_config(_write(tmp_path, rope_theta=3.0, rope_parameters={"rope_theta": 1e4})) == tiny.CONFIG


def test_attention_bias_sets_both_biases(tmp_path):
    config = read_config(_write(tmp_path, attention_bias=True))
    assert (config.qkv_bias, config.o_bias) == (True, True)


def test_what_transformers_4_wrote_outside_and_inside_of_rope_scaling_counts_as_there(tmp_path):
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    # transformers 5 takes rope_scaling whole where a file has both.
    config = read_config(_write(tmp_path, rope_scaling=scaling, rope_parameters={"rope_type": "default"}))
    gain = 0.1 * math.log(4) + 1
    assert config.rope_scaling == RopeScaling("yarn", 4.0, length=64, slow=1.0, fast=32.0, whole=True, gain=gain)
    assert config.rope_theta == 1e4
    scaling = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
    for length, outside in ((256, {}), (99, {"original_max_position_embeddings": 99})):  # 256: the model's own context
        config = read_config(_write(tmp_path, rope_parameters=scaling, **outside))
        assert config.rope_scaling == RopeScaling("llama3", 8.0, length=length, slow=1.0, fast=4.0)


# config.json as published, less what only names or generates.
PUBLISHED = {
    "Llama-2-7b": {
        "model_type": "llama", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
        "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": None, "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "Llama-3.2-1B": {
        "model_type": "llama", "attention_bias": False, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 32,
        "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 128256,
    },
    "Mistral-7B-v0.1": {
        "model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "Qwen2.5-0.5B": {
        "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
        "max_position_embeddings": 32768, "max_window_layers": 24, "num_attention_heads": 14, "num_hidden_layers": 24,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 32768,
        "tie_word_embeddings": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
    },
}  # fmt: skip
LLAMA32 = RopeScaling("llama3", 32.0, length=8192, slow=1.0, fast=4.0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Llama-2-7b", {"head_dim": 128, "rope_theta": 1e4, "rope_scaling": None, "window": None, "qkv_bias": False}),
        ("Llama-3.2-1B", {"head_dim": 64, "rope_theta": 5e5, "rope_scaling": LLAMA32, "window": None, "o_bias": False}),
        ("Mistral-7B-v0.1", {"head_dim": 128, "rope_theta": 1e4, "rope_scaling": None, "window": 4096}),
        ("Qwen2.5-0.5B", {"head_dim": 64, "rope_theta": 1e6, "window": None, "qkv_bias": True, "o_bias": False}),
    ],
)
def test_published_files_are_read(tmp_path, name, expected):
    raw = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    found = vars(read_config(tmp_path))
    expected |= {field: raw[key] for key, field in decoder_family.SIZES.items()}
    expected |= {key: raw[key] for key in ("rms_norm_eps", "tie_word_embeddings")}
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("family", "changes", "window"),
    [
        ("mistral", {}, 4096),
        ("mistral", {"sliding_window": 9}, 9),
        ("mistral", {"sliding_window": 9, "layer_types": ["sliding_attention"] * 2}, 9),
        ("mistral", {"sliding_window": None}, None),
        ("llama", {"sliding_window": 9}, None),
        ("qwen2", {"sliding_window": 9}, None),
        ("qwen2", {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 0}, 9),
        ("qwen2", {"sliding_window": 9, "use_sliding_window": True}, None),  # from layer 28 on, of 2
        ("qwen3", {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 2}, None),
        ("qwen3", {"sliding_window": None, "use_sliding_window": True, "max_window_layers": 0}, None),
    ],
)
def test_a_window_is_read_as_each_family_means_it(tmp_path, family, changes, window):
    assert read_config(_write(tmp_path, model_type=family, **changes)).window == window


def test_biases_are_what_each_family_has(tmp_path):
    found = {
        family: [
            (config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm)
            for biased in (True, False)
            for config in [read_config(_write(tmp_path, model_type=family, attention_bias=biased, mlp_bias=biased))]
        ]
        for family in families.DECODERS
    }
    assert found == {
        "llama": [(True, True, True, False), (False, False, False, False)],
        "mistral": [(False, False, False, False)] * 2,
        "qwen2": [(True, False, False, False)] * 2,
        "qwen3": [(True, True, False, True), (False, False, False, True)],
    }


@pytest.mark.torch
@pytest.mark.parametrize("family", families.DECODERS)
def test_an_absent_key_means_what_transformers_assumes(tmp_path, family):
    import transformers

    needed = {"model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"}
    absent = dict.fromkeys(tiny.hf_config(tiny.CONFIG).keys() - needed, "absent")
    changes = {"model_type": family, "num_attention_heads": 64, "hidden_size": 384}
    config = read_config(_write(tmp_path, **(absent | changes)))
    oracle = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.num_kv_heads, config.head_dim) == (
        oracle.num_key_value_heads,
        getattr(oracle, "head_dim", 384 // 64),
    )
    assert config.rope_theta == oracle.rope_parameters["rope_theta"]
    assert config.rope_scaling is None and oracle.rope_parameters["rope_type"] == "default"
    assert config.window == (oracle.sliding_window if hasattr(oracle, "sliding_window") else None)
    for key in ("rms_norm_eps", "tie_word_embeddings", "max_position_embeddings"):
        assert getattr(config, key) == getattr(oracle, key)
    for flag, key in (("qkv_bias", "attention_bias"), ("mlp_bias", "mlp_bias")):
        assert getattr(config, flag) == getattr(oracle, key, family == "qwen2" and flag == "qkv_bias")


@pytest.mark.torch
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])  # Mistral's config of transformers 5 wants a number
def test_null_is_no_grouping(tmp_path, family):
    import transformers

    _write(tmp_path, model_type=family, num_key_value_heads=None, hidden_size=24)
    assert read_config(tmp_path).num_kv_heads == transformers.AutoConfig.from_pretrained(tmp_path).num_key_value_heads


def test_head_dim_null_divides_the_hidden_size(tmp_path):
    assert read_config(_write(tmp_path, head_dim=None, hidden_size=24)).head_dim == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "absent"}, "hidden_size: expected a positive integer, found no such key"),
        ({"hidden_size": "26"}, "hidden_size: expected a positive integer, found '26'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected a positive integer, found 0"),
        ({"vocab_size": True}, "vocab_size"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"rope_theta": None}, "rope_theta: expected a positive number there or in rope_parameters, found None"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta: expected a positive number"),
        ({"mlp_bias": 1}, "mlp_bias: expected true or false, found 1"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: expected true or false"),
        ({"head_dim": -2}, "head_dim"),
        ({"rope_scaling": "yarn"}, "rope_scaling: expected an object, found 'yarn'"),
        ({"head_dim": 9}, "odd head_dim 9"),
        ({"head_dim": None}, "hidden_size is no multiple of num_attention_heads"),
        ({"num_key_value_heads": 4}, "no multiple of num_key_value_heads"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            r"rope scaling 'dynamic' \(computed are default, linear",
        ),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope scaling 'longrope'"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "for each type of layer"),
        ({"use_sliding_window": True, "max_window_layers": 1}, "use_sliding_window from layer 1 of 2 on"),
        (
            {"use_sliding_window": True, "sliding_window": 0},
            "sliding_window: expected a positive integer or null, found 0",
        ),
        ({"max_window_layers": None}, "max_window_layers"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types other than full_attention"),
        ({"model_type": "mistral", "layer_types": ["full_attention"] * 2}, "layer_types other than sliding_attention"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "before it was quantised"),
        ({"num_hidden_layers": 10**7}, r"num_hidden_layers: 10000000 \(at most 10,000\)"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers: 10{30}"),
        ({"hidden_size": 10**12}, "hidden_size: 10{12}"),
        ({"model_type": []}, r"model_type: expected a text, found \[\]"),
        ({"rope_scaling": {"rope_type": {}, "factor": 2.0}}, "rope scaling {}"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read_config(_write(tmp_path, **changes))


def test_all_reasons_are_listed_at_once(tmp_path):
    wrong = {"rope_scaling": {"type": "dynamic"}, "layer_types": ["linear_attention"] * 2, "hidden_act": "gelu"}
    with pytest.raises(InputError, match=r"(?s)dynamic.*layer_types.*gelu.*quantised"):
        read_config(_write(tmp_path, **wrong, quantization_config={}))


def test_an_unsupported_architecture_is_named_beside_the_supported(tmp_path):
    with pytest.raises(
        InputError, match=r"model_type 'qwen3_moe'.*did you mean 'qwen3'.*supported: llama, mistral, qwen2, qwen3"
    ):
        read_config(_write(tmp_path, model_type="qwen3_moe"))
    with pytest.raises(InputError, match=r"model_type None.*supported: llama, mistral, qwen2, qwen3"):
        read_config(_write(tmp_path, model_type="absent"))


def test_a_folder_without_config_and_no_folder_at_all(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json; point model\.path at"):
        read_config(tmp_path)
    with pytest.raises(InputError, match=r"there is no folder .*; point model\.path at"):
        read_config(tmp_path / "nowhere")


def test_an_existing_folder_is_taken_as_it_is(tmp_path):
    assert resolve_folder(tmp_path) == tmp_path
    assert resolve_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("path", ["./x", "x", "/no/where", "../no/where", "a/b/c", "~/nowhere/x", "local/x", "a/b c"])
def test_a_local_path_that_does_not_exist_never_reaches_the_hub(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(InputError, match="there is no folder"):
        resolve_folder(path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="is a file"):
        resolve_folder(tmp_path / "x")


def test_a_hub_name_fetches_weights_and_text_and_nothing_that_runs(tmp_path, monkeypatch):
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: calls.append((name, options)) or str(tmp_path)
    )
    assert resolve_folder("Org/Model-0.6B") == tmp_path
    patterns = {"allow_patterns": list(hf_config.DOWNLOADED), "ignore_patterns": list(hf_config.NOT_DOWNLOADED)}
    assert calls == [("Org/Model-0.6B", patterns)]
    files = ["model-00001-of-00002.safetensors", "consolidated.safetensors", "original/params.json", "tokenizer.json"]
    kept = huggingface_hub.utils.filter_repo_objects(files, **patterns)
    assert list(kept) == ["model-00001-of-00002.safetensors", "tokenizer.json"]
    assert not any(pattern.endswith((".py", ".bin", ".pt")) or pattern == "*" for pattern in hf_config.DOWNLOADED)


def test_a_hub_name_offline_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"(?s)Org/Model.*could not be fetched.*point model\.path at"):
        resolve_folder("Org/Model")
