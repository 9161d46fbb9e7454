"""models/architectures/encoder_family.py: config.json of every encoder family, and every reason to refuse one."""

import json

import encoders
import pytest

from bidora_jax.errors import InputError
from bidora_jax.models.architectures.encoder import EncoderConfig
from bidora_jax.models.architectures.families import ENCODERS, FAMILIES
from bidora_jax.models.formats.hf_config import read_config, read_decoder


def _write(folder, kind="bert", **changes):
    raw = encoders.settings(kind) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value != "absent"}))
    return folder


# config.json as published, less what only names, drops or generates.
PUBLISHED = {
    "bert-base-uncased": {
        "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
        "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
        "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
        "position_embedding_type": "absolute", "type_vocab_size": 2, "use_cache": True, "vocab_size": 30522,
    },
    "roberta-base": {
        "architectures": ["RobertaForMaskedLM"], "bos_token_id": 0, "eos_token_id": 2, "hidden_act": "gelu",
        "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-5,
        "max_position_embeddings": 514, "model_type": "roberta", "num_attention_heads": 12, "num_hidden_layers": 12,
        "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265,
    },
    "distilbert-base-uncased": {
        "activation": "gelu", "dim": 768, "dropout": 0.1, "hidden_dim": 3072, "initializer_range": 0.02,
        "max_position_embeddings": 512, "model_type": "distilbert", "n_heads": 12, "n_layers": 6, "pad_token_id": 0,
        "sinusoidal_pos_embds": False, "tie_weights_": True, "vocab_size": 30522,
    },
    "electra-small-discriminator": {
        "embedding_size": 128, "hidden_act": "gelu", "hidden_size": 256, "initializer_range": 0.02,
        "intermediate_size": 1024, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "electra",
        "num_attention_heads": 4, "num_hidden_layers": 12, "pad_token_id": 0, "summary_type": "first",
        "type_vocab_size": 2, "vocab_size": 30522,
    },
    "esm2_t6_8M_UR50D": {
        "classifier_dropout": None, "emb_layer_norm_before": False, "esmfold_config": None, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0, "hidden_size": 320, "initializer_range": 0.02, "intermediate_size": 1280,
        "is_folding_model": False, "layer_norm_eps": 1e-5, "mask_token_id": 32, "max_position_embeddings": 1026,
        "model_type": "esm", "num_attention_heads": 20, "num_hidden_layers": 6, "pad_token_id": 1,
        "position_embedding_type": "rotary", "token_dropout": True, "use_cache": True, "vocab_list": None,
        "vocab_size": 33,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert-base-uncased", {"num_layers": 12, "eps": 1e-12, "types": 2, "first_position": 0, "max_positions": 512}),
        ("roberta-base", {"eps": 1e-5, "types": 1, "first_position": 2, "max_positions": 512, "vocab_size": 50265}),
        ("distilbert-base-uncased", {"num_layers": 6, "num_heads": 12, "hidden_size": 768, "intermediate_size": 3072,
                                     "eps": 1e-12, "types": 0, "activation": "gelu"}),
        ("electra-small-discriminator", {"hidden_size": 256, "embedding_size": 128, "head_dim": 64}),
        ("esm2_t6_8M_UR50D", {"positions": "rotary", "norm_first": True, "embed_norm": False, "dropped_token": 32,
                              "head_dim": 16, "types": 0, "first_position": 0, "max_positions": 1026}),
    ],
)  # fmt: skip
def test_published_files_are_read(tmp_path, name, expected):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    found = read_config(tmp_path)
    assert {key: getattr(found, key) for key in expected} == expected


