"""models/architectures/deberta.py: config.json of versions 2 and 3, and what only this family has, at texts past 130 tokens.

transformers is the oracle. models/architectures/test_encoder.py has the family among the others, at short texts.
"""

import json
from dataclasses import replace

import encoders
import jax
import jax.numpy as jnp
import long_texts
import numpy as np
import pytest
from long_texts import assert_close, far, hidden

from bidora_jax.errors import InputError
from bidora_jax.kernels.disentangled import rows_by_difference
from bidora_jax.models import encoder
from bidora_jax.models.architectures.architecture import endings
from bidora_jax.models.compute import Compute
from bidora_jax.models.formats import hf, hf_config

# Version 3's own numbers: half of the 256 buckets hold one distance each, and the text goes past them.
LONG = {"position_buckets": 256, "max_position_embeddings": 512}
LENGTHS = (151, 137, 67)
"""Of float32, by the largest number."""
PUBLISHED = {
    "v3-base": {
        "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768,
        "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-07, "max_position_embeddings": 512,
        "max_relative_positions": -1, "model_type": "deberta-v2", "norm_rel_ebd": "layer_norm",
        "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0, "pooler_dropout": 0,
        "pooler_hidden_act": "gelu", "pooler_hidden_size": 768, "pos_att_type": "p2c|c2p", "position_biased_input": False,
        "position_buckets": 256, "relative_attention": True, "share_att_key": True, "type_vocab_size": 0,
        "vocab_size": 128100,
    },
    "v2-xlarge": {
        "attention_head_size": 64, "attention_probs_dropout_prob": 0.1, "conv_act": "gelu", "conv_kernel_size": 3,
        "hidden_act": "gelu", "hidden_size": 1536, "initializer_range": 0.02, "intermediate_size": 6144,
        "layer_norm_eps": 1e-07, "max_position_embeddings": 512, "max_relative_positions": -1,
        "model_type": "deberta-v2", "norm_rel_ebd": "layer_norm", "num_attention_heads": 24, "num_hidden_layers": 24,
        "pad_token_id": 0, "pooler_hidden_act": "gelu", "pooler_hidden_size": 1536, "pos_att_type": "p2c|c2p",
        "position_biased_input": False, "position_buckets": 256, "relative_attention": True, "share_att_key": True,
        "type_vocab_size": 0, "vocab_size": 128100,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return long_texts.saved(lambda: tmp_path_factory.mktemp("d"), "deberta-v3", **LONG)


# Texts past the first half of the buckets


@pytest.mark.torch
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("deberta-v3", {}),
        ("deberta-v3", {"position_buckets": 32, "max_relative_positions": 211}),
        ("deberta-v3", {"position_buckets": -1, "max_relative_positions": 48}),
        ("deberta-v2", {}),
        ("deberta-v2", {"pos_att_type": ["p2c"], "conv_kernel_size": 5, "conv_act": "tanh"}),
    ],
)
def test_past_the_wide_buckets_hidden_states_and_logits_are_those_of_transformers(saved, kind, changes):
    import encoder_oracle

    model, config, base = saved(kind, **changes)
    texts = encoders.texts(config, LENGTHS)
    batch = encoders.padded(texts, width=157)
    expected, expected_logits = encoder_oracle.outputs(model, batch)
    expected = encoders.of_texts(expected, batch)
    x = hidden(config, base, batch)
    for found, own in zip(encoders.of_texts(x, batch), expected, strict=True):
        assert_close(found, own)
    head = config.head("sequence", encoder_oracle.OUTPUTS)
    assert_close(encoder_oracle.logits(model, head, x, LENGTHS), expected_logits)
    # Packed in one row, in chunks that don't end where documents do; and one text alone.
    packed = encoders.packed(texts, width=431)
    found = encoders.of_texts(hidden(config, base, packed, attention_chunk=50), packed)
    for some, own in zip(found[:3], expected, strict=True):
        assert_close(some, own)
    alone = encoders.padded(texts[1:2], width=LENGTHS[1])
    assert_close(hidden(config, base, alone)[0], expected[1])


