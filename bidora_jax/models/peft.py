"""PEFT adapter folders (adapter_config.json, adapter_model.safetensors), read and written; format of PEFT 0.21.

    base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight          (r, in)
    base_model.model.model.layers.N.self_attn.q_proj.lora_B.weight          (out, r)
    base_model.model.model.layers.N.self_attn.q_proj.lora_magnitude_vector  (out,)   DoRA; older files add ".weight"

float32, in PEFT's layout, which is ours: nothing is transposed. PEFT only warns about tensors it misses and ignores
magnitudes without use_dora; both give another function than was trained, so reading refuses them, with every setting
that changes the mathematics.
"""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bidora_jax.errors import InputError, did_you_mean, listing
from bidora_jax.models import tensorfile
from bidora_jax.models.adapters import Adapter, get, linear_shapes, put, resolve
from bidora_jax.models.decoder import DecoderConfig
from bidora_jax.models.folders import read_json, staged, write_json
from bidora_jax.models.settings import AdapterConfig

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
NOT_AN_ADAPTER = f"point at a PEFT adapter folder ({CONFIG}, {WEIGHTS})"
SUFFIXES = {"A": "lora_A.weight", "B": "lora_B.weight", "m": "lora_magnitude_vector"}

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
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "task_type", "inference_mode"),
    *("corda_config", "eva_config", "lora_ga_config", "loftq_config", "megatron_core", "qalora_group_size"),
    *("layers_pattern", "init_lora_weights", "ensure_weight_tying"),
}
# Initialisations that leave the base as it was; the others subtract from it, so A and B do not fit the original model.
HARMLESS_INIT = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def save_adapter(
    folder: Path | str,
    adapter: Adapter,
    settings: AdapterConfig,
    direction: PyTree,
    magnitude: PyTree,
    *,
    base_model_name: str | None,
    replace: bool = False,
) -> None:
    """Writes an adapter folder that PEFT loads, whole or not at all; InputError when it is full, unless `replace`."""
    with staged(Path(folder), replace=replace) as fresh:
        write_adapter(fresh, adapter, settings, direction, magnitude, base_model_name=base_model_name)


def write_adapter(
    folder: Path,
    adapter: Adapter,
    settings: AdapterConfig,
    direction: PyTree,
    magnitude: PyTree,
    *,
    base_model_name: str | None,
) -> None:
    """`save_adapter` into an existing folder, for a caller who still has something to check before it gets its name."""
    alpha = int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha
    own = {
        "r": adapter.rank,
        "lora_alpha": alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": settings.rslora,
        "use_dora": adapter.magnitude,
        "target_modules": sorted(path.split(".")[-1] for path in adapter.targets),
        "base_model_name_or_path": base_model_name,
    }
    write_json(folder / CONFIG, NEUTRAL | own, sort_keys=True)
    leaves = _leaves(adapter, direction, magnitude)
    layers = next(iter(leaves.values())).shape[0]
    names = {_name(layer, path, leaf): (path, leaf, layer) for path, leaf in leaves for layer in range(layers)}
    specs = {
        name: jax.ShapeDtypeStruct(leaves[path, leaf].shape[1:], jnp.float32)
        for name, (path, leaf, _) in sorted(names.items())
    }
    tensors = (np.asarray(leaves[path, leaf][layer]) for path, leaf, layer in (names[name] for name in specs))
    tensorfile.write(folder / WEIGHTS, specs, tensors)


