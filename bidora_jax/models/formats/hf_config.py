"""Which models are read: config.json in transformers' 4 and 5 spelling, and the folder or hub name it comes from."""

import re
from pathlib import Path
from typing import Any

from bidora_jax.errors import InputError, did_you_mean, listing
from bidora_jax.machine.files import read_json
from bidora_jax.models.architectures import rope
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.architectures.families import FAMILIES, Family

NOT_A_MODEL = "point model.path at a Hugging Face model folder (config.json, *.safetensors, tokenizer files)"
# Everything a model folder may need; anything executable or pickled stays on the hub.
DOWNLOADED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
NOT_DOWNLOADED = ("consolidated*", "original/*")  # the weights once more, in Mistral's and Meta's own layout


SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "max_position_embeddings": "max_position_embeddings",
}
# What transformers assumes in every family for a key that is not in the file. The other sizes must be there.
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
    "quantization_config": None,
}


def read_config(folder: Path | str) -> DecoderConfig:
    """The mathematics of a model folder; InputError, listing every reason, when this package does not compute it."""
    path = Path(folder) / "config.json"
    if not path.is_file() and path.with_name("adapter_config.json").is_file():
        raise InputError(
            f"{folder} is an adapter; a model is expected here: name its base model, and the folder as the adapter"
        )
    given = read_json(path, NOT_A_MODEL)
    family = _family(path, given)
    own = ("num_key_value_heads", "max_position_embeddings", "head_dim")
    raw: dict[str, Any] = ABSENT | {key: getattr(family, key) for key in own} | given
    if raw["num_key_value_heads"] is None:
        raw["num_key_value_heads"] = raw.get("num_attention_heads")
    settings = _rope(raw)
    problems = _wrong_values(family, raw, settings) or _unsupported(family, raw, settings)
    if problems:
        raise InputError(
            f"{path} asks for what is not supported:\n{listing(problems)}\nuse another model, or its plain form"
        )
    return DecoderConfig(
        **{field: raw[key] for key, field in SIZES.items()},
        head_dim=raw["head_dim"] or raw["hidden_size"] // raw["num_attention_heads"],
        rms_norm_eps=float(raw["rms_norm_eps"]),
        rope_theta=float(settings["rope_theta"]),
        rope_scaling=rope.read(settings, raw["max_position_embeddings"]),
        tie_word_embeddings=raw["tie_word_embeddings"],
        qk_norm=family.qk_norm,
        qkv_bias=raw["attention_bias"] if family.qkv_bias is None else family.qkv_bias,
        o_bias=raw["attention_bias"] if family.o_bias is None else family.o_bias,
        mlp_bias=raw["mlp_bias"] if family.mlp_bias is None else family.mlp_bias,
        window=_windows(family, raw)[0],
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
    """The rotation's settings in one dictionary, as transformers gathers them from its old and its new spelling."""
    given = raw["rope_scaling"] or raw["rope_parameters"] or {}
    settings = {key: raw[key] for key in ("rope_theta", "partial_rotary_factor") if key in raw}
    settings |= given if isinstance(given, dict) else {}
    # Of what may stand outside that dictionary too, this one wins there.
    original = "original_max_position_embeddings"
    return settings if raw.get(original) is None else settings | {original: raw[original]}


def _obeys_window(family: Family, raw: dict) -> bool:
    return family.windowed == "always" or (family.windowed == "on request" and bool(raw["use_sliding_window"]))


def _windows(family: Family, raw: dict) -> list[int | None]:
    """The sliding window of every layer."""
    obeyed = _obeys_window(family, raw)
    first = raw["max_window_layers"] if family.windowed == "on request" else 0
    return [raw["sliding_window"] if obeyed and layer >= first else None for layer in range(raw["num_hidden_layers"])]


def _wrong_values(family: Family, raw: dict, settings: dict) -> list[str]:
    wrong = [_fault(key, raw, "a positive integer") for key in SIZES if not rope.positive(raw.get(key), int)]
    for key in ("head_dim", *(["sliding_window"] if _obeys_window(family, raw) else [])):
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


def _fault(key: str, raw: dict, expected: str) -> str:
    return f"{key}: expected {expected}, found {repr(raw[key]) if key in raw else 'no such key'}"


def _unsupported(family: Family, raw: dict, settings: dict) -> list[str]:
    windows = _windows(family, raw)
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    mixed = len(set(kinds)) > 1
    checks = {
        "partial_rotary_factor other than 1": settings.get("partial_rotary_factor") not in (None, 1),
        "rope settings of its own for each type of layer": any(isinstance(value, dict) for value in settings.values()),
        f"use_sliding_window from layer {raw['max_window_layers']} of {len(kinds)} on (only in all layers, or none)": mixed,
        f"layer_types other than {kinds[0]}, which the other keys ask for": not mixed
        and raw["layer_types"] not in (None, kinds),
        f"hidden_act {raw['hidden_act']!r} (only silu)": raw["hidden_act"] != "silu",
        **_foreign_quantisation(raw["quantization_config"]),
        "num_attention_heads that is no multiple of num_key_value_heads": bool(
            raw["num_attention_heads"] % raw["num_key_value_heads"]
        ),
        "no head_dim, and hidden_size is no multiple of num_attention_heads": raw["head_dim"] is None
        and bool(raw["hidden_size"] % raw["num_attention_heads"]),
        f"odd head_dim {raw['head_dim']}": bool((raw["head_dim"] or 0) % 2),
    }
    return rope.problems(settings, raw["max_position_embeddings"]) + [name for name, found in checks.items() if found]


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


def resolve_folder(path: Path | str, *, weights: bool = True) -> Path:
    """An existing folder as it is; a hub name ORG/NAME as the folder of its download (or of the cache, offline), which
    without `weights` is of the small files only."""
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
    return _download(str(path), () if weights else ("*.safetensors",))


def _download(name: str, left_out: tuple[str, ...]) -> Path:
    import huggingface_hub  # slow, and a local folder never needs it

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=list(DOWNLOADED), ignore_patterns=[*NOT_DOWNLOADED, *left_out]
            )
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{name} is no folder here, and the model of that name could not be fetched from the hub ({reason}); "
            f"download it where there is a network, then {NOT_A_MODEL}"
        ) from error
