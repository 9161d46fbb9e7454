"""Writes and reads GGUF files, with the package gguf.

    f16     every matrix rounded to float16; a value that float16 does not hold is refused
    bf16    rounded to the nearest bfloat16
    q8_0    blocks of 32 in a row, 8 bits each and a float16 scale; matrices with rows of another length are float16
    f32     nothing is rounded

Norms and biases are float32 in all of them. One tensor is in memory at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from bidora_jax.errors import InputError
from bidora_jax.models.formats.gguf_architecture import Key

Quantize = Literal["f16", "bf16", "q8_0", "f32"]


class Array(NamedTuple):
    """A tensor to write."""

    name: str
    shape: tuple[int, ...]
    narrow: bool
    """Whether it takes the type that is asked for; others stay float32."""
    make: Callable[[], np.ndarray]
    """Its values in float32, when it is its turn."""


def package() -> Any:
    """The package gguf; InputError where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise InputError(
            "GGUF files are written with the package gguf, which is not installed: pip install gguf"
        ) from None
    return gguf


def write(path: Path, architecture: str, keys: Sequence[Key], arrays: Sequence[Array], quantize: Quantize) -> None:
    """Writes the file; a caller that must not leave half a one gives it a temporary name."""
    gguf = package()
    kinds = gguf.GGUFValueType
    types = {"uint32": kinds.UINT32, "float32": kinds.FLOAT32, "bool": kinds.BOOL, "string": kinds.STRING}
    inside = {"strings": kinds.STRING, "int32s": kinds.INT32, "float32s": kinds.FLOAT32}
    writer = gguf.GGUFWriter(path, architecture)
    for key in keys:
        if key.kind in inside:
            writer.add_key_value(key.name, key.value, kinds.ARRAY, sub_type=inside[key.kind])
        else:
            writer.add_key_value(key.name, key.value, types[key.kind])
    for array in arrays:
        kind = _type(gguf, array, quantize)
        shape, dtype = _stored(gguf, array.shape, kind)
        writer.add_tensor_info(array.name, shape, dtype, int(np.prod(shape)) * dtype.itemsize, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array in arrays:
            writer.write_tensor_data(_rounded(gguf, array, _type(gguf, array, quantize)))
    finally:
        writer.close()


def file_type(quantize: Quantize) -> int:
    """general.file_type: what most of the file is."""
    return int(package().LlamaFileType["ALL_F32" if quantize == "f32" else f"MOSTLY_{quantize.upper()}"])


def tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a file in float32, dequantised."""
    gguf = package()
    for tensor in gguf.GGUFReader(path).tensors:
        yield tensor.name, np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)


def _type(gguf: Any, array: Array, quantize: Quantize) -> Any:
    kinds = gguf.GGMLQuantizationType
    if not array.narrow:
        return kinds.F32
    kind = kinds[quantize.upper()]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kinds.F16 if array.shape[-1] % block else kind


def _stored(gguf: Any, shape: tuple[int, ...], kind: Any) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and the dtype of the array that holds a tensor; of what NumPy has no dtype for, its bytes."""
    plain = {gguf.GGMLQuantizationType.F32: np.dtype(np.float32), gguf.GGMLQuantizationType.F16: np.dtype(np.float16)}
    if kind in plain:
        return shape, plain[kind]
    return tuple(gguf.quant_shape_to_byte_shape(shape, kind)), np.dtype(np.uint8)


def _rounded(gguf: Any, array: Array, kind: Any) -> np.ndarray:
    values = np.ascontiguousarray(array.make(), np.float32)
    if kind != gguf.GGMLQuantizationType.F16:
        return gguf.quants.quantize(values, kind)
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise InputError(
            f"{array.name} holds {float(np.max(np.abs(values))):.3g}, and float16 at most 65504: write the file with "
            "--quantize bf16"
        )
    return rounded
