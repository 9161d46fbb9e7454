"""Which models are read: config.json in transformers' 4 and 5 spelling, and the folder or hub name it comes from."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidora_jax.errors import InputError, did_you_mean, listing
from bidora_jax.models.decoder import DecoderConfig
from bidora_jax.models.folders import read_json

NOT_A_MODEL = "point model.path at a Hugging Face model folder (config.json, *.safetensors, tokenizer files)"
# Everything a model folder may need; anything executable or pickled stays on the hub.
DOWNLOADED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True)
class Family:
    """What a model_type fixes without saying it in config.json. A bias of None follows the key attention_bias."""

    qk_norm: bool
    qkv_bias: bool | None
    o_bias: bool | None
    head_dim: int | None
    """Head size where config.json has no head_dim; None: hidden_size / num_attention_heads."""


FAMILIES = {"qwen3": Family(qk_norm=True, qkv_bias=None, o_bias=None, head_dim=128)}

SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "max_position_embeddings": "max_position_embeddings",
}
# What transformers assumes for a key that is not in the file (transformers/models/qwen3/configuration_qwen3.py).
ABSENT: dict[str, Any] = {
    "tie_word_embeddings": False,
    "attention_bias": False,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "layer_types": None,
    "rope_theta": None,
    "rope_scaling": None,
    "rope_parameters": None,
    "quantization_config": None,
}


def read_config(folder: Path | str) -> DecoderConfig:
    """The mathematics of a model folder; InputError, listing every reason, when this package does not compute it."""
    path = Path(folder) / "config.json"
    given = read_json(path, NOT_A_MODEL)
    family = _family(path, given)
    raw: dict[str, Any] = {**ABSENT, "head_dim": family.head_dim, **given}
    rope = _rope(raw)
    problems = _wrong_values(raw, rope) or _unsupported(raw, rope)
    if problems:
        raise InputError(
            f"{path} asks for what is not supported:\n{listing(problems)}\nuse another model, or its plain form"
        )
    head_dim = raw["head_dim"] or raw["hidden_size"] // raw["num_attention_heads"]
    return DecoderConfig(
        **{field: raw[key] for key, field in SIZES.items()},
        head_dim=head_dim,
        rms_norm_eps=float(raw["rms_norm_eps"]),
        rope_theta=float(rope["rope_theta"]),
        tie_word_embeddings=raw["tie_word_embeddings"],
        qk_norm=family.qk_norm,
        qkv_bias=raw["attention_bias"] if family.qkv_bias is None else family.qkv_bias,
        o_bias=raw["attention_bias"] if family.o_bias is None else family.o_bias,
    )


def _family(path: Path, raw: dict) -> Family:
    name = raw.get("model_type")
    if name not in FAMILIES:
        raise InputError(
            f"{path}: model_type {name!r} is not supported{did_you_mean(str(name), FAMILIES)}; "
            f"supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def _rope(raw: dict) -> dict[str, Any]:
    """The rotation's settings in one dictionary; transformers 5 keeps them in rope_parameters, 4 in two keys."""
    parts = [raw["rope_scaling"], {"rope_theta": raw["rope_theta"]}, raw["rope_parameters"]]
    return {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}


def _wrong_values(raw: dict, rope: dict) -> list[str]:
    wrong = [_fault(key, raw, "a positive integer") for key in SIZES if not _positive(raw.get(key), int)]
    if raw["head_dim"] is not None and not _positive(raw["head_dim"], int):
        wrong.append(_fault("head_dim", raw, "a positive integer"))
    if not _positive(raw.get("rms_norm_eps"), (int, float)):
        wrong.append(_fault("rms_norm_eps", raw, "a positive number"))
    if not _positive(rope["rope_theta"], (int, float)):
        wrong.append("rope_theta: expected a positive number there or in rope_parameters, found none")
    flags = ("tie_word_embeddings", "attention_bias")
    wrong += [_fault(key, raw, "true or false") for key in flags if not isinstance(raw[key], bool)]
    ropes = ("rope_scaling", "rope_parameters")
    return wrong + [_fault(key, raw, "an object") for key in ropes if not isinstance(raw[key], dict | None)]


def _positive(value, kind) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and value > 0


def _fault(key: str, raw: dict, expected: str) -> str:
    return f"{key}: expected {expected}, found {repr(raw[key]) if key in raw else 'no such key'}"


def _unsupported(raw: dict, rope: dict) -> list[str]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    checks = {
        f"rope scaling {kind!r} (only the default rotation)": kind != "default",
        "partial_rotary_factor other than 1": rope.get("partial_rotary_factor", 1) != 1,
        "use_sliding_window: true (only full attention)": bool(raw["use_sliding_window"]),
        "layer_types other than full_attention": bool(set(raw["layer_types"] or ()) - {"full_attention"}),
        f"hidden_act {raw['hidden_act']!r} (only silu)": raw["hidden_act"] != "silu",
        **_foreign_quantisation(raw["quantization_config"]),
        "num_attention_heads that is no multiple of num_key_value_heads": bool(
            raw["num_attention_heads"] % raw["num_key_value_heads"]
        ),
        "no head_dim, and hidden_size is no multiple of num_attention_heads": raw["head_dim"] is None
        and bool(raw["hidden_size"] % raw["num_attention_heads"]),
        f"odd head_dim {raw['head_dim']}": bool((raw["head_dim"] or 0) % 2),
    }
    return [name for name, found in checks.items() if found]


def _foreign_quantisation(settings: Any) -> dict[str, bool]:
    """What of a quantization_config can't be read; the weights themselves say in which form they are."""
    if settings is None:
        return {}
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if method != "bitsandbytes":
        return {
            f"quantization_config {method!r} (bitsandbytes' is read; or point at the model before it was quantised)": True
        }
    four = bool(settings.get("load_in_4bit") or settings.get("_load_in_4bit"))
    kind = settings.get("bnb_4bit_quant_type")
    return {f"bnb_4bit_quant_type {kind!r} (nf4 is read; quantise the dense model again)": four and kind != "nf4"}


def resolve_folder(path: Path | str) -> Path:
    """An existing folder as it is; a hub name ORG/NAME as the folder of its download (or of the cache, offline)."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{folder} is a file; {NOT_A_MODEL}")
    organisation, _, _ = str(path).partition("/")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path)) or Path(organisation).is_dir():
        raise InputError(
            f"there is no folder {folder}; {NOT_A_MODEL}, or give the name of a model on the hub, ORG/NAME"
        )
    return _download(str(path))


def _download(name: str) -> Path:
    import huggingface_hub  # slow, and a local folder never needs it

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(DOWNLOADED)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{name} is no folder here, and the model of that name could not be fetched from the hub ({reason}); "
            f"download it where there is a network, then {NOT_A_MODEL}"
        ) from error
