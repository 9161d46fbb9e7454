"""What the files of a model folder hold: names, shapes and dtypes of its tensors, from the headers alone.

A folder holds model.safetensors, or its shards with model.safetensors.index.json. Where its dense tensors have several dtypes
(norms in F32 beside weights in BF16, say), config.json says which one the model has, as transformers reads it.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from bidora_jax.errors import InputError, listing
from bidora_jax.machine.files import read_json
from bidora_jax.models.architectures.architecture import Architecture, name_table
from bidora_jax.models.formats import bnb, safetensors_file
from bidora_jax.models.formats.bnb import Packed
from bidora_jax.models.formats.hf_config import NOT_A_MODEL
from bidora_jax.models.formats.safetensors_file import Entry

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FREQUENCIES = "inv_freq"
"""Of rotary positions, which may have another dtype than the model."""
BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids", "embeddings.token_type_ids")


def source_dtype(folder: Path | str, asked: str = "auto") -> np.dtype:
    """The dtype of a folder's dense tensors, or of those that have several, the one that config.json names, else `asked`.

    InputError where nothing decides, and for a tensor that is not floating point.
    """
    return dense_dtype(Path(folder), read_weights(folder), asked)


def is_quantised(folder: Path | str) -> bool:
    """Whether bitsandbytes quantised the weights of a folder."""
    return any(isinstance(weight, Packed) for weight in read_weights(folder).values())


def read_entries(folder: Path | str) -> dict[str, Entry]:
    """Every tensor of a model folder by name, over all shards, from the headers alone."""
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        return safetensors_file.read_header(_existing(folder / WEIGHTS))
    where = read_json(folder / INDEX, safetensors_file.DAMAGED).get("weight_map")
    if not isinstance(where, dict) or not all(Path(str(file)).name == file for file in where.values()):
        raise InputError(f"{folder / INDEX} has no weight_map of file names; {safetensors_file.DAMAGED}")
    files = sorted(set(where.values()))
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise InputError(f"{folder / INDEX} names shards that are not there; fetch them again:\n{listing(absent)}")
    shards = {file: safetensors_file.read_header(folder / file) for file in files}
    lost = [f"{name} in {file}" for name, file in where.items() if name not in shards[file]]
    if lost:
        raise InputError(f"{folder / INDEX} names tensors that their shards lack:\n{listing(lost)}")
    # A name that the index leaves out is still seen, so that a stray tensor is refused and not overlooked.
    return {name: entry for shard in shards.values() for name, entry in shard.items()} | {
        name: shards[file][name] for name, file in where.items()
    }


def _existing(file: Path) -> Path:
    if file.is_file():
        return file
    pickled = sorted(path.name for path in file.parent.glob("pytorch_model*.bin"))
    if pickled:
        raise InputError(
            f"{file.parent} holds {pickled[0]} and no safetensors; pickled weights are not read: load the model with "
            "transformers and save it with save_pretrained"
        )
    raise InputError(f"{file.parent} has no {file.name} and no {INDEX}; {NOT_A_MODEL}")


def read_weights(folder: Path | str) -> dict[str, Entry | Packed]:
    """The weights of a folder. Buffers of old checkpoints are left out: positions, types, and the rotary frequencies of decoders,
    which follow from rope_theta."""
    found = bnb.grouped(read_entries(folder))
    return {name: weight for name, weight in found.items() if not name.endswith(BUFFERS)}


def named(weights: dict[str, Entry | Packed], architecture: Architecture) -> dict[str, Entry | Packed]:
    """The weights under the names that a model with a head has. A folder that was saved from transformers' AutoModel has those of
    the model inside it, without "model." or "bert." before them, and transformers reads it all the same."""
    return {name: weights[spellings[0]] for name, spellings in spelled(weights, architecture).items()}


def spelled(names: Collection[str], architecture: Architecture) -> dict[str, list[str]]:
    """How a folder with tensors of these names spells those that a model with a head has; all others by their own names."""
    prefix, table = f"{architecture.prefix}.", name_table(architecture)
    bare = not any(name.startswith(prefix) for name in names)
    found: dict[str, list[str]] = {}
    for name in names:
        own = architecture.canonical(name)
        found.setdefault(prefix + own if bare and prefix + own in table else own, []).append(name)
    return found


def check(folder: Path, architecture: Architecture, entries: dict[str, Entry | Packed]) -> None:
    """InputError, listing all, for tensors that are not those of the architecture, or of another shape."""
    table, shapes = name_table(architecture), {one.path: one.shape for one in architecture.tensors}
    wrong = [f"missing: {name}" for name in table if name not in entries]
    wrong += [
        f"not part of this model: {name}" for name in entries if name not in table and not architecture.ignores(name)
    ]
    for name, place in table.items():
        shape = shapes[place.path]
        if name in entries and entries[name].shape != shape:
            wrong.append(f"shape of {name}: expected {shape}, found {entries[name].shape}")
    if wrong:
        raise InputError(
            f"{folder}: {len(wrong)} tensors do not fit config.json:\n{listing(wrong)}\n"
            "the weights and config.json must come from the same model; fetch the folder again"
        )


def dense_dtype(
    folder: Path, weights: dict[str, Entry | Packed], asked: str = "auto", flag: str = "--model.dtype"
) -> np.dtype:
    """`source_dtype` of weights that are read already; `flag` is the one that asks for a dtype, for the message."""
    dense = {name: weight for name, weight in weights.items() if isinstance(weight, Entry)}
    found = sorted({weight.dtype for name, weight in dense.items() if not name.endswith(FREQUENCIES)})
    unknown = [dtype for dtype in found if dtype not in safetensors_file.FLOATS]
    if unknown:
        raise InputError(
            f"{folder}: tensors of dtype {', '.join(unknown)}; expected {', '.join(safetensors_file.FLOATS)}: "
            "point at the model before it was quantised"
        )
    if len(found) == 1:
        return safetensors_file.DTYPES[found[0]]
    by_name = {dtype.name: dtype for dtype in safetensors_file.FLOATS.values()}
    settings = read_json(folder / "config.json", NOT_A_MODEL)
    for name in (settings.get("dtype"), settings.get("torch_dtype"), asked):
        if isinstance(name, str) and name.removeprefix("torch.") in by_name:
            return by_name[name.removeprefix("torch.")]
    raise InputError(
        f"{folder} mixes {' and '.join(found)}, and its config.json names no dtype: say which one the model has with {flag} "
        f"{' or '.join(sorted(safetensors_file.FLOATS[dtype].name for dtype in found))} (float32 keeps all digits)"
    )