@pytest.mark.torch
@pytest.mark.parametrize("family", sorted(ENCODERS.keys() - {"modernbert", "deberta-v2"}))  # they have their own
def test_an_absent_key_means_what_transformers_assumes(tmp_path, family):
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSES

    kind = next(kind for kind, (own, _) in encoders.KINDS.items() if own == family)
    needed = {
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "model_type",
    }
    needed |= {"dim", "hidden_dim", "n_layers", "n_heads", *(["pad_token_id"] if family == "esm" else [])}
    config = read_config(_write(tmp_path, kind, **dict.fromkeys(encoders.settings(kind).keys() - needed, "absent")))
    oracle = transformers.AutoConfig.from_pretrained(tmp_path)
    offset = oracle.pad_token_id + 1 if config.prefix in ("roberta", "esm") else 0
    assert (config.first_position, config.max_positions) == (offset, oracle.max_position_embeddings - offset)
    assert config.eps == getattr(oracle, "layer_norm_eps", 1e-12)
    assert config.types == getattr(oracle, "type_vocab_size", 0)
    assert config.embedding_size == getattr(oracle, "embedding_size", 42)
    assert config.initializer_range == oracle.initializer_range and config.activation == "gelu"
    assert f"{FAMILIES[family].class_prefix}ForSequenceClassification" == CLASSES[family]
    model = transformers.AutoModelForSequenceClassification.from_config(oracle)
    assert model.base_model_prefix == config.prefix


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("bert", {"hidden_size": "absent"}, "hidden_size: expected a positive integer, found no such key"),
        ("bert", {"num_hidden_layers": 0}, "num_hidden_layers: expected a positive integer, found 0"),
        ("bert", {"type_vocab_size": "2"}, "type_vocab_size: expected an integer, 0 for no types, found '2'"),
        ("bert", {"layer_norm_eps": None}, "layer_norm_eps: expected a positive number, found None"),
        ("bert", {"is_decoder": "no"}, "is_decoder: expected true or false, found 'no'"),
        ("bert", {"hidden_act": None}, "hidden_act: expected a name, found None"),
        ("distilbert", {"n_heads": "absent"}, "n_heads: expected a positive integer, found no such key"),
        ("distilbert", {"n_heads": "absent", "num_attention_heads": 3}, "n_heads: .*found no such key"),
        ("electra", {"embedding_size": 0}, "embedding_size: expected a positive integer, found 0"),
        ("roberta", {"pad_token_id": None}, "pad_token_id: expected the number of a token, found None"),
        ("esm-2", {"pad_token_id": "absent"}, "pad_token_id: expected the number of a token, found None"),
        ("esm-2", {"mask_token_id": "absent"}, "mask_token_id: expected the number of a token, found no such key"),
        ("bert", {"is_decoder": True}, "is_decoder true"),
        ("bert", {"add_cross_attention": True}, "add_cross_attention true"),
        ("bert", {"position_embedding_type": "relative_key"}, r"'relative_key' \(only absolute\)"),
        ("bert", {"hidden_act": "quick_gelu"}, r"hidden_act 'quick_gelu' \(only gelu,"),
        ("distilbert", {"activation": "mish"}, "hidden_act 'mish'"),
        ("bert", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("bert", {"hidden_size": 43}, "no multiple of num_attention_heads"),
        ("roberta", {"max_position_embeddings": 2}, "no more rows in max_position_embeddings"),
        ("esm-2", {"is_folding_model": True}, r"ESMFold.*\(take the ESM-2 model"),
        ("esm-2", {"position_embedding_type": "relative_key"}, r"\(only absolute, rotary\)"),
        ("esm-2", {"hidden_size": 45}, "an odd number of features in a head"),
        ("bert", {"quantization_config": {"quant_method": "gptq"}}, "before it was quantised"),
        ("bert", {"model_type": "deberta"}, "DeBERTa-v1 is not computed: take .*deberta-v3-base"),
        ("bert", {"model_type": "robreta"}, "did you mean 'roberta'"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, kind, changes, message):
    with pytest.raises(InputError, match=message):
        read_config(_write(tmp_path, kind, **changes))


def test_keys_that_a_family_does_not_read_change_nothing(tmp_path):
    config = read_config(_write(tmp_path, "distilbert", layer_norm_eps=0.1, hidden_size=7, type_vocab_size=2))
    assert config == encoders.config("distilbert")
    config = read_config(_write(tmp_path, "bert", embedding_size=7, token_dropout=True, emb_layer_norm_before=False))
    assert config == encoders.config("bert")
    assert read_config(_write(tmp_path, "esm-2", hidden_act="relu")) == encoders.config("esm-2")


def test_who_needs_a_decoder_says_so_of_an_encoder(tmp_path):
    assert isinstance(read_config(_write(tmp_path)), EncoderConfig)
    with pytest.raises(InputError, match=r"is an encoder \(bert\), which predicts no next token; .*: llama, mistral"):
        read_decoder(tmp_path)