def load_adapter(folder: Path | str, config: DecoderConfig) -> tuple[Adapter, PyTree, PyTree]:
    """The adapter, direction and magnitude of a PEFT folder, in float32.

    InputError when the folder means anything but LoRA, rsLoRA or DoRA of one rank over all layers of `config`, and when
    it misses a tensor, holds one too many, or holds one of another shape.
    """
    folder = Path(folder)
    raw = read_json(folder / CONFIG, NOT_AN_ADAPTER)
    adapter = _adapter(folder / CONFIG, raw, config)
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} has no {WEIGHTS}; {NOT_AN_ADAPTER} (a pickled adapter_model.bin is not read)")
    # PEFT once wrote the magnitude of a layer as "...lora_magnitude_vector.weight".
    magnitude_name = SUFFIXES["m"]
    entries = {
        name.removesuffix(".weight") if name.endswith(f"{magnitude_name}.weight") else name: entry
        for name, entry in tensorfile.read_header(folder / WEIGHTS).items()
    }
    shapes = _shapes(adapter, config)
    _check(folder, adapter, config, entries, shapes)
    direction, magnitude = {}, {}
    for (path, leaf), shape in shapes.items():
        stack = np.empty((config.num_layers, *shape), np.float32)
        for layer, slot in enumerate(stack):
            tensorfile.read_into(entries[_name(layer, path, leaf)], slot)
        if leaf == "m":
            magnitude = put(magnitude, f"layers.{path}.m", jnp.asarray(stack))
        else:
            direction = put(direction, f"layers.{path}.{leaf}", jnp.asarray(stack))
    return adapter, direction, magnitude


def _name(layer: int, path: str, leaf: str) -> str:
    return f"base_model.model.model.layers.{layer}.{path}.{SUFFIXES[leaf]}"


def _leaves(adapter: Adapter, direction: PyTree, magnitude: PyTree) -> dict[tuple[str, str], jax.Array]:
    leaves = {(path, leaf): get(direction["layers"], path)[leaf] for path in adapter.targets for leaf in "AB"}
    if adapter.magnitude:
        leaves |= {(path, "m"): get(magnitude["layers"], path)["m"] for path in adapter.targets}
    return leaves


def _shapes(adapter: Adapter, config: DecoderConfig) -> dict[tuple[str, str], tuple[int, ...]]:
    """Shape of each tensor of one layer."""
    shapes, rank = {}, adapter.rank
    for path in adapter.targets:
        out_features, in_features = linear_shapes(config)[path]
        shapes |= {(path, "A"): (rank, in_features), (path, "B"): (out_features, rank)}
        if adapter.magnitude:
            shapes[path, "m"] = (out_features,)
    return shapes


def _check(folder: Path, adapter: Adapter, config: DecoderConfig, entries: dict, shapes: dict) -> None:
    file = folder / WEIGHTS
    magnitudes = [name for name in entries if name.endswith(SUFFIXES["m"])]
    if bool(magnitudes) != adapter.magnitude:
        found = "magnitudes, but use_dora is false" if magnitudes else "no magnitudes, but use_dora is true"
        raise InputError(f"{file} holds {found} in {CONFIG}; the two files must come from the same training")
    expected = {_name(layer, *key): shape for key, shape in shapes.items() for layer in range(config.num_layers)}
    wrong = [f"missing: {name}" for name in expected if name not in entries]
    wrong += [f"not used by {CONFIG}: {name}" for name in entries if name not in expected]
    for name in expected.keys() & entries.keys():
        if entries[name].shape != expected[name]:
            wrong.append(f"shape of {name}: expected {expected[name]}, found {entries[name].shape}")
        if entries[name].dtype not in tensorfile.FLOATS:
            wrong.append(f"dtype of {name}: expected {', '.join(tensorfile.FLOATS)}, found {entries[name].dtype}")
    if wrong:
        raise InputError(
            f"{file}: {len(wrong)} tensors do not fit:\n{listing(sorted(wrong))}\n"
            f"{CONFIG}, the tensors and the base model must belong together"
        )


def _adapter(file: Path, raw: dict, config: DecoderConfig) -> Adapter:
    if raw.get("peft_type") != "LORA":
        raise InputError(
            f"{file}: peft_type {raw.get('peft_type')!r} is not supported; supported: 'LORA' (with DoRA, rsLoRA)"
        )
    _refuse_variants(file, raw)
    raw = NEUTRAL | raw
    _refuse_wrong_types(file, raw)
    settings = AdapterConfig(
        method="dora" if raw["use_dora"] else "lora",
        rank=raw["r"],
        alpha=float(raw["lora_alpha"]),
        rslora=raw["use_rslora"],
        dropout=float(raw["lora_dropout"]),
        target_modules=_targets(file, raw, config),
    )
    return resolve(settings, config)


