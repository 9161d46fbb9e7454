"""PEFT adapter folders (adapter_config.json, adapter_model.safetensors), read and written; format of PEFT 0.21.

    base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight          (r, in)
    base_model.model.model.layers.N.self_attn.q_proj.lora_B.weight          (out, r)
    base_model.model.model.layers.N.self_attn.q_proj.lora_magnitude_vector  (out,)   DoRA; older files add ".weight"
    base_model.model.lm_head.weight, base_model.model.model.embed_tokens.weight      modules_to_save, or save_embedding_layers
    base_model.model.score.weight, base_model.model.classifier.{weight,bias}         the head of a classifier, and its other parts

All tensors are float32, in PEFT's layout, which is this package's: nothing is transposed. A file holds each layer's factors at
the layer's own rank, and no tensor of a layer without an adapter; the stacks here are filled up with zeros. PEFT only warns
about missing tensors and ignores magnitudes without use_dora; both give another function than the trained one, so reading
refuses them. The names above are a decoder's; another architecture's modules have its own names (architectures/architecture.py).
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bidora_jax.errors import InputError, listing
from bidora_jax.machine.files import staged
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters.adapter import Adapter, get, put
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.adapters.targets import Site
from bidora_jax.models.architectures.architecture import (
    EMBEDDING,
    HEAD,
    Architecture,
    embeddings,
    linear_shapes,
    module_name,
)
from bidora_jax.models.architectures.heads import HEAD_TREE
from bidora_jax.models.formats import peft_config, safetensors_file
from bidora_jax.models.formats.peft_config import CONFIG, NOT_AN_ADAPTER
from bidora_jax.models.formats.safetensors_file import Entry

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""PEFT's name of the model inside its wrapper."""
OF_AN_ADAPTER = re.compile(
    r"(?<=\.lora_[AB])\.\w+(?=\.weight$)|(?<=\.lora_magnitude_vector)\.(?!weight$)\w+(?=$|\.weight$)"
)
SUFFIXES = {"A": "lora_A.weight", "B": "lora_B.weight", "m": "lora_magnitude_vector"}


def save_adapter(
    folder: Path | str,
    architecture: Architecture,
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
        write_adapter(fresh, architecture, adapter, settings, direction, magnitude, base_model_name=base_model_name)


def write_adapter(
    folder: Path,
    architecture: Architecture,
    adapter: Adapter,
    settings: AdapterConfig,
    direction: PyTree,
    magnitude: PyTree,
    *,
    base_model_name: str | None,
) -> None:
    """`save_adapter` into an existing folder, for a caller that checks it before it gets its name."""
    peft_config.write(folder, architecture, settings, adapter.sites, base_model_name, adapter.head)
    places = {
        _name(architecture, layer, site, leaf): (site, layer, leaf, stack)
        for site in adapter.sites
        for leaf, stack in _stacks(adapter, site, direction, magnitude).items()
        for layer in site.layers
    }
    specs = {
        name: jax.ShapeDtypeStruct(_used(site.ranks[layer], leaf, stack.shape[1:]), jnp.float32)
        for name, (site, layer, leaf, stack) in places.items()
    }
    whole = {name: get(direction, path) for path, (name, _) in _whole(adapter, architecture).items()}
    specs = dict(
        sorted((specs | {name: jax.ShapeDtypeStruct(w.shape, jnp.float32) for name, w in whole.items()}).items())
    )

    def tensor(name: str) -> np.ndarray:
        if name in whole:
            return np.asarray(whole[name])
        _, layer, _, stack = places[name]
        return np.asarray(stack[layer])[tuple(map(slice, specs[name].shape))]

    safetensors_file.write(folder / WEIGHTS, specs, map(tensor, specs))


def load_adapter(folder: Path | str, architecture: Architecture) -> tuple[Adapter, PyTree, PyTree]:
    """The adapter, direction and magnitude of a PEFT folder, in float32.

    InputError when the folder means anything but LoRA, rsLoRA or DoRA on the linear layers of this model, and when a tensor
    is missing, unknown, or of another shape.
    """
    folder = peft_config.meant(folder)
    settings = peft_config.read(folder)
    peft_config.check_layers_pattern(folder, architecture)
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} has no {WEIGHTS}; {NOT_AN_ADAPTER} (a pickled adapter_model.bin is not read)")
    entries = {_usual(name): entry for name, entry in safetensors_file.read_header(folder / WEIGHTS).items()}
    try:
        adapter = adapters.resolve(settings, architecture, strict=False, **_head(folder, architecture, entries))
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None
    trained = adapter.whole_modules
    adapter = _with_held(adapter, architecture, entries)
    _check(folder, adapter, architecture, entries)
    direction, magnitude = {}, {}
    for site in adapter.sites:
        stacks = {
            leaf: _read_stack(architecture, site, leaf, shape, entries)
            for leaf, shape in _shapes(adapter, site, architecture).items()
        }
        direction = put(direction, f"layers.{site.path}", {leaf: stacks[leaf] for leaf in "AB"})
        if adapter.magnitude:
            magnitude = put(magnitude, f"layers.{site.path}", {"m": stacks["m"]})
    _refuse_not_finite(folder, {"direction": direction, "magnitude": magnitude})
    for path, (name, shape) in _whole(adapter, architecture).items():
        weight = np.empty(shape, np.float32)
        safetensors_file.read_into(entries[name], weight)
        direction = put(direction, path, jnp.asarray(weight))
    if architecture.tied and adapter.whole_modules and not trained:
        # One matrix of PEFT's model; what it reads last counts.
        both = direction[HEAD if HEAD in direction else EMBEDDING]
        adapter = replace(adapter, whole_modules=(EMBEDDING, HEAD))
        direction = {**direction, EMBEDDING: both, HEAD: both}
    return adapter, direction, magnitude