@pytest.mark.torch
def test_a_text_longer_than_512_is_computed_as_transformers_does(saved):
    import encoder_oracle

    model, config, base = saved()
    (text,) = encoders.texts(config, (601,))
    batch = encoders.padded([text], width=601)
    assert_close(hidden(config, base, batch, attention_chunk=256), encoder_oracle.outputs(model, batch)[0])


# Traps


@pytest.mark.torch
@pytest.mark.parametrize(
    ("relative", "changes"),
    [
        ({"buckets": None}, {}),
        ({"buckets": 252}, {}),
        ({"most": 300}, {}),
        ({"terms": ("c2p",)}, {}),
        ({"normed": False}, {}),
        ({}, {"eps": 1e-3}),
        ({}, {"activation": "gelu_tanh"}),
    ],
)
def test_what_config_says_shows(saved, relative, changes):
    import encoder_oracle

    model, config, base = saved()
    batch = encoders.padded(encoders.texts(config, LENGTHS), width=157)
    expected = encoders.of_texts(encoder_oracle.outputs(model, batch)[0], batch)[0]
    wrong = replace(config, relative=replace(config.relative, **relative), **changes)
    assert far(encoders.of_texts(hidden(wrong, base, batch), batch)[0], expected)


def test_distances_past_128_share_rows_and_128_does_not(saved):
    config = encoders.config("deberta-v3")
    rows = rows_by_difference(512, 256, buckets=256, most=512)
    by_distance = {distance: rows[512 - distance] for distance in (-132, -131, -128, 0, 127, 128, 129, 131, 132, 511)}
    assert by_distance == {
        -132: 125, -131: 125, -128: 128, 0: 256, 127: 383, 128: 384, 129: 385, 131: 387, 132: 387, 511: 511
    }  # fmt: skip
    assert config.relative.half == 12 and config.max_positions == 2**15


@pytest.mark.torch
def test_the_convolution_takes_the_embeddings_and_not_the_neighbours_text(saved):
    import encoder_oracle

    model, config, base = saved("deberta-v2")
    batch = encoders.padded(encoders.texts(config, (29, 11)), width=31)
    expected = encoders.of_texts(encoder_oracle.outputs(model, batch)[0], batch)
    assert far(encoders.of_texts(hidden(replace(config, convolution=None), base, batch), batch)[0], expected[0])
    packed = {"tokens": jnp.concatenate([batch["tokens"][0, :29], batch["tokens"][1, :11]])[None]}
    packed["types"] = jnp.concatenate([batch["types"][0, :29], batch["types"][1, :11]])[None]
    packed["segments"] = jnp.array([[1] * 29 + [2] * 11])
    found = encoders.of_texts(hidden(config, base, packed), packed)
    for some, own in zip(found, expected, strict=True):
        assert_close(some, own)


def test_a_trained_embedding_that_a_convolution_reads_is_refused_where_its_gradient_would_be_lost():
    config = encoders.config("deberta-v2")
    base, batch = encoders.random_base(config), encoders.padded(encoders.texts(config))

    def loss(embedding, remat):
        trained = {"embed_tokens": {"weight": embedding}}
        return jnp.sum(encoder.hidden(config, None, Compute(remat=remat), base, (trained, {}), batch))

    with pytest.raises(TypeError, match="in what all layers are given, take remat none"):
        jax.grad(loss)(base["embed_tokens"]["weight"], "layer")
    assert np.abs(jax.grad(loss)(base["embed_tokens"]["weight"], "none")).max() > 0


