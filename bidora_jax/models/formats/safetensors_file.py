"""The safetensors format, one tensor at a time: 8 bytes little-endian header length, a JSON header, the data.

The header says {name: {"dtype", "shape", "data_offsets": [begin, end]}}, offsets counted from the end of the header
(https://github.com/huggingface/safetensors#format). Reading goes straight from the file into the caller's array and
writing straight from it, in bf16 too, so that neither ever holds a second copy of a file; the safetensors package is
the oracle in the tests. Floating-point tensors are read, and the 8-bit integers that quantised weights are made of.
Nothing here is specific to a model.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from bidora_jax import strict_json
from bidora_jax.errors import InputError

FLOATS = {"F32": np.dtype(jnp.float32), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype(jnp.float16)}
DTYPES = FLOATS | {"U8": np.dtype(np.uint8), "I8": np.dtype(np.int8)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The safetensors package refuses longer headers; a larger number means that the file is something else.
LONGEST_HEADER = 100_000_000
LFS_POINTER = b"version "
"""How the text of a pointer begins; as the length of a header it would be 2.3e18, so no tensor file begins like this."""
DAMAGED = "the file is damaged or its download was cut short: fetch it again"


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: `begin` counts bytes from the start of the file, `dtype` is safetensors' name."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of a file by name, without reading their data.

    InputError, naming the file, when it is truncated or its header does not describe it.
    """
    total = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(8)
        length = int.from_bytes(first, "little")
        if first == LFS_POINTER:
            raise InputError(f"{file} is a pointer of Git LFS and not the file itself; fetch it with git lfs pull")
        if total < 8 or length > min(LONGEST_HEADER, total - 8):
            raise InputError(f"{file} is not a whole safetensors file ({total} bytes); {DAMAGED}")
        text = stream.read(length)
    try:
        header = strict_json.loads(text)
        entries = {name: _entry(file, 8 + length, fields) for name, fields in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{file} has no readable safetensors header; {DAMAGED}") from None
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].size)):
        if entry.begin != end:
            what = "lies over the one before it" if entry.begin < end else "leaves bytes before it that are no tensor's"
            raise InputError(f"{file}: the tensor {name} {what}; {DAMAGED}")
        end += entry.size
    if total != end:
        raise InputError(f"{file} has {total} bytes where its header asks for {end}; {DAMAGED}")
    return entries


def _entry(file: Path, data: int, fields: Mapping) -> Entry:
    """One record of a header; ValueError when its size does not fit its shape (unknown dtypes can't be checked)."""
    dtype, shape, (begin, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
    if not isinstance(dtype, str) or not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(fields)
    entry = Entry(file, dtype, shape, data + begin, end - begin)
    if end < begin or (dtype in DTYPES and entry.size != DTYPES[dtype].itemsize * math.prod(shape)):
        raise ValueError(fields)
    return entry


def read_into(entry: Entry, out: np.ndarray, first: int = 0) -> None:
    """Fills `out`, contiguous, with the rows of a tensor from `first` on, casting when its dtype is another than the file's."""
    stored = out if out.dtype == DTYPES[entry.dtype] else np.empty(out.shape, DTYPES[entry.dtype])
    with entry.file.open("rb") as stream:
        stream.seek(entry.begin + (first * entry.size // entry.shape[0] if first else 0))
        count = stream.readinto(stored.reshape(-1).view(np.uint8).data)
    if count != stored.nbytes:
        raise InputError(f"{entry.file} ended after {count} of {stored.nbytes} bytes of a tensor; {DAMAGED}")
    if stored is not out:
        out[...] = stored


def read(entry: Entry) -> np.ndarray:
    """A tensor in the dtype of the file."""
    out = np.empty(entry.shape, DTYPES[entry.dtype])
    read_into(entry, out)
    return out


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array on a 64-byte boundary: device_put takes such memory over on a CPU instead of copying it."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + size].view(dtype).reshape(shape)


@runtime_checkable
class Spec(Protocol):
    """What has to be known of a tensor before it is written; an array will do."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...


def write(file: Path, specs: Mapping[str, Spec], tensors: Iterable[np.ndarray]) -> None:
    """Writes tensors in the order of `specs`; each is taken from the iterable when its turn comes."""
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        begin, end = end, end + spec.dtype.itemsize * math.prod(spec.shape)
        header[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for (name, spec), tensor in zip(specs.items(), tensors, strict=True):
            if tensor.shape != spec.shape or tensor.dtype != spec.dtype:
                raise ValueError(f"{name}: {tensor.dtype}{tensor.shape} where {spec.dtype}{spec.shape} was announced")
            stream.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
