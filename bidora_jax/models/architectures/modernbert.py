"""How ModernBERT's config.json is read, in transformers' 4 and 5 spelling. No JAX.

Every third layer attends to the whole text, and the others to a window. The two kinds have their own rotary base. transformers 5
writes the kinds as layer_types and the bases in rope_parameters; older files give global_attn_every_n_layers, global_rope_theta
and local_rope_theta.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bidora_jax.models.architectures.encoder import EncoderConfig
from bidora_jax.models.architectures.encoder_family import ACTIVATIONS, EncoderFamily
from bidora_jax.models.architectures.heads import Pool
from bidora_jax.models.architectures.rope import positive

# Each kind of layer, and the older key of its rotary base.
KINDS = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
POOLS: dict[str, Pool] = {"cls": "first", "mean": "mean"}
ABSENT: dict[str, Any] = {
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "global_attn_every_n_layers": 3,
    "layer_types": None,
    "local_attention": 128,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "rope_parameters": None,
    "rope_scaling": None,
    "classifier_pooling": "cls",
    "classifier_bias": False,
    "classifier_activation": "gelu",
}
"""What transformers assumes for keys that are not there."""


@dataclass(frozen=True)
class ModernBertFamily(EncoderFamily):
    """The keys that ModernBERT has beside those of other encoders."""

    def architecture(self, raw: Mapping[str, Any]) -> EncoderConfig:
        kinds = _kinds(raw)
        return replace(
            super().architecture(raw),
            names=replace(self.names, head_activation=ACTIVATIONS[raw["classifier_activation"]]),
            norm_bias=raw["norm_bias"],
            attention_bias=raw["attention_bias"],
            mlp_bias=raw["mlp_bias"],
            first_norm=False,
            windows=tuple(raw["local_attention"] // 2 if kind == "sliding_attention" else None for kind in kinds),
            thetas=tuple(float(_theta(raw, kind)) for kind in kinds),
            pool=POOLS[raw["classifier_pooling"]],
            head_bias=raw["classifier_bias"],
        )

    def wrong_values(self, raw: Mapping[str, Any]) -> list[str]:
        wrong = super().wrong_values(raw)
        for key in ("local_attention", "global_attn_every_n_layers"):
            wrong += [] if positive(raw[key], int) else [self._fault(key, raw, "a positive integer")]
        for key in ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"):
            wrong += [] if isinstance(raw[key], bool) else [self._fault(key, raw, "true or false")]
        if raw["classifier_pooling"] not in POOLS:
            wrong.append(self._fault("classifier_pooling", raw, " or ".join(POOLS)))
        if not isinstance(raw["classifier_activation"], str):
            wrong.append(self._fault("classifier_activation", raw, "a name"))
        given = raw["layer_types"]
        if given is not None and not (isinstance(given, list) and all(kind in KINDS for kind in given)):
            wrong.append(self._fault("layer_types", raw, f"a list of {' and '.join(KINDS)}"))
        if not all(isinstance(rope, dict) for rope in _ropes(raw)):
            wrong.append(self._fault("rope_parameters", raw, f"settings for {' and '.join(KINDS)}"))
        else:
            wrong += [
                f"rope_theta of {kind}: expected a positive number, found {_theta(raw, kind)!r}"
                for kind in KINDS
                if not positive(_theta(raw, kind))
            ]
        return wrong

    def unsupported(self, raw: Mapping[str, Any]) -> list[str]:
        layers, activation = len(_kinds(raw)), raw["classifier_activation"]
        scaled = {rope.get("rope_type", rope.get("type", "default")) for rope in _ropes(raw)} - {"default"}
        checks = {
            f"layer_types of {layers} layers (there are {raw['num_hidden_layers']})": layers
            != raw["num_hidden_layers"],
            f"rope type {', '.join(map(repr, sorted(map(str, scaled))))} (only 'default')": scaled,
            f"classifier_activation {activation!r} (only {', '.join(ACTIVATIONS)})": activation not in ACTIVATIONS,
        }
        return super().unsupported(raw) + [name for name, found in checks.items() if found]


def _kinds(raw: Mapping[str, Any]) -> list[str]:
    """Of every layer."""
    every = raw["global_attn_every_n_layers"]
    layers = range(raw["num_hidden_layers"])
    return raw["layer_types"] or ["sliding_attention" if layer % every else "full_attention" for layer in layers]


def _ropes(raw: Mapping[str, Any]) -> list[Any]:
    """The settings of the rotation, as they are given: of each kind, and of both."""
    given = raw["rope_parameters"] or {}
    by_kind = [given.get(kind) or {} for kind in KINDS] if isinstance(given, dict) else [given]
    return [*by_kind, raw["rope_scaling"] or {}]


def _theta(raw: Mapping[str, Any], kind: str) -> Any:
    rope = (raw["rope_parameters"] or {}).get(kind) or {}
    return rope["rope_theta"] if "rope_theta" in rope else raw[KINDS[kind]]
