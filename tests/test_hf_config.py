"""config.json in both spellings, and every reason to refuse one."""

import json

import huggingface_hub
import pytest
import tiny

from bidora_jax.errors import InputError
from bidora_jax.models import hf_config
from bidora_jax.models.hf_config import read_config, resolve_folder


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


@pytest.mark.torch
@pytest.mark.parametrize("key", ["head_dim", "attention_bias", "tie_word_embeddings", "use_sliding_window"])
def test_an_absent_key_means_what_transformers_assumes(tmp_path, key):
    import transformers

    config = read_config(_write(tmp_path, **{key: "absent"}))
    oracle = transformers.AutoConfig.from_pretrained(tmp_path)
    found = (config.head_dim, config.qkv_bias, config.tie_word_embeddings)
    assert found == (oracle.head_dim, oracle.attention_bias, oracle.tie_word_embeddings)


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
        ({"rope_theta": "absent"}, "rope_theta: expected a positive number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: expected true or false"),
        ({"head_dim": -2}, "head_dim"),
        ({"rope_scaling": "yarn"}, "rope_scaling: expected an object, found 'yarn'"),
        ({"head_dim": 9}, "odd head_dim 9"),
        ({"head_dim": None}, "hidden_size is no multiple of num_attention_heads"),
        ({"num_key_value_heads": 4}, "no multiple of num_key_value_heads"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope scaling 'linear'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope scaling 'llama3'"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "before it was quantised"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read_config(_write(tmp_path, **changes))


def test_all_reasons_are_listed_at_once(tmp_path):
    with pytest.raises(InputError, match=r"(?s)sliding.*gelu.*quantised"):
        read_config(_write(tmp_path, use_sliding_window=True, hidden_act="gelu", quantization_config={}))


def test_an_unsupported_architecture_is_named_beside_the_supported(tmp_path):
    with pytest.raises(InputError, match=r"model_type 'qwen3_moe'.*did you mean 'qwen3'.*supported: qwen3"):
        read_config(_write(tmp_path, model_type="qwen3_moe"))
    with pytest.raises(InputError, match=r"model_type None.*supported: qwen3"):
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
    assert calls == [("Org/Model-0.6B", {"allow_patterns": list(hf_config.DOWNLOADED)})]
    assert not any(pattern.endswith((".py", ".bin", ".pt")) or pattern == "*" for pattern in hf_config.DOWNLOADED)


def test_a_hub_name_offline_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"(?s)Org/Model.*could not be fetched.*point model\.path at"):
        resolve_folder("Org/Model")
