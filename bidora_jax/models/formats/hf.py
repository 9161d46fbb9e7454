"""Hugging Face model folders, read into the stacked tree and written back out of it.

A folder holds config.json, model.safetensors or its shards with model.safetensors.index.json, and the tokenizer.
Weights keep Hugging Face's layout, (out, in); the tensor of layer i is slice i of a stacked leaf. `name_table` of the
architecture (architectures/architecture.py) gives the leaf of each name; it is read in both directions. The files hold weights
dense or as bitsandbytes quantised them (models/formats/bnb.py); dense ones can be quantised while they are read, tensor by
tensor. Only `resolve_folder` downloads anything, and no file is unpickled or executed.
"""

import re
import shutil
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bidora_jax.errors import InputError
from bidora_jax.kernels import quantized
from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.xla_cpu import weights
from bidora_jax.kernels.xla_cpu.weights import Bits, held_as_bits
from bidora_jax.machine.files import read_json, staged, write_json
from bidora_jax.models import quantization
from bidora_jax.models.architectures.architecture import (
    EMBEDDING,
    HEAD,
    LAYERS,
    Architecture,
    Place,
    embeddings,
    endings,
    name_table,
)
from bidora_jax.models.architectures.heads import HeadSpec
from bidora_jax.models.base import dense_shapes
from bidora_jax.models.formats import bnb, hf_head, hf_tensors, safetensors_file
from bidora_jax.models.formats.bnb import Packed
from bidora_jax.models.formats.hf_config import NOT_A_MODEL, read_config, resolve_folder
from bidora_jax.models.formats.hf_head import Classes
from bidora_jax.models.formats.hf_tensors import INDEX, WEIGHTS, is_quantised, read_entries, source_dtype
from bidora_jax.models.formats.safetensors_file import Entry
from bidora_jax.models.formats.stacks import Stack, stacked
from bidora_jax.models.formats.tokenizer_files import template_files, tokenizer_files
from bidora_jax.models.settings import ModelConfig
from bidora_jax.models.spread import Placement

GENERATION = "generation_config.json"

__all__ = [
    "INDEX",
    "WEIGHTS",
    "Place",
    "is_quantised",
    "load",
    "load_base",
    "name_table",
    "read_config",
    "read_entries",
    "resolve_folder",
    "save_model",
    "source_dtype",
    "write_model",
]


def load_base(
    folder: Path | str,
    architecture: Architecture,
    dtype=None,
    to: quantization.Quantization | None = None,
    flag: str = "--model.dtype",
    over: Placement | None = None,
) -> PyTree:
    """The base tree of a model folder, in `dtype` or, without one, in the dtype of the files (models/formats/hf_tensors.py).

    `flag` is the caller's for a dtype; the message names it where nothing else decides. Weights that the files hold quantised keep
    their bytes; with `to`, dense ones are quantised as they are read. All names, shapes and dtypes are checked before any weight is
    read, and one InputError lists all that is wrong. Host memory peaks at the model's size on a CPU, and at one stacked leaf where
    the weights go to a device. With `over`, each device gets its part of every leaf, and no process holds more than its devices'.
    """
    folder = Path(folder)
    weights = hf_tensors.named(hf_tensors.read_weights(folder), architecture)
    hf_tensors.check(folder, architecture, weights)
    weights = {name: weights[name] for name in name_table(architecture)}
    dtype = jnp.dtype(dtype) if dtype is not None else hf_tensors.dense_dtype(folder, weights, flag=flag)
    shapes = dense_shapes(architecture, dtype)
    sources: dict[tuple[str, ...], list[Entry | Packed]] = {one.path: [] for one in architecture.tensors}
    for name, place in name_table(architecture).items():
        sources[place.path].append(weights[name])
    if to is not None and any(isinstance(weight, Packed) for weight in weights.values()):
        raise InputError(
            f"{folder} is quantised already: leave model.quantization at none, or point at the model before it was quantised"
        )

    def load(path, leaf: jax.ShapeDtypeStruct):
        names = _names(path)
        parts = sources[names]
        forms = {_form(part) for part in parts}
        if len(forms) > 1:
            raise InputError(_mixed(folder, names, parts))
        if forms - {"dense"}:
            return _of_parts(
                (bnb.read(part, leaf.dtype) for part in parts if isinstance(part, Packed)), len(parts), path, over
            )
        dense = [part for part in parts if isinstance(part, Entry)]
        if to is not None and to.covers(names):
            packed = (to.quantise(safetensors_file.read(part), leaf.dtype) for part in dense)
            return _of_parts(packed, len(parts), path, over)
        stack = Stack(leaf.shape, leaf.dtype, None if over is None else over.shardings(path, leaf))
        if names[0] != LAYERS:
            stack.read_whole(dense[0])
            return stack.on_devices()
        first = leaf.shape[0] - len(dense)  # layers before it have no such norm
        stack.fill(1.0, first)
        for layer, part in enumerate(dense, first):
            stack.read(layer, part)
        if held_as_bits(leaf.shape, leaf.dtype):
            return Bits(stack.on_devices(np.uint16), leaf.dtype)
        return stack.on_devices()

    return jax.tree_util.tree_map_with_path(load, shapes)


