"""bitsandbytes' files: the tensors that a quantised weight X becomes in a Hugging Face folder, read and written.

    nf4    X.weight                              U8 (⌈O·I/2⌉, 1)   two codes a byte, the first in the high half
           X.weight.absmax                       F32 (blocks,), or U8 with double quantisation
           X.weight.nested_absmax                F32 (⌈blocks/256⌉,)       double quantisation only
           X.weight.quant_map, nested_quant_map  F32 (16,), F32 (256,)     the two codebooks
           X.weight.quant_state.bitsandbytes__nf4   U8: JSON with shape, dtype, block sizes and nested_offset
    int8   X.weight I8 (O, I),  X.SCB F32 (O,) the rows' absmax,  X.weight_format U8 () = 0, row-major

Format of bitsandbytes 0.50 as transformers saves it. The bytes are those of kernels/quantized.py: nothing is converted.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np

from bidora_jax import strict_json
from bidora_jax.errors import InputError, listing
from bidora_jax.kernels import quantized
from bidora_jax.kernels.dynamic_8bit import dynamic_map
from bidora_jax.models.formats import safetensors_file
from bidora_jax.models.formats.safetensors_file import Entry

STATE = ".quant_state.bitsandbytes__"
REMEDY = "bitsandbytes' nf4 (blocks of 64, nested ones of 256) and int8 are read; quantise the dense model again"
NF4_PARTS = {"absmax", "quant_map", "nested_absmax", "nested_quant_map"}


@dataclass(frozen=True)
class Packed:
    """A quantised weight in a file: its tensors by their part of the format, and the values of its JSON."""

    name: str
    form: str
    shape: tuple[int, ...]
    """(O, I)"""
    parts: Mapping[str, Entry]
    double: bool = False
    offset: float = 0.0


class Tensor(NamedTuple):
    """A tensor to be written; `make` gives its array when it is written."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]


def grouped(entries: Mapping[str, Entry]) -> dict[str, Entry | Packed]:
    """The weights of a folder by name, each quantised one with its side tensors folded in.

    InputError, listing all of them, for weights in another form than the two that are read.
    """
    problems: list[str] = []
    packed: dict[str, Packed | None] = {}
    for name in entries:
        weight, state, form = name.partition(STATE)
        if state:
            packed[weight] = _nf4(weight, form, entries, problems)
        elif name.endswith(".SCB"):
            weight = f"{name.removesuffix('SCB')}weight"
            packed[weight] = _int8(weight, entries, problems)
    stray = [name for name, entry in entries.items() if name not in packed and entry.dtype in ("U8", "I8")]
    stray = [name for name in stray if not any(name.startswith(weight) for weight in packed)]
    problems += [f"{name}: 8-bit codes without their scales" for name in stray]
    if problems:
        raise InputError(f"{len(problems)} quantised weights can't be read:\n{listing(problems)}\n{REMEDY}")
    whole = {name: weight for name, weight in packed.items() if weight is not None}
    folded = {_part_name(weight, part) for weight in whole.values() for part in weight.parts}
    folded |= {name for name in entries if STATE in name}
    return {name: entry for name, entry in entries.items() if name not in folded} | whole


def read(packed: Packed, dtype) -> quantized.Int8 | quantized.NF4:
    """One weight, its leaves host arrays with the bytes of the file; it will be used in `dtype`."""
    arrays = {
        part: safetensors_file.read(entry)
        for part, entry in packed.parts.items()
        if entry.dtype in safetensors_file.DTYPES
    }
    if packed.form == "int8":
        return quantized.Int8(arrays["weight"], arrays["SCB"].reshape(-1), np.dtype(dtype))
    for part, expected in (("quant_map", quantized.CODEBOOK), ("nested_quant_map", dynamic_map(signed=True))):
        # The last bit of the nested map's entries depends on the processor that made the file.
        if part in arrays and not np.allclose(arrays[part], expected, rtol=1e-6, atol=0):
            raise InputError(f"{_part_name(packed, part)} is not bitsandbytes' codebook of that kind; {REMEDY}")
    absmax = arrays["absmax"].reshape(-1)
    if packed.double:
        absmax = quantized.Nested(absmax, arrays["nested_absmax"].reshape(-1), np.float32(packed.offset))
    # The codes' bytes may be filed under another dtype (bnb_4bit_quant_storage), for the sake of sharding.
    codes = arrays["weight"].reshape(-1).view(np.uint8)
    return quantized.NF4(codes, absmax, (packed.shape[0], packed.shape[1]), np.dtype(dtype))


def tensors(name: str, stack: quantized.Int8 | quantized.NF4, layer: int | None) -> dict[str, Tensor]:
    """What a weight, or one of a stack, is written as: names, shapes, dtypes, and the arrays when they are asked for."""

    def of(leaf, shape=None) -> Tensor:
        final = shape or (leaf.shape if layer is None else leaf.shape[1:])

        def make() -> np.ndarray:
            # A layer is cut out first: of a whole stack jax would keep the host copy alive.
            return np.asarray(leaf if layer is None else leaf[layer]).reshape(final)

        return Tensor(final, np.dtype(leaf.dtype), make)

    if isinstance(stack, quantized.Int8):
        layout = _constant(np.zeros((), np.uint8))  # 0 is row-major
        return {name: of(stack.codes), f"{name.removesuffix('weight')}SCB": of(stack.absmax), f"{name}_format": layout}
    absmax, offset = stack.absmax, None
    parts = {"quant_map": _constant(quantized.CODEBOOK)}
    if isinstance(absmax, quantized.Nested):
        offset = float(absmax.offset if layer is None else absmax.offset[layer])
        parts |= {"absmax": of(absmax.codes), "nested_absmax": of(absmax.absmax)}
        parts |= {"nested_quant_map": _constant(dynamic_map(signed=True))}
    else:
        parts |= {"absmax": of(absmax)}
    parts |= {STATE[1:] + "nf4": _constant(np.frombuffer(_state(stack, offset).encode(), np.uint8))}
    codes = of(stack.codes, (stack.codes.shape[-1], 1))
    return {name: codes} | {f"{name}.{part}": tensor for part, tensor in parts.items()}


