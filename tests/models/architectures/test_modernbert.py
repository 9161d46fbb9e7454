"""models/architectures/modernbert.py: its config.json, and what only this family has, at texts past 130 tokens.

transformers is the oracle. models/architectures/test_encoder.py has the family among the others, at short texts.
"""

import json
from dataclasses import replace

import encoders
import jax.numpy as jnp
import long_texts
import numpy as np
import pytest
from long_texts import assert_close, far, hidden

from bidora_jax.errors import InputError
from bidora_jax.models.formats import hf, hf_config

LONG = {"local_attention": 128, "max_position_embeddings": 512}
LENGTHS = (151, 137, 67)
"""Of float32, by the largest number."""
PUBLISHED = {
    "attention_bias": False, "bos_token_id": 50281, "classifier_activation": "gelu", "classifier_bias": False,
    "classifier_pooling": "mean", "cls_token_id": 50281, "decoder_bias": True, "deterministic_flash_attn": False,
    "eos_token_id": 50282, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "hidden_activation": "gelu",
    "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 1152, "layer_norm_eps": 1e-05,
    "local_attention": 128, "local_rope_theta": 10000.0, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "modernbert", "norm_bias": False, "norm_eps": 1e-05, "num_attention_heads": 12,
    "num_hidden_layers": 22, "pad_token_id": 50283, "position_embedding_type": "absolute", "sep_token_id": 50282,
    "tie_word_embeddings": True, "vocab_size": 50368,
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return long_texts.saved(lambda: tmp_path_factory.mktemp("m"), "modernbert", **LONG)


# Texts longer than a window


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["modernbert", "modernbert, mean"])
def test_past_a_windows_edge_hidden_states_and_logits_are_those_of_transformers(saved, kind):
    import encoder_oracle

    model, config, base = saved(kind)
    assert config.windows == (None, 64, 64, None, 64)
    texts = encoders.texts(config, LENGTHS)
    batch = encoders.padded(texts, width=157)
    expected, expected_logits = encoder_oracle.outputs(model, batch)
    expected = encoders.of_texts(expected, batch)
    x = hidden(config, base, batch)
    for found, own in zip(encoders.of_texts(x, batch), expected, strict=True):
        assert_close(found, own)
    head = config.head("sequence", encoder_oracle.OUTPUTS)
    assert head.pool == {"modernbert": "first", "modernbert, mean": "mean"}[kind]
    assert_close(encoder_oracle.logits(model, head, x, LENGTHS), expected_logits)
    # Packed in one row, and in chunks, which the edges of a window cross; and one text alone.
    packed = encoders.packed(texts, width=431)
    found = encoders.of_texts(hidden(config, base, packed, attention_chunk=50), packed)
    for some, own in zip(found[:3], expected, strict=True):
        assert_close(some, own)
    alone = encoders.padded(texts[1:2], width=LENGTHS[1])
    assert_close(hidden(config, base, alone)[0], expected[1])


@pytest.mark.torch
def test_a_window_reaches_64_tokens_to_each_side_and_not_65(saved):
    import encoder_oracle

    model, config, base = saved(num_hidden_layers=1, layer_types=["sliding_attention"])
    (text,) = encoders.texts(config, (151,))
    batch, at = encoders.padded([text], width=151), 73
    before, expected = hidden(config, base, batch)[0], encoder_oracle.outputs(model, batch)[0][0]
    for distance in (-65, -64, 64, 65):
        changed = {**text, "tokens": text["tokens"].copy()}
        changed["tokens"][at + distance] = 7 if text["tokens"][at + distance] != 7 else 8
        other = encoders.padded([changed], width=151)
        seen = np.array_equal(hidden(config, base, other)[0, at], before[at])
        assert seen == (abs(distance) == 65), distance
        assert np.array_equal(encoder_oracle.outputs(model, other)[0][0, at], expected[at]) == seen


# Traps


@pytest.mark.torch
@pytest.mark.parametrize(
    "changes",
    [
        {"windows": (None, 63, 63, None, 63)},
        {"windows": (None, 65, 65, None, 65)},
        {"windows": (None, 64, 64, 64, 64)},
        {"thetas": (10_000.0,) * 5},
        {"thetas": (10_000.0, 160_000.0, 160_000.0, 10_000.0, 160_000.0)},
        {"first_norm": True},
        {"activation": "gelu_tanh"},
        {"eps": 1e-3},
    ],
)
def test_what_config_says_shows(saved, changes):
    import encoder_oracle

    model, config, base = saved()
    batch = encoders.padded(encoders.texts(config, LENGTHS), width=157)
    expected = encoders.of_texts(encoder_oracle.outputs(model, batch)[0], batch)[0]
    assert far(encoders.of_texts(hidden(replace(config, **changes), base, batch), batch)[0], expected)


@pytest.mark.torch
def test_the_activation_is_on_the_first_half_of_wi(saved):
    import encoder_oracle

    model, config, base = saved()
    batch = encoders.padded(encoders.texts(config, (29,)), width=29)
    expected = encoder_oracle.outputs(model, batch)[0]
    mlp = base["layers"]["mlp"]
    halves = jnp.split(mlp["Wi"]["weight"], 2, axis=1)
    swapped = {**base["layers"], "mlp": {**mlp, "Wi": {"weight": jnp.concatenate(halves[::-1], axis=1)}}}
    assert_close(hidden(config, base, batch), expected)
    assert far(hidden(config, {**base, "layers": swapped}, batch), expected)