def test_positions_have_projections_of_their_own_where_they_are_not_shared():
    own = {linear.path: linear for linear in encoders.config("deberta-v2").linears}
    shared = {linear.path for linear in encoders.config("deberta-v3").linears}
    more = {"attention.self.pos_key_proj", "attention.self.pos_query_proj"}
    assert own.keys() - shared == more and [own[path].roles for path in sorted(more)] == [("rel_k",), ("rel_q",)]
    # PEFT's rule of endings: query_proj is not pos_query_proj.
    assert endings(encoders.config("deberta-v2"), "attention.self.query_proj") == ("query_proj",)
    one = replace(encoders.config("deberta-v2").relative, terms=("c2p",))
    paths = {linear.path for linear in replace(encoders.config("deberta-v2"), relative=one).linears}
    assert paths - shared == {"attention.self.pos_key_proj"}


# config.json


def _read(folder, raw):
    (folder / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value != "absent"}))
    return hf_config.read_config(folder)


def test_published_files_are_read(tmp_path):
    found = _read(tmp_path, PUBLISHED["v3-base"])
    assert (found.eps, found.types, found.positions, found.convolution) == (1e-7, 0, "relative", None)
    relative = found.relative
    assert (relative.half, relative.buckets, relative.most, relative.terms) == (256, 256, 512, ("c2p", "p2c"))
    assert relative.shared and relative.normed
    assert found.head("sequence", 3).parts[0].module == "pooler.dense"
    found = _read(tmp_path, PUBLISHED["v2-xlarge"])
    assert (found.convolution.width, found.convolution.activation, found.head_dim) == (3, "gelu", 64)


@pytest.mark.torch
def test_an_absent_key_means_what_transformers_assumes(tmp_path):
    import transformers

    needed = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "model_type",
    )
    given = {key: encoders.settings("deberta-v3")[key] for key in needed} | {
        "relative_attention": True, "pos_att_type": "c2p"
    }  # fmt: skip
    found = _read(tmp_path, given)
    oracle = transformers.AutoConfig.from_pretrained(tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_config(oracle)
    names = {name for name in model.state_dict() if not found.ignores(name)}
    assert names == hf.name_table(found).keys()
    assert (found.eps, found.types, found.max_positions) == (oracle.layer_norm_eps, 0, oracle.max_position_embeddings)
    assert (found.relative.buckets, found.relative.most, found.relative.half) == (None, 512, 512)
    assert found.positions == "learned" and not found.relative.shared and not found.relative.normed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_norm_eps": None}, "layer_norm_eps: expected a positive number"),
        ({"type_vocab_size": -1}, "type_vocab_size: expected an integer, 0 for no types, found -1"),
        ({"position_buckets": "256"}, "position_buckets: expected an integer, found '256'"),
        ({"share_att_key": 1}, "share_att_key: expected true or false, found 1"),
        ({"norm_rel_ebd": None}, "norm_rel_ebd: expected a name, found None"),
        ({"pos_att_type": [1]}, "pos_att_type: expected a list of c2p and p2c"),
        ({"relative_attention": False}, "relative_attention false"),
        ({"pos_att_type": "absent"}, r"pos_att_type None \(only c2p, p2c\)"),
        ({"pos_att_type": "c2p|p2p"}, r"pos_att_type 'c2p\|p2p' \(only c2p, p2c\)"),
        ({"position_buckets": 1024}, "position_buckets 1024 of 512 relative positions"),
        ({"attention_head_size": 32}, r"attention_head_size 32 \(only 64\)"),
        ({"pooler_hidden_size": 512}, r"pooler_hidden_size 512 \(only 768\)"),
        ({"pooler_hidden_act": "mish"}, r"pooler_hidden_act 'mish' \(only gelu,"),
        ({"conv_kernel_size": 4}, r"conv_kernel_size 4 \(only odd ones\)"),
        ({"conv_kernel_size": 3, "conv_groups": 2}, r"conv_groups 2 \(only 1\)"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        _read(tmp_path, PUBLISHED["v3-base"] | changes)
