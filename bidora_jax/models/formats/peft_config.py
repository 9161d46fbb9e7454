"""adapter_config.json: PEFT's LoraConfig and the settings of this package, translated in both directions.

Keys mean the same on both sides (adapters/targets.py has the rules for names and patterns). PEFT ignores keys that it does not
know; here a key that is neither understood nor neutral is refused, since it may change the mathematics. The file has the bytes
that PEFT itself writes for the same settings, except where PEFT could not load them: regular expressions, and modules left out
by rank 0, are written as the names of the modules that they mean.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bidora_jax.errors import InputError, listing
from bidora_jax.machine.files import read_json, write_json
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.adapters.targets import ALL_LINEAR, Site
from bidora_jax.models.adapters.targets import meant as meant_modules
from bidora_jax.models.architectures.architecture import Architecture, endings, module_name
from bidora_jax.models.architectures.heads import Kind, TrainedHead
from bidora_jax.models.formats.hf_config import is_run

CONFIG = "adapter_config.json"
TASK_TYPES: dict[Kind, str] = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS"}
"""PEFT's names of the classifiers."""
NOT_AN_ADAPTER = f"point at a PEFT adapter folder ({CONFIG}, adapter_model.safetensors)"

# LoraConfig as PEFT 0.21.2 saves it, at its defaults.
NEUTRAL: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 8,
    "rank_pattern": {},
    "revision": None,
    "target_modules": None,
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
    "velora_config": None,
}
# Keys that are read here, that concern training only, or that name things. Any other key must be neutral.
UNDERSTOOD = {
    *("r", "lora_alpha", "use_rslora", "use_dora", "lora_dropout", "target_modules", "exclude_modules", "peft_type"),
    *("rank_pattern", "alpha_pattern", "layers_to_transform", "modules_to_save"),
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "task_type", "inference_mode"),
    *("corda_config", "eva_config", "lora_ga_config", "loftq_config", "megatron_core", "qalora_group_size"),
    *("layers_pattern", "init_lora_weights", "ensure_weight_tying"),
}
# Initialisations that leave the base as it was; the others subtract from it, so A and B do not fit the original model.
HARMLESS_INIT = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def meant(folder: Path | str) -> Path:
    """The adapter folder that is meant: of a run folder, its adapter/. InputError for a run that has none yet."""
    folder = Path(folder).expanduser()
    if (folder / CONFIG).is_file() or not is_run(folder):
        return folder
    if not (folder / "adapter").is_dir():
        raise InputError(
            f"{folder} has no adapter/: the run is not finished; go on with train --config {folder}/config.json --resume"
        )
    return folder / "adapter"


def read(folder: Path) -> AdapterConfig:
    """The settings of a PEFT folder. InputError when it means anything but LoRA, rsLoRA or DoRA on linear layers."""
    file = folder / CONFIG
    raw = read_json(file, NOT_AN_ADAPTER)
    if raw.get("peft_type") != "LORA":
        raise InputError(
            f"{file}: peft_type {raw.get('peft_type')!r} is not supported; supported: 'LORA' (with DoRA, rsLoRA)"
        )
    _refuse_variants(file, raw)
    raw = NEUTRAL | raw
    _refuse_wrong_types(file, raw)
    layers = raw["layers_to_transform"]
    return AdapterConfig(
        method="dora" if raw["use_dora"] else "lora",
        rank=raw["r"],
        alpha=float(raw["lora_alpha"]),
        rslora=raw["use_rslora"],
        dropout=float(raw["lora_dropout"]),
        init="gaussian" if raw["init_lora_weights"] == "gaussian" else "kaiming",
        target_modules=_names(raw["target_modules"]),
        exclude_modules=_names(raw["exclude_modules"]),
        layers_to_transform=(layers,) if isinstance(layers, int) else tuple(layers or ()),
        rank_pattern=tuple((raw["rank_pattern"] or {}).items()),
        alpha_pattern=tuple((key, float(alpha)) for key, alpha in (raw["alpha_pattern"] or {}).items()),
        modules_to_save=tuple(raw["modules_to_save"] or ()),
    )


def kind_of_head(folder: Path) -> Kind | None:
    """Which head of classification a PEFT folder holds; None for none."""
    task = read_json(folder / CONFIG, NOT_AN_ADAPTER).get("task_type")
    return next((kind for kind, name in TASK_TYPES.items() if name == task), None)


def says_of_its_base(folder: Path) -> str:
    """The base model that the folder names, as the end of a message; empty where it names none."""
    name = read_json(folder / CONFIG, NOT_AN_ADAPTER).get("base_model_name_or_path")
    return f"; the adapter was made for {name}" if name else ""


def write(
    folder: Path,
    architecture: Architecture,
    settings: AdapterConfig,
    sites: tuple[Site, ...],
    base_model_name: str | None,
    head: TrainedHead | None = None,
) -> None:
    """Writes the settings, which mean these sites on the model, as PEFT's LoraConfig; of a classifier with its trained `head`."""
    saved = settings.modules_to_save
    if head is not None:
        names = (name for name in saved if not any(part.is_named([name]) for part in head.parts))
        saved = tuple(dict.fromkeys((*names, *head.modules_to_save)))
    own = {
        "r": settings.rank,
        "lora_alpha": _number(settings.alpha),
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "use_dora": settings.method != "lora",
        "init_lora_weights": True if settings.init == "kaiming" else settings.init,
        "rank_pattern": {key: rank for key, rank in dict(settings.rank_pattern).items() if rank},
        "alpha_pattern": {key: _number(alpha) for key, alpha in dict(settings.alpha_pattern).items()},
        "modules_to_save": list(saved) or None,
        "task_type": "CAUSAL_LM" if head is None else TASK_TYPES[head.kind],
        "base_model_name_or_path": base_model_name,
    }
    write_json(folder / CONFIG, NEUTRAL | own | _written_names(architecture, settings, sites), sort_keys=True)