def load(
    settings: ModelConfig,
    folder: Path | str,
    architecture: Architecture,
    *,
    flag: str = "--model.dtype",
    over: Placement | None = None,
) -> PyTree:
    """The base of a folder as `model.dtype` and `model.quantization` ask for it; `flag` is the command's for a dtype. `over`: the
    devices, where they are several."""
    dtype = None if settings.dtype == "auto" else jnp.dtype(settings.dtype)
    return load_base(folder, architecture, dtype, quantization.resolve(settings, architecture), flag, over)


def _of_parts(parts: Iterable[PyTree], count: int, path: Any, over: Placement | None) -> PyTree:
    """A weight of trees of host arrays: one a layer, or the one tree of a weight outside of the layers."""
    if path[0].key != LAYERS:
        return jax.tree.map(lambda leaf: _on_devices(leaf, over), next(iter(parts)))
    first = next(parts := iter(parts))
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), first)
    return stacked(chain([first], parts), count, None if over is None else over.shardings(path, like))


def _on_devices(array: np.ndarray | np.generic, over: Placement | None) -> jax.Array:
    return jax.device_put(array) if over is None else over.whole(array)


def _form(part: Entry | Packed) -> str:
    if isinstance(part, Entry):
        return "dense"
    return f"{part.form} with double quantisation" if part.double else part.form


def _mixed(folder: Path, names: tuple[str, ...], parts: list) -> str:
    layers: dict[str, list[int]] = {}
    for layer, part in enumerate(parts):
        layers.setdefault(_form(part), []).append(layer)
    found = "; ".join(f"{form} in layers {', '.join(map(str, where))}" for form, where in layers.items())
    return (
        f"{folder}: {'.'.join(names[1:])} is {found}; layers are stacked here and must share one form: take a checkpoint "
        "that is quantised evenly, or the dense model with model.quantization"
    )


