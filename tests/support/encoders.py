"""Small encoders of every family, with no two sides alike, and rows of texts for them."""

import jax
import jax.numpy as jnp
import numpy as np

from bidora_jax.models.architectures.families import FAMILIES
from bidora_jax.models.base import dense_shapes

SIZES = {
    "vocab_size": 101, "hidden_size": 42, "intermediate_size": 59, "num_hidden_layers": 2, "num_attention_heads": 3,
    "max_position_embeddings": 47,
}  # fmt: skip
DISTILBERT = {
    "vocab_size": 101, "dim": 42, "hidden_dim": 59, "n_layers": 2, "n_heads": 3, "max_position_embeddings": 47
}  # fmt: skip
ROBERTA = SIZES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
ESM = SIZES | {"vocab_size": 33, "layer_norm_eps": 1e-5, "pad_token_id": 1, "mask_token_id": 32, "token_dropout": True}
# Windows that are shorter than the texts; the tests of the families themselves have texts past 130 tokens.
MODERNBERT = SIZES | {
    "num_hidden_layers": 5, "local_attention": 8, "pad_token_id": 1, "bos_token_id": 2, "cls_token_id": 2,
    "eos_token_id": 3, "sep_token_id": 3,
}  # fmt: skip
DEBERTA = SIZES | {
    "layer_norm_eps": 1e-7, "relative_attention": True, "position_buckets": 12, "norm_rel_ebd": "layer_norm",
    "share_att_key": True, "pos_att_type": "p2c|c2p", "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip
# Version 2 with all that it may have: projections of its own for positions, a convolution, narrow embeddings, absolute positions.
DEBERTA_2 = DEBERTA | {
    "share_att_key": False, "pos_att_type": ["p2c", "c2p"], "conv_kernel_size": 3, "conv_act": "gelu",
    "embedding_size": 31, "position_biased_input": True, "type_vocab_size": 2,
}  # fmt: skip
BIASES = ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")
KINDS = {
    "bert": ("bert", SIZES | {"type_vocab_size": 3}),
    "bert, gelu_new": ("bert", SIZES | {"hidden_act": "gelu_new", "layer_norm_eps": 0.1}),
    "roberta": ("roberta", ROBERTA),
    "xlm-roberta": ("xlm-roberta", ROBERTA),
    "camembert": ("camembert", ROBERTA | {"type_vocab_size": 2}),
    "electra": ("electra", SIZES | {"embedding_size": 31}),
    "electra, as wide": ("electra", SIZES | {"embedding_size": 42}),
    "distilbert": ("distilbert", DISTILBERT),
    "esm-2": ("esm", ESM | {"position_embedding_type": "rotary", "emb_layer_norm_before": False}),
    "esm-1b": ("esm", ESM | {"position_embedding_type": "absolute", "emb_layer_norm_before": True}),
    "modernbert": ("modernbert", MODERNBERT),
    "modernbert, mean": ("modernbert", MODERNBERT | {"classifier_pooling": "mean"} | dict.fromkeys(BIASES, True)),
    "deberta-v3": ("deberta-v2", DEBERTA),
    "deberta-v2": ("deberta-v2", DEBERTA_2),
    "deberta, keys alone": (
        "deberta-v2",
        DEBERTA | {"pos_att_type": ["c2p"], "position_buckets": -1, "norm_rel_ebd": "none"},
    ),
}
LENGTHS = (29, 11, 23)


def settings(kind: str) -> dict:
    """Its config.json."""
    family, given = KINDS[kind]
    return {"model_type": family, **given}


def config(kind: str):
    family, given = KINDS[kind]
    return FAMILIES[family].architecture(FAMILIES[family].completed(given))


def random_base(config, dtype=jnp.float32, seed: int = 0):
    """Random weights around 0, norm weights around 1; frequencies of rotary positions are positive."""
    random = np.random.default_rng(seed)

    def leaf(path, shape):
        centre = 1.0 if "norm" in path[-2].key.lower() and path[-1].key == "weight" else 0.0
        array = centre + 0.3 * random.normal(size=shape.shape)
        return jnp.asarray(np.exp(array) if path[-1].key == "inv_freq" else array, shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, dense_shapes(config, dtype))


def texts(config, lengths=LENGTHS, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Texts one by one: tokens, some of them those that ESM drops, and types."""
    random = np.random.default_rng(seed)
    found = []
    for length in lengths:
        tokens = random.integers(4, config.vocab_size - 1, size=length, dtype=np.int32)
        if config.dropped_token is not None:
            tokens[3 : 3 + length // 7] = config.dropped_token
        types = random.integers(max(config.types, 1), size=length, dtype=np.int32)
        found.append({"tokens": tokens, "types": types})
    return found


def padded(texts, width: int = 31, pad: int = 1) -> dict[str, jnp.ndarray]:
    """A text a row."""
    rows = {name: np.full((len(texts), width), fill, np.int32) for name, fill in (("tokens", pad), ("types", 0))}
    for row, text in enumerate(texts):
        for name, array in rows.items():
            array[row, : len(text[name])] = text[name]
    lengths = np.array([len(text["tokens"]) for text in texts], np.int32)
    return jax.tree.map(jnp.asarray, rows | {"lengths": lengths})


def packed(texts, width: int = 67, pad: int = 1) -> dict[str, jnp.ndarray]:
    """All texts in the first of two rows; the second has some of them again. Rows are longer than the table of positions."""
    rows = {
        name: np.full((2, width), fill, np.int32) for name, fill in (("tokens", pad), ("types", 0), ("segments", 0))
    }
    for row, some in enumerate((texts, [texts[1], texts[0], texts[1]])):
        place = 0
        for number, text in enumerate(some, start=1):
            span = slice(place, place := place + len(text["tokens"]))
            rows["tokens"][row, span], rows["types"][row, span] = text["tokens"], text["types"]
            rows["segments"][row, span] = number
    return jax.tree.map(jnp.asarray, rows)


def of_texts(x, batch) -> list[np.ndarray]:
    """The hidden states of each text of the rows, in their order."""
    x = np.asarray(x)
    if "lengths" in batch:
        return [row[:length] for row, length in zip(x, batch["lengths"], strict=True)]
    segments = np.asarray(batch["segments"])
    return [row[own == number] for row, own in zip(x, segments, strict=True) for number in range(1, own.max() + 1)]
