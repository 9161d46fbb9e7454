"""Reads the architecture of a model from its config.json, and finds the folder of a path or a hub name.

The table of families (architectures/families.py) says which models are read and how.
"""

import re
from pathlib import Path
from typing import Any

from bidora_jax.errors import InputError, did_you_mean, listing, program
from bidora_jax.machine.files import read_json
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.architectures.decoder_family import DecoderFamily
from bidora_jax.models.architectures.encoder import EncoderConfig
from bidora_jax.models.architectures.encoder_family import EncoderFamily
from bidora_jax.models.architectures.families import DECODERS, FAMILIES, REFUSED

NOT_A_MODEL = "point model.path at a Hugging Face model folder (config.json, *.safetensors, tokenizer files)"
# Everything a model folder may need; anything executable or pickled stays on the hub.
DOWNLOADED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
LARGEST_SIZE, MOST_LAYERS = 2**31, 10_000
NOT_DOWNLOADED = ("consolidated*", "original/*")  # the weights once more, in Mistral's and Meta's own layout


def read_config(folder: Path | str) -> DecoderConfig | EncoderConfig:
    """The architecture of a model folder; InputError, listing every reason, when this package does not compute it."""
    path = Path(folder) / "config.json"
    if not path.is_file() and path.with_name("adapter_config.json").is_file():
        raise InputError(
            f"{folder} is an adapter; a model is expected here: name its base model, and the folder as the adapter"
        )
    given = read_json(path, NOT_A_MODEL)
    if _of_a_run(given):
        raise InputError(_not_merged(Path(folder)))
    family = _family(path, given)
    raw = family.completed(given)
    problems = [*_beyond(given), *family.wrong_values(raw)] or [
        *family.unsupported(raw),
        *_foreign_quantisation(given.get("quantization_config")),
    ]
    if problems:
        raise InputError(
            f"{path} asks for what is not supported:\n{listing(problems)}\nuse another model, or its plain form"
        )
    return family.architecture(raw)


def _beyond(given: dict[str, Any]) -> list[str]:
    """Sizes that no model has. They are refused before anything is made of them: a list of 10⁹ layers takes all memory."""
    return [
        f"{key}: {value!r} (at most {LARGEST_SIZE:,})"
        for key, value in given.items()
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST_SIZE
    ] + [
        f"{key}: {given[key]!r} (at most {MOST_LAYERS:,})"
        for key in ("num_hidden_layers", "n_layers")
        if isinstance(given.get(key), int) and MOST_LAYERS < given[key] <= LARGEST_SIZE
    ]


def read_decoder(folder: Path | str) -> DecoderConfig:
    """`read_config` for a caller that goes on to predict next tokens; InputError for an encoder."""
    config = read_config(folder)
    if not isinstance(config, DecoderConfig):
        family = read_json(Path(folder) / "config.json", NOT_A_MODEL)["model_type"]
        raise InputError(
            f"{folder} is an encoder ({family}), which predicts no next token; a decoder is expected here: "
            f"{', '.join(DECODERS)}"
        )
    return config


def is_run(folder: Path | str) -> bool:
    """Whether a folder is one that training wrote: its config.json holds the settings of a run, and not a model's."""
    path = Path(folder).expanduser() / "config.json"
    return path.is_file() and _of_a_run(read_json(path, NOT_A_MODEL))


def _of_a_run(config: dict) -> bool:
    return "output_dir" in config and "model_type" not in config


def _not_merged(run: Path) -> str:
    """What is said of a run folder where a model is expected."""
    if (run / "merged" / "config.json").is_file():
        return f"{run} is a run folder; the model that it made is {run / 'merged'}: name that"
    return (
        f"{run} is a run folder, which holds an adapter; a model is expected here: write one with "
        f"{program('export')} --run {run} --format merged --output {run}-merged, and name that"
    )


def _family(path: Path, raw: dict) -> DecoderFamily | EncoderFamily:
    name = raw.get("model_type")
    if not isinstance(name, str | None):
        raise InputError(f"{path}: model_type: expected a text, found {name!r}; supported: {', '.join(FAMILIES)}")
    if name in REFUSED:
        raise InputError(f"{path}: {REFUSED[name]}")
    if name not in FAMILIES:
        raise InputError(
            f"{path}: model_type {name!r} is not supported{did_you_mean(str(name), FAMILIES)}; "
            f"supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def _foreign_quantisation(settings: Any) -> list[str]:
    """Why a quantization_config can't be read, if it can't be; the weights themselves say in which form they are."""
    if settings is None:
        return []
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if method != "bitsandbytes":
        return [
            f"quantization_config {method!r} (bitsandbytes' is read; or point at the model before it was quantised)"
        ]
    four = bool(settings.get("load_in_4bit") or settings.get("_load_in_4bit"))
    kind = settings.get("bnb_4bit_quant_type")
    return (
        [f"bnb_4bit_quant_type {kind!r} (nf4 is read; quantise the dense model again)"]
        if four and kind != "nf4"
        else []
    )


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


def cached(name: str) -> Path | None:
    """The folder of a model of the hub in the local cache, if its weights are there. Asks no network."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(name, "config.json")
    folder = Path(found).parent if isinstance(found, str) else None
    return folder if folder is not None and any(folder.glob("*.safetensors")) else None


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