def _refuse_wrong_types(file: Path, raw: dict) -> None:
    number, flag = (int, float), (bool,)
    kinds = {"r": (int,), "lora_alpha": number, "lora_dropout": number, "use_rslora": flag, "use_dora": flag}
    kinds |= {"target_modules": (list, str), "exclude_modules": (list, str, type(None))}
    wrong = [
        f"{key}: {raw[key]!r}"
        for key, kind in kinds.items()
        if not isinstance(raw[key], kind) or (isinstance(raw[key], bool) and kind is not flag)
    ]
    if wrong:
        raise InputError(f"{file} has values of the wrong type:\n{listing(wrong)}\n{NOT_AN_ADAPTER}")


def _refuse_variants(file: Path, raw: dict) -> None:
    """A key that is neither understood nor neutral may change the mathematics, a key of a later PEFT included."""
    foreign = [f"{key}: {raw[key]!r}" for key in sorted(raw.keys() - UNDERSTOOD) if not _neutral(key, raw[key])]
    if "init_lora_weights" in raw and raw["init_lora_weights"] not in HARMLESS_INIT:
        foreign.append(
            f"init_lora_weights: {raw['init_lora_weights']!r} (changes the base; convert it to LoRA with PEFT)"
        )
    if foreign:
        raise InputError(
            f"{file} asks for what is not supported:\n{listing(foreign)}\n"
            "supported: LoRA, rsLoRA and DoRA of one rank on linear layers, the same in every layer"
        )


def _neutral(key: str, value) -> bool:
    # Not plain truth: layers_to_transform 0 is the first layer.
    return value is None or value is False or value in ("", [], {}) or value == NEUTRAL.get(key, object())


def _targets(file: Path, raw: dict, config: DecoderConfig) -> tuple[str, ...]:
    """Names of the linear layers that PEFT's matching picks; it must pick the same ones in every layer."""
    layered = {f"model.layers.{n}.{path}": path for n in range(config.num_layers) for path in linear_shapes(config)}
    modules = [*layered, "model.embed_tokens", "lm_head"]
    wanted = raw["target_modules"]
    wanted = list(layered) if wanted == "all-linear" else wanted
    patterns = wanted if isinstance(wanted, list) else [wanted]
    idle = [pattern for pattern in patterns if not any(_matches(wanted, pattern, module) for module in modules)]
    if idle or not patterns:
        names = [path.split(".")[-1] for path in linear_shapes(config)]
        found = ", ".join(f"{pattern!r}{did_you_mean(str(pattern), names)}" for pattern in idle) or "none at all"
        raise InputError(f"{file}: no module of this model matches target_modules {found}; it has {', '.join(names)}")
    excluded = raw["exclude_modules"] or []
    picked = _pick(wanted, modules) - _pick(excluded, modules)
    outside = sorted(picked - layered.keys())
    if outside:
        raise InputError(f"{file}: an adapter on {', '.join(outside)} is not supported; only linear layers are")
    paths = dict.fromkeys(layered[module] for module in modules if module in picked)
    partial = [path for path in paths if sum(layered[module] == path for module in picked) < config.num_layers]
    if partial:
        raise InputError(
            f"{file} adapts {', '.join(partial)} in some layers only, which is not supported; an adapter covers all "
            f"{config.num_layers} layers"
        )
    return tuple(path.split(".")[-1] for path in paths)


def _pick(wanted: list[str] | str, modules: list[str]) -> set[str]:
    patterns = wanted if isinstance(wanted, list) else [wanted]
    return {module for module in modules if any(_matches(wanted, pattern, module) for pattern in patterns)}


def _matches(wanted: list[str] | str, pattern: str, module: str) -> bool:
    """PEFT's rule: an entry of a list is a name or the end of one, a lone string a regular expression for the whole."""
    if isinstance(wanted, str):
        return re.fullmatch(pattern, module) is not None
    return module == pattern or module.endswith(f".{pattern}")
