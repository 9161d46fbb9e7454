"""The table of the families that are read, by the model_type of their config.json.

An entry reads config.json and makes the `Architecture` of it, which says all that the package knows of the model: one more
family is one more entry.
"""

from dataclasses import replace

from bidora_jax.models.architectures import deberta, modernbert
from bidora_jax.models.architectures.architecture import Role
from bidora_jax.models.architectures.decoder_family import DecoderFamily
from bidora_jax.models.architectures.encoder import Names
from bidora_jax.models.architectures.encoder_family import EncoderFamily

DECODERS = {
    "llama": DecoderFamily(
        False, None, None, None, "never", num_key_value_heads=None, max_position_embeddings=2048, class_prefix="Llama"
    ),
    "mistral": DecoderFamily(
        False, False, False, False, "always", num_key_value_heads=8, max_position_embeddings=131072,
        class_prefix="Mistral",
    ),
    "qwen2": DecoderFamily(
        False, True, False, False, "on request", num_key_value_heads=32, max_position_embeddings=32768,
        class_prefix="Qwen2",
    ),
    "qwen3": DecoderFamily(
        True, None, None, False, "on request", num_key_value_heads=32, max_position_embeddings=32768, head_dim=128,
        class_prefix="Qwen3",
    ),
}  # fmt: skip

_BERT_LINEARS: tuple[tuple[str, tuple[Role, ...]], ...] = (
    ("attention.self.query", ("q",)),
    ("attention.self.key", ("k",)),
    ("attention.self.value", ("v",)),
    ("attention.output.dense", ("o",)),
    ("intermediate.dense", ("up",)),
    ("output.dense", ("down",)),
)
_BERT = Names(
    prefix="bert",
    layers="encoder.layer",
    words="embeddings.word_embeddings",
    positions="embeddings.position_embeddings",
    types="embeddings.token_type_embeddings",
    embed_norm="embeddings.LayerNorm",
    embed_projection="",
    final_norm="",
    linears=_BERT_LINEARS,
    attention_norm="attention.output.LayerNorm",
    mlp_norm="output.LayerNorm",
    head=("bert.pooler.dense", "classifier"),
    head_activation="tanh",
    beside=("pooler.", "cls.", "classifier.", "qa_outputs."),
)
_ROBERTA = replace(
    _BERT,
    prefix="roberta",
    head=("classifier.dense", "classifier.out_proj"),
    beside=("pooler.", "lm_head.", "classifier.", "qa_outputs."),
)
_ELECTRA = replace(
    _ROBERTA,
    prefix="electra",
    embed_projection="embeddings_project",
    head_activation="gelu",
    beside=("discriminator_predictions.", "generator_predictions.", "generator_lm_head.", "classifier.", "qa_outputs."),
)
_DISTILBERT = replace(
    _BERT,
    prefix="distilbert",
    layers="transformer.layer",
    types="",
    linears=(
        ("attention.q_lin", ("q",)),
        ("attention.k_lin", ("k",)),
        ("attention.v_lin", ("v",)),
        ("attention.out_lin", ("o",)),
        ("ffn.lin1", ("up",)),
        ("ffn.lin2", ("down",)),
    ),
    attention_norm="sa_layer_norm",
    mlp_norm="output_layer_norm",
    head=("pre_classifier", "classifier"),
    head_activation="relu",
    beside=(
        "vocab_transform.",
        "vocab_layer_norm.",
        "vocab_projector.",
        "pre_classifier.",
        "classifier.",
        "qa_outputs.",
    ),
)
_ESM = replace(
    _ROBERTA,
    prefix="esm",
    types="",
    embed_norm="embeddings.layer_norm",
    final_norm="encoder.emb_layer_norm_after",
    attention_norm="attention.LayerNorm",
    mlp_norm="LayerNorm",
    beside=("pooler.", "lm_head.", "contact_head.", "classifier."),
)
_MODERNBERT = Names(
    prefix="model",
    layers="layers",
    words="embeddings.tok_embeddings",
    positions="",
    types="",
    embed_norm="embeddings.norm",
    embed_projection="",
    final_norm="final_norm",
    # The activation is on the first half of Wi.
    linears=(("attn.Wqkv", ("q", "k", "v")), ("attn.Wo", ("o",)), ("mlp.Wi", ("gate", "up")), ("mlp.Wo", ("down",))),
    attention_norm="attn_norm",
    mlp_norm="mlp_norm",
    head=("head.dense", "classifier"),
    head_norm="head.norm",
    head_activation="gelu",
    beside=("head.", "decoder.", "classifier."),
)
_DEBERTA = replace(
    _BERT,
    prefix="deberta",
    embed_projection="embeddings.embed_proj",
    linears=(
        ("attention.self.query_proj", ("q",)),
        ("attention.self.key_proj", ("k",)),
        ("attention.self.value_proj", ("v",)),
        ("attention.self.pos_key_proj", ("rel_k",)),
        ("attention.self.pos_query_proj", ("rel_q",)),
        ("attention.output.dense", ("o",)),
        ("intermediate.dense", ("up",)),
        ("output.dense", ("down",)),
    ),
    relative="encoder.rel_embeddings",
    relative_norm="encoder.LayerNorm",
    convolution="encoder.conv.conv",
    convolution_norm="encoder.conv.LayerNorm",
    head=("pooler.dense", "classifier"),
    head_activation="gelu",
    beside=("pooler.", "cls.", "lm_predictions.", "mask_predictions.", "classifier.", "qa_outputs."),
)
_PADDED_ROBERTA = {"pad_token_id": 1}