def _refuse_not_finite(folder: Path, trees: PyTree) -> None:
    """InputError for factors of which nothing could be computed."""
    wrong = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
        if not jnp.isfinite(leaf).all()
    ]
    if wrong:
        raise InputError(
            f"{folder / WEIGHTS} holds NaN or infinity:\n{listing(wrong)}\nthe training that wrote it diverged; take an earlier one"
        )


def _head(folder: Path, architecture: Architecture, entries: dict[str, Entry]) -> dict[str, Any]:
    """The head of a classifier's folder, for `resolve`: with as many outputs as its last tensor has rows. The parts that the file
    lacks are the base's."""
    kind = peft_config.kind_of_head(folder)
    if kind is None:
        return {}
    *_, out = architecture.head(kind, 1).parts
    name = f"{PREFIX}{out.module}.weight"
    if name not in entries:
        raise InputError(
            f"{folder / WEIGHTS} lacks {name}: {CONFIG} says {peft_config.TASK_TYPES[kind]}, and the trained head was not saved; "
            "train again with its module in modules_to_save, as PEFT does by itself where it knows the task"
        )
    head = architecture.head(kind, entries[name].shape[0])
    held = {p.name for p in head.parts if all(f"{PREFIX}{p.module}.{leaf}" in entries for leaf in p.tensors)}
    return {"head": head, "present": {part.name for part in head.parts} - held}


def _with_held(adapter: Adapter, architecture: Architecture, entries: dict[str, Entry]) -> Adapter:
    """The adapter with the embeddings that its file holds though it did not train them (PEFT's save_embedding_layers): PEFT puts
    them in the base's place, as it does with those that were trained."""
    specs = embeddings(architecture)
    held = tuple(key for key in specs if key in adapter.whole_modules or PREFIX + specs[key].name in entries)
    return replace(adapter, whole_modules=held)


def _usual(name: str) -> str:
    """The name of a tensor as PEFT writes it today. Some programs keep the adapter's name in it (`lora_A.default.weight`), and PEFT
    once wrote the magnitude of a layer as `lora_magnitude_vector.weight`."""
    name = OF_AN_ADAPTER.sub("", name)
    return name.removesuffix(".weight") if name.endswith(f"{SUFFIXES['m']}.weight") else name


def _name(architecture: Architecture, layer: int, site: Site, leaf: str) -> str:
    return f"{PREFIX}{module_name(architecture, layer, site.path)}.{SUFFIXES[leaf]}"


