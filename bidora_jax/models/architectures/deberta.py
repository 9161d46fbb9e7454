"""How the config.json of DeBERTa-v2 and v3 is read, which have one model_type. No JAX."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bidora_jax.models.architectures.encoder import Convolution, EncoderConfig, RelativePositions, Term
from bidora_jax.models.architectures.encoder_family import ACTIVATIONS, EncoderFamily
from bidora_jax.models.architectures.rope import positive

TERMS: tuple[Term, ...] = ("c2p", "p2c")
ABSENT: dict[str, Any] = {
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "embedding_size": None,
    "relative_attention": False,
    "max_relative_positions": -1,
    "position_buckets": -1,
    "pos_att_type": None,
    "share_att_key": False,
    "norm_rel_ebd": "none",
    "position_biased_input": True,
    "attention_head_size": None,
    "pooler_hidden_act": "gelu",
    "pooler_hidden_size": None,
    "conv_kernel_size": 0,
    "conv_act": "tanh",
    "conv_groups": 1,
}
"""What transformers assumes for keys that are not there."""


@dataclass(frozen=True)
class DebertaFamily(EncoderFamily):
    """The keys that DeBERTa-v2 has beside those of other encoders."""

    def architecture(self, raw: Mapping[str, Any]) -> EncoderConfig:
        buckets, most = raw["position_buckets"], _most(raw)
        width = raw["conv_kernel_size"]
        return replace(
            super().architecture(raw),
            names=replace(self.names, head_activation=ACTIVATIONS[raw["pooler_hidden_act"]]),
            positions="learned" if raw["position_biased_input"] else "relative",
            projected_first=True,
            relative=RelativePositions(
                half=buckets if buckets > 0 else most,
                buckets=buckets if buckets > 0 else None,
                most=most,
                terms=tuple(term for term in TERMS if term in _listed(raw["pos_att_type"])),
                shared=raw["share_att_key"],
                normed="layer_norm" in _listed(raw["norm_rel_ebd"]),
            ),
            convolution=Convolution(width, ACTIVATIONS[raw["conv_act"]]) if width > 0 else None,
        )

    def wrong_values(self, raw: Mapping[str, Any]) -> list[str]:
        wrong = super().wrong_values(raw)
        for key in ("max_relative_positions", "position_buckets", "conv_kernel_size"):
            wrong += [] if isinstance(raw[key], int) else [self._fault(key, raw, "an integer")]
        for key in ("relative_attention", "share_att_key", "position_biased_input"):
            wrong += [] if isinstance(raw[key], bool) else [self._fault(key, raw, "true or false")]
        for key in ("pooler_hidden_act", "conv_act", "norm_rel_ebd"):
            wrong += [] if isinstance(raw[key], str) else [self._fault(key, raw, "a name")]
        if not all(isinstance(term, str) for term in _listed(raw["pos_att_type"])):
            wrong.append(self._fault("pos_att_type", raw, f"a list of {' and '.join(TERMS)}"))
        return wrong

    def unsupported(self, raw: Mapping[str, Any]) -> list[str]:
        terms, buckets, width = set(_listed(raw["pos_att_type"])), raw["position_buckets"], raw["conv_kernel_size"]
        sizes = {"attention_head_size": raw["hidden_size"] // raw["num_attention_heads"]}
        sizes |= {"pooler_hidden_size": raw["hidden_size"]}
        acts = {key: raw[key] for key in ("pooler_hidden_act", "conv_act")}
        checks = {
            "relative_attention false": not raw["relative_attention"],
            f"pos_att_type {raw['pos_att_type']!r} (only {', '.join(TERMS)})": not terms or not terms <= set(TERMS),
            f"position_buckets {buckets} of {_most(raw)} relative positions": buckets > 0
            and not 4 <= buckets < 2 * (_most(raw) - 1),
            f"conv_kernel_size {width} (only odd ones)": width > 0 and width % 2 == 0,
            f"conv_groups {raw['conv_groups']!r} (only 1)": raw["conv_groups"] != 1,
        }
        checks |= {f"{key} {raw[key]!r} (only {size})": raw[key] not in (None, size) for key, size in sizes.items()}
        checks |= {
            f"{key} {act!r} (only {', '.join(ACTIVATIONS)})": act not in ACTIVATIONS for key, act in acts.items()
        }
        return super().unsupported(raw) + [name for name, found in checks.items() if found]


def _most(raw: Mapping[str, Any]) -> int:
    given = raw["max_relative_positions"]
    return given if positive(given, int) else raw["max_position_embeddings"]


def _listed(names: Any) -> list[Any]:
    """Names that are given as a list, or in one string with bars between them."""
    if isinstance(names, str):
        return [name.strip() for name in names.lower().split("|")]
    return names if isinstance(names, list) else []