def save_model(
    folder: Path | str,
    source_folder: Path | str,
    architecture: Architecture,
    base: PyTree,
    *,
    dtype,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes `base` as a Hugging Face folder with the config, tokenizer and tensor names of `source_folder`.

    The folder appears whole or not at all; InputError when it exists and is not empty.
    """
    with staged(Path(folder)) as fresh:
        write_model(fresh, source_folder, architecture, base, dtype=dtype, max_shard_bytes=max_shard_bytes)


def write_model(
    folder: Path,
    source_folder: Path | str,
    architecture: Architecture,
    base: PyTree,
    *,
    dtype,
    max_shard_bytes: int = 5_000_000_000,
    ends: Sequence[int] = (),
    classifier: tuple[HeadSpec, Classes | None] | None = None,
) -> None:
    """`save_model` into an existing folder, for a caller that checks it before it gets its name. `ends`: tokens that end an
    answer, which generation_config.json is to list. `classifier`: the head that the base holds, and what its outputs stand for."""
    source = Path(source_folder)
    dtype = jnp.dtype(dtype)
    apart = architecture.tied and HEAD in base  # embeddings that were tied before training
    architecture = architecture.untied() if apart else architecture
    places, outer = name_table(architecture), embeddings(architecture)
    # Some tied checkpoints carry a copy, and their readers may expect it.
    if architecture.tied and outer[HEAD].name in read_entries(source):
        places[outer[HEAD].name] = places[outer[EMBEDDING].name]
    if classifier is not None:
        places |= hf_head.places(classifier[0])
    elif HEAD not in outer:  # what is read as it was written, by transformers' AutoModel too
        source_names = hf_tensors.spelled(hf_tensors.read_weights(source), architecture)
        places = {spelling: place for name, place in places.items() for spelling in source_names[name]}
    dtypes = {one.path: np.dtype(wide(dtype) if one.wide else dtype) for one in architecture.tensors}
    dtypes = {place.path: dtype for place in places.values()} | dtypes  # of a head too
    _write_weights(folder, places, base, dtypes, max_shard_bytes)
    settings = read_json(source / "config.json", NOT_A_MODEL)
    settings.pop("quantization_config", None)
    listed = settings.get("architectures")
    if listed and HEAD in outer:  # saved from AutoModel: engines would take it for a model without an output
        settings["architectures"] = [re.sub(r"(?<=[a-z0-9])Model$", "ForCausalLM", name) for name in listed]
    settings |= {"tie_word_embeddings": False} if apart else {}
    settings |= {} if classifier is None else hf_head.settings(settings, *classifier)
    if packed := [leaf for leaf in _flatten(base).values() if quantized.is_quantised(leaf)]:
        dense = _dense_linears(architecture, base)
        dense += [] if classifier is None else dict.fromkeys(part.saved_as for part in classifier[0].parts)
        settings["quantization_config"] = bnb.settings(packed[0], dense)
    spellings = [key for key in ("dtype", "torch_dtype") if key in settings]
    write_json(folder / "config.json", settings | dict.fromkeys(spellings or ["torch_dtype"], dtype.name))
    copied = [*tokenizer_files(source), *template_files(source), Path(GENERATION)]
    for name in (name for name in copied if (source / name).is_file()):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    _list_ends(folder / GENERATION, settings, ends)


def _list_ends(path: Path, settings: dict[str, Any], ends: Sequence[int]) -> None:
    """Adds to the generation settings the tokens that end an answer and are not listed there, the given ones first."""
    found = read_json(path, "fetch it again, or remove it") if path.is_file() else {}
    listed = found.get("eos_token_id", settings.get("eos_token_id"))
    listed = listed if isinstance(listed, list) else [token for token in [listed] if token is not None]
    if missing := [token for token in ends if token not in listed]:
        write_json(path, found | {"eos_token_id": [*listed, *missing]})


def _write_weights(
    folder: Path, places: dict[str, Place], base: PyTree, dtypes: dict[tuple[str, ...], np.dtype], limit: int
) -> None:
    leaves = _flatten(base)
    weights = {name: _tensors(name, place, leaves[place.path], dtypes[place.path]) for name, place in places.items()}
    sizes = {name: sum(_size(tensor) for tensor in parts.values()) for name, parts in weights.items()}
    shards = _split(sizes, limit)
    files = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    files = files if len(shards) > 1 else [WEIGHTS]
    weight_map = {}
    for file, names in zip(files, shards, strict=True):
        tensors = {name: tensor for weight in names for name, tensor in weights[weight].items()}
        safetensors_file.write(folder / file, tensors, (tensor.make() for tensor in tensors.values()))
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})


def _tensors(name: str, place: Place, leaf: Any, dtype: np.dtype) -> dict[str, bnb.Tensor]:
    """The tensors that one weight is written as; the host copy of each is made when it is written."""
    if quantized.is_quantised(leaf):
        return bnb.tensors(name, leaf, place.layer)
    leaf = np.asarray(leaf.bits).view(leaf.dtype) if isinstance(leaf, weights.Bits) else leaf
    shape = leaf.shape if place.layer is None else leaf.shape[1:]

    def make() -> np.ndarray:
        # A layer is cut out first: of a whole leaf jax would keep the host copy alive.
        return np.asarray(leaf if place.layer is None else leaf[place.layer]).astype(dtype, copy=False)

    return {name: bnb.Tensor(shape, dtype, make)}


def _size(tensor: bnb.Tensor) -> int:
    return tensor.dtype.itemsize * int(np.prod(tensor.shape))


def _dense_linears(architecture: Architecture, base: PyTree) -> list[str]:
    """Linear modules that a reader must not quantise, by name; of a stack, the name inside a layer."""
    named: dict[tuple[str, ...], tuple[str, ...]] = {
        (LAYERS, *linear.path.split("."), "weight"): endings(architecture, linear.path)
        for linear in architecture.linears
    }
    if HEAD in embeddings(architecture):
        named[HEAD, "weight"] = (embeddings(architecture)[HEAD].module,)
    dense = [named[path] for path, leaf in _flatten(base).items() if path in named and not quantized.is_quantised(leaf)]
    dense += [named[HEAD, "weight"]] if architecture.tied else []
    return [name for names in dense for name in names]


def _split(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in order, cut into runs of at most `limit` bytes (a larger tensor stands alone)."""
    shards, used = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _flatten(tree: PyTree) -> dict[tuple[str, ...], Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=quantized.is_packed)
    return {_names(path): leaf for path, leaf in leaves}


def _names(path) -> tuple[str, ...]:
    return tuple(key.key for key in path)
