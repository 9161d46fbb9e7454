"""How the config.json of a decoder family is read, in transformers' 4 and 5 spelling. No JAX."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

from bidora_jax.models.architectures import rope
from bidora_jax.models.architectures.decoder import DecoderConfig

SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "max_position_embeddings": "max_position_embeddings",
}
# The values that transformers assumes in every family for a key that is not in the file. The other sizes must be there.
ABSENT: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "rope_parameters": None,
}


@dataclass(frozen=True)
class DecoderFamily:
    """The facts that a model_type fixes without saying them in config.json, and the values that transformers assumes for keys
    that are not there (transformers/models/*/configuration_*.py)."""

    qk_norm: bool
    qkv_bias: bool | None
    """None, here and below: the key attention_bias, or mlp_bias, decides."""
    o_bias: bool | None
    mlp_bias: bool | None
    windowed: Literal["never", "always", "on request"]
    """Whether sliding_window is obeyed; on request: if use_sliding_window is true, from layer max_window_layers on."""
    num_key_value_heads: int | None
    """None: as many as num_attention_heads."""
    max_position_embeddings: int
    head_dim: int | None = None
    """None: hidden_size / num_attention_heads."""
    _: KW_ONLY
    class_prefix: str
    """How transformers' classes begin: f"{class_prefix}ForSequenceClassification"."""

    def completed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of config.json, and the assumed values of those that are not there."""
        own = ("num_key_value_heads", "max_position_embeddings", "head_dim")
        raw = ABSENT | {key: getattr(self, key) for key in own} | dict(given)
        if raw["num_key_value_heads"] is None:
            raw["num_key_value_heads"] = raw.get("num_attention_heads")
        return raw

    def architecture(self, raw: Mapping[str, Any]) -> DecoderConfig:
        """The architecture that completed keys without `wrong_values` and `unsupported` describe."""
        settings = _rope(raw)
        return DecoderConfig(
            **{field: raw[key] for key, field in SIZES.items()},
            head_dim=raw["head_dim"] or raw["hidden_size"] // raw["num_attention_heads"],
            rms_norm_eps=float(raw["rms_norm_eps"]),
            rope_theta=float(settings["rope_theta"]),
            rope_scaling=rope.read(settings, raw["max_position_embeddings"]),
            tie_word_embeddings=raw["tie_word_embeddings"],
            qk_norm=self.qk_norm,
            qkv_bias=raw["attention_bias"] if self.qkv_bias is None else self.qkv_bias,
            o_bias=raw["attention_bias"] if self.o_bias is None else self.o_bias,
            mlp_bias=raw["mlp_bias"] if self.mlp_bias is None else self.mlp_bias,
            window=self._windows(raw)[0],
        )

    def wrong_values(self, raw: Mapping[str, Any]) -> list[str]:
        """Completed keys whose values are missing or of the wrong type."""
        settings = _rope(raw)
        wrong = [_fault(key, raw, "a positive integer") for key in SIZES if not rope.positive(raw.get(key), int)]
        for key in ("head_dim", *(["sliding_window"] if self._obeys_window(raw) else [])):
            if raw[key] is not None and not rope.positive(raw[key], int):
                wrong.append(_fault(key, raw, "a positive integer or null"))
        if not isinstance(raw["max_window_layers"], int):
            wrong.append(_fault("max_window_layers", raw, "an integer"))
        if not rope.positive(raw["rms_norm_eps"]):
            wrong.append(_fault("rms_norm_eps", raw, "a positive number"))
        if not rope.positive(settings["rope_theta"]):
            wrong.append(_fault("rope_theta", settings, "a positive number there or in rope_parameters"))
        flags = ("tie_word_embeddings", "attention_bias", "mlp_bias")
        wrong += [_fault(key, raw, "true or false") for key in flags if not isinstance(raw[key], bool)]
        ropes = ("rope_scaling", "rope_parameters")
        return wrong + [_fault(key, raw, "an object") for key in ropes if not isinstance(raw[key], dict | None)]

    def unsupported(self, raw: Mapping[str, Any]) -> list[str]:
        """What completed keys without `wrong_values` ask for and the decoder does not compute."""
        settings, windows = _rope(raw), self._windows(raw)
        kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
        mixed = len(set(kinds)) > 1
        first, heads = raw["max_window_layers"], raw["num_attention_heads"]
        own_rope = any(isinstance(value, dict) for value in settings.values())
        checks = {
            "partial_rotary_factor other than 1": settings.get("partial_rotary_factor") not in (None, 1),
            "rope settings of its own for each type of layer": own_rope,
            f"use_sliding_window from layer {first} of {len(kinds)} on (only in all layers, or none)": mixed,
            f"layer_types other than {kinds[0]}, which the other keys ask for": not mixed
            and raw["layer_types"] not in (None, kinds),
            f"hidden_act {raw['hidden_act']!r} (only silu)": raw["hidden_act"] != "silu",
            "num_attention_heads that is no multiple of num_key_value_heads": bool(heads % raw["num_key_value_heads"]),
            "no head_dim, and hidden_size is no multiple of num_attention_heads": raw["head_dim"] is None
            and bool(raw["hidden_size"] % heads),
            f"odd head_dim {raw['head_dim']}": bool((raw["head_dim"] or 0) % 2),
        }
        return rope.problems(settings, raw["max_position_embeddings"]) + [
            name for name, found in checks.items() if found
        ]

    def _obeys_window(self, raw: Mapping[str, Any]) -> bool:
        return self.windowed == "always" or (self.windowed == "on request" and bool(raw["use_sliding_window"]))

    def _windows(self, raw: Mapping[str, Any]) -> list[int | None]:
        """The sliding window of every layer."""
        obeyed = self._obeys_window(raw)
        first = raw["max_window_layers"] if self.windowed == "on request" else 0
        layers = range(raw["num_hidden_layers"])
        return [raw["sliding_window"] if obeyed and layer >= first else None for layer in layers]


def _rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The rotation's settings in one dictionary, as transformers gathers them from its old and its new spelling."""
    given = raw["rope_scaling"] or raw["rope_parameters"] or {}
    settings = {key: raw[key] for key in ("rope_theta", "partial_rotary_factor") if key in raw}
    settings |= given if isinstance(given, dict) else {}
    # This key may stand outside that dictionary too, and wins there.
    original = "original_max_position_embeddings"
    return settings if raw.get(original) is None else settings | {original: raw[original]}


def _fault(key: str, raw: Mapping[str, Any], expected: str) -> str:
    return f"{key}: expected {expected}, found {repr(raw[key]) if key in raw else 'no such key'}"