def settings(weight: quantized.Int8 | quantized.NF4, skipped: list[str]) -> dict[str, Any]:
    """The quantization_config of config.json for weights like this one; `skipped` names the linear modules left dense."""
    four = isinstance(weight, quantized.NF4)
    return {
        "_load_in_4bit": four, "_load_in_8bit": not four,
        "bnb_4bit_compute_dtype": weight.dtype.name if four else "float32", "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4" if four else "fp4",
        "bnb_4bit_use_double_quant": four and isinstance(weight.absmax, quantized.Nested),
        "llm_int8_enable_fp32_cpu_offload": False, "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": skipped or None, "llm_int8_threshold": 6.0,
        "load_in_4bit": four, "load_in_8bit": not four, "quant_method": "bitsandbytes",
    }  # fmt: skip


def _state(weight: quantized.NF4, offset: float | None) -> str:
    state: dict[str, Any] = {
        "quant_type": "nf4", "blocksize": quantized.BLOCK, "dtype": weight.dtype.name, "shape": list(weight.matrix_shape)
    }  # fmt: skip
    if offset is not None:
        state |= {"nested_blocksize": quantized.NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": offset}
    return json.dumps(state)


def _constant(array: np.ndarray) -> Tensor:
    return Tensor(array.shape, array.dtype, lambda: array)


def _nf4(weight: str, form: str, entries: Mapping[str, Entry], problems: list[str]) -> Packed | None:
    if form != "nf4":
        problems.append(f"{weight}: bitsandbytes' {form}")
        return None
    state = _read_state(entries[f"{weight}{STATE}{form}"])
    if state is None:
        problems.append(f"{weight}: its quant_state is not the JSON of a matrix")
        return None
    double = "nested_offset" in state
    parts = {part: entries[f"{weight}.{part}"] for part in NF4_PARTS if f"{weight}.{part}" in entries}
    parts |= {"weight": entries[weight]} if weight in entries else {}
    packed = Packed(weight, "nf4", tuple(state["shape"]), parts, double, float(state.get("nested_offset", 0.0)))
    problems += [f"{weight}: {problem}" for problem in _nf4_problems(packed, state)]
    return packed


def _nf4_problems(packed: Packed, state: dict) -> Iterator[str]:
    for key, expected in (("blocksize", quantized.BLOCK), ("nested_blocksize", quantized.NESTED_BLOCK)):
        if key in state and state[key] != expected:
            yield f"{key} {state[key]}, expected {expected}"
    needed = {"weight", "absmax", "quant_map"} | ({"nested_absmax", "nested_quant_map"} if packed.double else set())
    yield from (f"missing {_part_name(packed, part)}" for part in sorted(needed - packed.parts.keys()))
    count = prod(packed.shape)
    blocks = -(-count // quantized.BLOCK)
    absmax = ("U8", blocks) if packed.double else ("F32", blocks)
    expected = {"weight": (None, -(-count // 2)), "absmax": absmax, "quant_map": ("F32", 16)}
    expected |= {"nested_absmax": ("F32", -(-blocks // quantized.NESTED_BLOCK)), "nested_quant_map": ("F32", 256)}
    for part, entry in packed.parts.items():
        dtype, values = expected[part]
        if dtype is not None and entry.dtype != dtype:
            yield f"{part} has dtype {entry.dtype}, expected {dtype}"
        elif entry.size != values * (4 if dtype == "F32" else 1):
            yield f"{part} has {entry.size} bytes, too many or too few for shape {packed.shape}"


def _int8(weight: str, entries: Mapping[str, Entry], problems: list[str]) -> Packed | None:
    scales = f"{weight.removesuffix('weight')}SCB"
    if weight not in entries:
        problems.append(f"{weight}: missing, beside {scales}")
        return None
    parts = {"weight": entries[weight], "SCB": entries[scales]}
    parts |= {"weight_format": entries[f"{weight}_format"]} if f"{weight}_format" in entries else {}
    packed = Packed(weight, "int8", entries[weight].shape, parts)
    if entries[weight].dtype != "I8" or entries[scales].dtype != "F32" or len(packed.shape) != 2:
        problems.append(f"{weight}: expected an int8 matrix with float32 row scales")
    elif prod(entries[scales].shape) != packed.shape[0]:
        problems.append(f"{scales}: shape {entries[scales].shape} for the {packed.shape[0]} rows of the weight")
    elif "weight_format" in parts and safetensors_file.read(parts["weight_format"]).item() != 0:
        problems.append(f"{weight}: not filed row by row (its weight_format is not 0)")
    return packed


def _read_state(entry: Entry) -> dict | None:
    """The JSON of a quant_state, or None for anything but the description of a matrix."""
    try:
        state = strict_json.loads(bytes(safetensors_file.read(entry)))
        sides = [int(side) for side in state["shape"]]
        return state if len(sides) == 2 and min(sides) > 0 and "blocksize" in state else None
    except (KeyError, TypeError, ValueError):
        return None


def _part_name(packed: Packed, part: str) -> str:
    if part == "weight":
        return packed.name
    if part == "weight_format":
        return f"{packed.name}_format"
    return f"{packed.name.removesuffix('weight')}SCB" if part == "SCB" else f"{packed.name}.{part}"
