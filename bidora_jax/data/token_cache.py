"""Encoded records kept between runs: the second run on the same records reads their tokens instead of making them.

    name  = SHA-256 of the records, the tokenizer's files, the settings, and the code and the packages that encode
    file  = safetensors: each field of the examples end to end, and their lengths

Whatever could change a token changes the name, so no file is ever stale. A damaged file is reported, and its records are
encoded again. Where no file can be written, the run goes on without the cache.
"""

import hashlib
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bidora_jax.data import chat_template, encoding, left_out, prompts, records, turns
from bidora_jax.data import tokenizer as tokenizers
from bidora_jax.data.encoding import Example, Split
from bidora_jax.data.records import Record
from bidora_jax.data.tokenizer import Tokenizer
from bidora_jax.machine.files import chosen_folder, user_cache, whole_file
from bidora_jax.models.formats import tokenizer_files

WORTH = 1.0  # seconds: tokens that were made faster are not kept
ROOM = 4 * 2**30  # bytes that all files may take; the least recently used go first


def encode_all(
    given: list[Record], tokenizer: Tokenizer, cache: str, *, worth: float = WORTH, **settings: Any
) -> tuple[Split, str]:
    """encoding.encode_all(given, tokenizer, **settings), read from the cache if it is there, and kept if it took `worth` seconds.

    `cache` names a folder; "auto" is the one in the user's cache folder, "" is none. The text says whether tokens were read or
    kept; it is empty where neither happened. Raises InputError as encoding.encode_all does.
    """
    if not cache:
        return encoding.encode_all(given, tokenizer, **settings), ""
    place = chosen_folder(cache, lambda: user_cache() / "tokens")
    path, note = place / f"{name(Path(tokenizer.name_or_path), given, settings)}.safetensors", ""
    began = time.monotonic()
    if path.exists():
        try:
            found = read(path)
            os.utime(path)  # the least recently used files are removed first
            return found, f"tokens read in {time.monotonic() - began:.1f} s from {path}"
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            note = f"{path} is damaged and is not used: {error}"
    split, seconds = encoding.encode_all(given, tokenizer, **settings), time.monotonic() - began
    if seconds < worth:
        return split, note
    try:
        write(path, split)
        _make_room(place, ROOM)
    except OSError as error:
        return split, f"tokens are not kept, as {path} cannot be written: {error.strerror}"
    return split, note or f"tokens made in {seconds:.1f} s and kept in {path}"


def name(folder: Path, given: list[Record], settings: dict[str, Any]) -> str:
    """A hash of all that the tokens of these records depend on; `folder` is the tokenizer's."""
    whole = hashlib.sha256()
    code = [
        Path(module.__file__ or "")
        for module in (chat_template, encoding, left_out, prompts, records, tokenizers, turns)
    ]
    read = [*tokenizer_files.tokenizer_files(folder), *tokenizer_files.template_files(folder)]
    for name, path in [*((path.name, path) for path in code), *((str(file), folder / file) for file in read)]:
        content = path.read_bytes()
        whole.update(f"{name} {len(content)} ".encode() + content)
    packages = {package: version(package) for package in ("tokenizers", "transformers")}
    whole.update(json.dumps([settings, packages], sort_keys=True).encode())
    for record in given:
        whole.update(json.dumps(record).encode() + b"\n")
    return whole.hexdigest()[:32]


# The file


def write(path: Path, split: Split) -> None:
    """Writes the file whole or not at all."""
    tensors = {field: _joined([getattr(example, field) for example in split.examples]) for field in Example._fields}
    lengths = {f"{field} lengths": np.array([np.size(getattr(example, field)) for example in split.examples])
               for field in Example._fields}  # fmt: skip
    counts = {field: json.dumps(value) for field, value in split._asdict().items() if field != "examples"}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole_file(path) as fresh:
            save_file(tensors | lengths, fresh, metadata=counts | {"sha256": _digest(tensors | lengths)})
    except SafetensorError as error:  # a full disk, among others
        raise OSError(0, str(error)) from error


def read(path: Path) -> Split:
    """What `write` wrote. Raises SafetensorError, OSError, KeyError or ValueError for anything else."""
    with safe_open(path, framework="numpy") as file:
        tensors, counts = {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    if counts.pop("sha256") != _digest(tensors):
        raise ValueError("its content is not what was written")
    columns = [_parted(tensors[field], tensors[f"{field} lengths"], field) for field in Example._fields]
    examples = [Example(*row) for row in zip(*columns, strict=True)]
    return Split(examples, **{field: json.loads(value) for field, value in counts.items()})


def _joined(values: list[Any]) -> Shaped[np.ndarray, " N"]:
    return np.concatenate([np.atleast_1d(value) for value in values])


def _parted(whole: Shaped[np.ndarray, " N"], lengths: Shaped[np.ndarray, " K"], field: str) -> list[Any]:
    if Example.__annotations__[field] in (bool, int):
        return whole.tolist()
    return np.split(whole, np.cumsum(lengths)[:-1])


def _digest(tensors: dict[str, np.ndarray]) -> str:
    whole = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        whole.update(f"{key} {value.dtype} {value.shape} ".encode() + value.tobytes())
    return whole.hexdigest()


def _make_room(folder: Path, room: int) -> None:
    """Removes the files that were not used for longest until the rest fit."""
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    taken = 0
    for path in files:
        taken += path.stat().st_size
        if taken > room and path != files[0]:
            path.unlink(missing_ok=True)