ENCODERS = {
    "bert": EncoderFamily("Bert", _BERT),
    "roberta": EncoderFamily("Roberta", _ROBERTA, absent=_PADDED_ROBERTA, offset=True),
    "xlm-roberta": EncoderFamily("XLMRoberta", _ROBERTA, absent=_PADDED_ROBERTA, offset=True),
    "camembert": EncoderFamily("Camembert", _ROBERTA, absent=_PADDED_ROBERTA, offset=True),
    "electra": EncoderFamily("Electra", _ELECTRA, absent={"embedding_size": 128}),
    "distilbert": EncoderFamily(
        "DistilBert",
        _DISTILBERT,
        fixed={"type_vocab_size": 0, "layer_norm_eps": 1e-12},
        keys={
            "hidden_size": "dim", "intermediate_size": "hidden_dim", "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads", "hidden_act": "activation",
        },
    ),
    "esm": EncoderFamily(
        "Esm",
        _ESM,
        absent={
            "pad_token_id": None, "max_position_embeddings": 1026, "emb_layer_norm_before": None,
            "token_dropout": False, "is_folding_model": False,
        },
        fixed={"type_vocab_size": 0, "hidden_act": "gelu"},  # of its own form, whatever the file says
        positions=("absolute", "rotary"),
        offset=True,
        norm_first=True,
    ),
    "deberta-v2": deberta.DebertaFamily("DebertaV2", _DEBERTA, absent=deberta.ABSENT),
    "modernbert": modernbert.ModernBertFamily(
        "ModernBert",
        _MODERNBERT,
        absent=modernbert.ABSENT,
        fixed={"type_vocab_size": 0, "position_embedding_type": "rotary"},  # files say "absolute", and mean nothing by it
        keys={"layer_norm_eps": "norm_eps", "hidden_act": "hidden_activation"},
        positions=("rotary",),
        norm_first=True,
    ),
}  # fmt: skip
FAMILIES: dict[str, DecoderFamily | EncoderFamily] = {**DECODERS, **ENCODERS}

REFUSED = {
    "deberta": "DeBERTa-v1 is not computed: take a model of version 3, such as microsoft/deberta-v3-base (model_type 'deberta-v2')",
}
"""Families that are taken for others, and what to do instead."""