@pytest.mark.torch
def test_the_first_layers_missing_norm_is_ones_that_nothing_reads_and_nobody_writes(saved, tmp_path):
    model, config, base = saved()
    model.save_pretrained(tmp_path / "in")
    norm = base["layers"]["attn_norm"]["weight"]
    np.testing.assert_array_equal(norm[0], np.ones(42))
    np.testing.assert_array_equal(norm[2], model.state_dict()["model.layers.2.attn_norm.weight"])
    other = {**base, "layers": {**base["layers"], "attn_norm": {"weight": norm.at[0].set(7.0)}}}
    batch = encoders.padded(encoders.texts(config, (29,)), width=29)
    np.testing.assert_array_equal(hidden(config, other, batch), hidden(config, base, batch))
    hf.save_model(tmp_path / "out", tmp_path / "in", config, other, dtype="float32")
    names = hf.read_entries(tmp_path / "out").keys()
    assert "model.layers.1.attn_norm.weight" in names and "model.layers.0.attn_norm.weight" not in names
    assert names == {name for name in model.state_dict() if not name.startswith(("head", "classifier"))}


# config.json


def _read(folder, raw):
    (folder / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value != "absent"}))
    return hf_config.read_config(folder)


def test_published_files_are_read_in_both_spellings(tmp_path):
    found = _read(tmp_path, PUBLISHED)
    assert found.windows == tuple(None if layer % 3 == 0 else 64 for layer in range(22))
    assert found.thetas == tuple(160_000.0 if layer % 3 == 0 else 10_000.0 for layer in range(22))
    assert (found.pool, found.norm_first, found.first_norm, found.types) == ("mean", True, False, 0)
    assert not any((found.norm_bias, found.attention_bias, found.mlp_bias, found.head_bias))
    assert (found.eps, found.max_positions, found.dropped_token) == (1e-5, 8192, None)
    old = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta", "layer_norm_eps")
    new = {key: value for key, value in PUBLISHED.items() if key not in old} | {
        "layer_types": ["sliding_attention" if layer % 3 else "full_attention" for layer in range(22)],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }
    assert _read(tmp_path, new) == found
    # The epsilon's usual spelling means nothing here, and one base may be given without the other.
    assert _read(tmp_path, PUBLISHED | {"layer_norm_eps": 0.1}) == found
    granite = new | {"rope_parameters": {"full_attention": {"rope_theta": 80000.0}}}
    assert set(_read(tmp_path, granite).thetas) == {80_000.0, 10_000.0}


@pytest.mark.torch
def test_an_absent_key_means_what_transformers_assumes(tmp_path):
    import transformers

    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    found = _read(tmp_path, {"model_type": "modernbert"} | {name: PUBLISHED[name] for name in sizes})
    oracle = transformers.AutoConfig.from_pretrained(tmp_path)
    kinds = ["full_attention" if window is None else "sliding_attention" for window in found.windows]
    assert kinds == oracle.layer_types and set(found.windows) == {None, oracle.sliding_window}
    assert found.thetas == tuple(oracle.rope_parameters[kind]["rope_theta"] for kind in kinds)
    assert (found.eps, found.max_positions) == (oracle.norm_eps, oracle.max_position_embeddings)
    assert {"first": "cls", "mean": "mean"}[found.pool] == oracle.classifier_pooling
    biases = found.norm_bias, found.attention_bias, found.mlp_bias, found.head_bias
    assert biases == (oracle.norm_bias, oracle.attention_bias, oracle.mlp_bias, oracle.classifier_bias)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_eps": "small"}, "norm_eps: expected a positive number, found 'small'"),
        ({"hidden_activation": None}, "hidden_activation: expected a name"),
        ({"local_attention": 0}, "local_attention: expected a positive integer, found 0"),
        ({"global_attn_every_n_layers": None}, "global_attn_every_n_layers: expected a positive integer"),
        ({"norm_bias": "no"}, "norm_bias: expected true or false"),
        ({"classifier_pooling": "max"}, "classifier_pooling: expected cls or mean, found 'max'"),
        ({"classifier_activation": 3}, "classifier_activation: expected a name, found 3"),
        ({"classifier_activation": "mish"}, r"classifier_activation 'mish' \(only gelu,"),
        ({"layer_types": ["linear_attention"] * 22}, "layer_types: expected a list of full_attention and sliding"),
        ({"layer_types": ["full_attention"]}, r"layer_types of 1 layers \(there are 22\)"),
        ({"rope_parameters": "default"}, "rope_parameters: expected settings for full_attention and sliding"),
        ({"rope_parameters": {"full_attention": {"rope_theta": -1}}}, "rope_theta of full_attention: .* found -1"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, r"rope type 'yarn' \(only 'default'\)"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope type 'linear' \(only 'default'\)"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        _read(tmp_path, PUBLISHED | changes)