def _whole(adapter: Adapter, architecture: Architecture) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name and shape in the file of each tensor that is trained whole, by its path in the direction."""
    specs = embeddings(architecture)
    found = {f"{key}.weight": (PREFIX + specs[key].name, specs[key].shape) for key in adapter.whole_modules}
    for part in () if adapter.head is None else adapter.head.parts:
        for leaf, shape in part.tensors.items():
            found[f"{HEAD_TREE}.{part.name}.{leaf}"] = f"{PREFIX}{part.module}.{leaf}", shape
    return found


def _stacks(adapter: Adapter, site: Site, direction: PyTree, magnitude: PyTree) -> dict[str, jax.Array]:
    """A, B and m of a site, by name."""
    return get(direction["layers"], site.path) | (get(magnitude["layers"], site.path) if adapter.magnitude else {})


def _shapes(adapter: Adapter, site: Site, architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of one layer, as it is stacked."""
    out_features, in_features = linear_shapes(architecture)[site.path]
    shapes = {"A": (site.rank, in_features), "B": (out_features, site.rank)}
    return shapes | ({"m": (out_features,)} if adapter.magnitude else {})


def _used(rank: int, leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The part of a stacked tensor that a layer of this rank fills."""
    return {"A": (rank, *shape[1:]), "B": (*shape[:1], rank), "m": shape}[leaf]


def _read_stack(
    architecture: Architecture, site: Site, leaf: str, shape: tuple[int, ...], entries: dict[str, Entry]
) -> jax.Array:
    stack = np.zeros((len(site.ranks), *shape), np.float32)
    for layer in site.layers:
        entry = entries[_name(architecture, layer, site, leaf)]
        part = np.empty(entry.shape, np.float32)
        safetensors_file.read_into(entry, part)
        stack[layer][tuple(map(slice, entry.shape))] = part
    return jnp.asarray(stack)


def _check(folder: Path, adapter: Adapter, architecture: Architecture, entries: dict[str, Entry]) -> None:
    file = folder / WEIGHTS
    magnitudes = [name for name in entries if name.endswith(SUFFIXES["m"])]
    if bool(magnitudes) != adapter.magnitude:
        found = "magnitudes, but use_dora is false" if magnitudes else "no magnitudes, but use_dora is true"
        raise InputError(f"{file} holds {found} in {CONFIG}; the two files must come from the same training")
    expected = {
        _name(architecture, layer, site, leaf): _used(site.ranks[layer], leaf, shape)
        for site in adapter.sites
        for leaf, shape in _shapes(adapter, site, architecture).items()
        for layer in site.layers
    }
    expected |= dict(_whole(adapter, architecture).values())
    _refuse_resized(file, entries, architecture)
    wrong = [f"missing: {name}" for name in expected if name not in entries]
    wrong += [f"not used by {CONFIG}: {name}" for name in entries if name not in expected]
    for name in expected.keys() & entries.keys():
        if entries[name].shape != expected[name]:
            wrong.append(f"shape of {name}: expected {expected[name]}, found {entries[name].shape}")
        if entries[name].dtype not in safetensors_file.FLOATS:
            wrong.append(f"dtype of {name}: expected {', '.join(safetensors_file.FLOATS)}, found {entries[name].dtype}")
    if wrong:
        raise InputError(
            f"{file}: {len(wrong)} tensors do not fit:\n{listing(sorted(wrong))}\n"
            f"{CONFIG}, the tensors and the base model must belong together{peft_config.says_of_its_base(folder)}"
        )


def _refuse_resized(file: Path, entries: dict[str, Entry], architecture: Architecture) -> None:
    """InputError where the file holds embeddings of another number of tokens than the base has."""
    for name, rows, width in ((PREFIX + spec.name, *spec.shape) for spec in embeddings(architecture).values()):
        found = entries[name].shape if name in entries else (rows, width)
        if len(found) == 2 and found[1] == width and found[0] != rows:
            raise InputError(
                f"{file}: {name} has {found[0]:,} rows, and the base {rows:,}: the vocabulary was resized before the adapter was "
                f"trained. Resize the base alike (transformers: model.resize_token_embeddings({found[0]}), then save_pretrained, "
                "with the tokenizer of the adapter), and name that folder as the model"
                f"{peft_config.says_of_its_base(file.parent)}"
            )
