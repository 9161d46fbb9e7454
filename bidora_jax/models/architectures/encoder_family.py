"""How the config.json of an encoder family is read. No JAX."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bidora_jax.models.architectures.encoder import EncoderConfig, Names
from bidora_jax.models.architectures.heads import Activation
from bidora_jax.models.architectures.rope import positive

SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
}
"""The keys of sizes, by field of EncoderConfig."""
# The values that transformers assumes for a key that is not in the file. The other sizes must be there.
ABSENT: dict[str, Any] = {
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "pad_token_id": 0,
    "initializer_range": 0.02,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": None,
}
# Keys that not every family has, and what they stand at where it has none.
FIXED: dict[str, Any] = {
    "embedding_size": None,
    "emb_layer_norm_before": True,
    "token_dropout": False,
    "is_folding_model": False,
}
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""transformers' names of the functions that are computed."""


@dataclass(frozen=True)
class EncoderFamily:
    """The facts that a model_type fixes without saying them in config.json, and the values that transformers assumes for keys
    that are not there (transformers/models/*/configuration_*.py)."""

    class_prefix: str
    """How transformers' classes begin: f"{class_prefix}ForSequenceClassification"."""
    names: Names
    absent: Mapping[str, Any] = field(default_factory=dict)
    """Assumed values that are other than in most families."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Values that no file changes: of keys that the family does not read."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Keys that are spelled otherwise, by the usual spelling."""
    positions: tuple[str, ...] = ("absolute",)
    """Values of position_embedding_type that are computed."""
    offset: bool = False
    """Whether positions count from pad_token_id + 1."""
    norm_first: bool = False

    def completed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of config.json in their usual spelling, and the assumed values of those that are not there."""
        usual = {own: key for key, own in self.keys.items()}
        given = {usual.get(key, key): value for key, value in given.items() if key not in self.keys}
        # A family that reads one of FIXED says what it assumes for it.
        fixed = {key: value for key, value in FIXED.items() if key not in self.absent} | dict(self.fixed)
        return ABSENT | dict(self.absent) | given | fixed

    def architecture(self, raw: Mapping[str, Any]) -> EncoderConfig:
        """The architecture that completed keys without `wrong_values` and `unsupported` describe."""
        learned = raw["position_embedding_type"] == "absolute"
        return EncoderConfig(
            names=self.names,
            **{name: raw[key] for name, key in SIZES.items()},
            eps=float(raw["layer_norm_eps"]),
            activation=ACTIVATIONS[raw["hidden_act"]],
            norm_first=self.norm_first,
            positions="learned" if learned else "rotary",
            first_position=raw["pad_token_id"] + 1 if self.offset and learned else 0,
            types=raw["type_vocab_size"],
            embedding_size=raw["embedding_size"] or raw["hidden_size"],
            embed_norm=bool(raw["emb_layer_norm_before"]),
            dropped_token=raw["mask_token_id"] if raw["token_dropout"] else None,
            initializer_range=float(raw["initializer_range"]),
        )

    def wrong_values(self, raw: Mapping[str, Any]) -> list[str]:
        """Completed keys whose values are missing or of the wrong type."""
        numbers = [key for key in SIZES.values() if key not in self.fixed]
        wrong = [self._fault(key, raw, "a positive integer") for key in numbers if not positive(raw.get(key), int)]
        if not _number(raw["type_vocab_size"]):
            wrong.append(self._fault("type_vocab_size", raw, "an integer, 0 for no types"))
        if raw["embedding_size"] is not None and not positive(raw["embedding_size"], int):
            wrong.append(self._fault("embedding_size", raw, "a positive integer"))
        numbers = ("layer_norm_eps", "initializer_range")
        wrong += [self._fault(key, raw, "a positive number") for key in numbers if not positive(raw[key])]
        flags = ("is_decoder", "add_cross_attention", "token_dropout", "is_folding_model", "emb_layer_norm_before")
        wrong += [self._fault(key, raw, "true or false") for key in flags if not isinstance(raw[key], bool | None)]
        tokens = [*(["pad_token_id"] if self.offset else []), *(["mask_token_id"] if raw["token_dropout"] else [])]
        wrong += [self._fault(key, raw, "the number of a token") for key in tokens if not _number(raw.get(key))]
        if not isinstance(raw["hidden_act"], str):
            wrong.append(self._fault("hidden_act", raw, "a name"))
        return wrong

    def unsupported(self, raw: Mapping[str, Any]) -> list[str]:
        """What completed keys without `wrong_values` ask for and the encoder does not compute."""
        heads, positions = raw["num_attention_heads"], raw["position_embedding_type"]
        known = positions in self.positions
        checks = {
            "is_decoder true (an encoder sees both ways)": raw["is_decoder"],
            "add_cross_attention true": raw["add_cross_attention"],
            "ESMFold, by is_folding_model (take the ESM-2 model, facebook/esm2_…)": raw["is_folding_model"],
            f"position_embedding_type {positions!r} (only {', '.join(self.positions)})": not known,
            f"hidden_act {raw['hidden_act']!r} (only {', '.join(ACTIVATIONS)})": raw["hidden_act"] not in ACTIVATIONS,
            "pruned_heads (save the model again with all of its heads)": raw["pruned_heads"],
            "hidden_size that is no multiple of num_attention_heads": raw["hidden_size"] % heads,
            "rotary positions and an odd number of features in a head": positions == "rotary"
            and raw["hidden_size"] // heads % 2,
            "no more rows in max_position_embeddings than pad_token_id takes": self.offset
            and known
            and raw["max_position_embeddings"] <= raw["pad_token_id"] + 1,
        }
        return [name for name, found in checks.items() if found]

    def _fault(self, key: str, raw: Mapping[str, Any], expected: str) -> str:
        found = repr(raw[key]) if key in raw else "no such key"
        return f"{self.keys.get(key, key)}: expected {expected}, found {found}"


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