def _written_names(architecture: Architecture, settings: AdapterConfig, sites: tuple[Site, ...]) -> dict[str, Any]:
    wanted, unwanted = (meant_modules(n, architecture) for n in (settings.target_modules, settings.exclude_modules))
    by_expression = isinstance(wanted, str) and wanted != ALL_LINEAR
    if by_expression or isinstance(unwanted, str) or 0 in dict(settings.rank_pattern).values():
        return {"target_modules": sorted(_spelt(architecture, sites))}
    names = wanted
    if wanted == ALL_LINEAR:
        names = (name for site in sites for name in endings(architecture, site.path))
    return {
        "target_modules": sorted(set(names)),
        "exclude_modules": sorted(set(unwanted)) or None,
        "layers_to_transform": list(settings.layers_to_transform) or None,
    }


def _spelt(architecture: Architecture, sites: tuple[Site, ...]) -> Iterable[str]:
    """The sites by name: one ending where all layers are adapted, the full names elsewhere."""
    for site in sites:
        if len(site.layers) == len(site.ranks):
            yield from endings(architecture, site.path)
        else:
            yield from (module_name(architecture, layer, site.path) for layer in site.layers)


def _number(value: float) -> float | int:
    """As PEFT's users write it: without a decimal point where there is nothing behind it."""
    return int(value) if value == int(value) else value


def _names(raw: list[str] | str | None) -> tuple[str, ...] | str:
    return raw if isinstance(raw, str) else tuple(raw or ())


def _refuse_wrong_types(file: Path, raw: dict) -> None:
    number, flag, names = (int, float), (bool,), (list, str)
    kinds = {"r": (int,), "lora_alpha": number, "lora_dropout": number, "use_rslora": flag, "use_dora": flag}
    kinds |= {"target_modules": names, "exclude_modules": (*names, type(None))}
    kinds |= {"layers_to_transform": (int, list, type(None)), "modules_to_save": (list, type(None))}
    kinds |= dict.fromkeys(("rank_pattern", "alpha_pattern"), (dict, type(None)))
    wrong = [f"{key}: {raw[key]!r}" for key, kind in kinds.items() if not _is(raw[key], kind)]
    items = {"target_modules": (str,), "exclude_modules": (str,), "layers_to_transform": (int,)}
    items |= {"rank_pattern": (int,), "alpha_pattern": number, "modules_to_save": (str,)}
    for key, kind in items.items():
        inside = raw[key].values() if isinstance(raw[key], dict) else raw[key] if isinstance(raw[key], list) else ()
        wrong += [f"{key}: {raw[key]!r}"] if not all(_is(item, kind) for item in inside) else []
    if wrong:
        raise InputError(f"{file} has values of the wrong type:\n{listing(wrong)}\n{NOT_AN_ADAPTER}")


def _is(value: Any, kind: tuple[type, ...]) -> bool:
    return isinstance(value, kind) and (kind == (bool,) or not isinstance(value, bool))


def _refuse_variants(file: Path, raw: dict) -> None:
    """A key that is neither understood nor neutral may change the mathematics, a key of a later PEFT included."""
    foreign = [f"{key}: {raw[key]!r}" for key in sorted(raw.keys() - UNDERSTOOD) if not _neutral(key, raw[key])]
    if "init_lora_weights" in raw and raw["init_lora_weights"] not in HARMLESS_INIT:
        foreign.append(
            f"init_lora_weights: {raw['init_lora_weights']!r} (changes the base; convert it to LoRA with PEFT: "
            "save_pretrained with path_initial_model_for_weight_conversion)"
        )
    if raw.get("ensure_weight_tying") and raw.get("modules_to_save"):
        foreign.append("ensure_weight_tying: True (modules that are trained whole come apart here)")
    if foreign:
        raise _unsupported(file, foreign)


def check_layers_pattern(folder: Path, architecture: Architecture) -> None:
    """InputError where layers_pattern, which PEFT finds the layers by, is not the name that the model's list of layers has."""
    own = architecture.layer_prefix.rpartition(".")[2]
    pattern = read_json(folder / CONFIG, NOT_AN_ADAPTER).get("layers_pattern") or ()
    if pattern and own not in (pattern if isinstance(pattern, list) else [pattern]):
        raise _unsupported(folder / CONFIG, [f"layers_pattern: {pattern!r} (here it is {own!r})"])


def _unsupported(file: Path, foreign: list[str]) -> InputError:
    return InputError(
        f"{file} asks for what is not supported:\n{listing(foreign)}\nsupported: LoRA, rsLoRA and DoRA on linear layers"
    )


def _neutral(key: str, value) -> bool:
    # Not plain truth: 0 can be the first of something.
    return value is None or value is False or value in ("", [], {}) or value == NEUTRAL.get(key, object())
