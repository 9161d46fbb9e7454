"""Frozen weights in 8 and 4 bits, in bitsandbytes' formats, as pytrees that stack over layers.

    int8   W0 = diag(σ)·C                C int8 (O, I), σ = absmax/127 of each output row        LLM.int8, arXiv:2208.07339
    nf4    W0 = code[index]·absmax       16 quantiles of a normal, absmax of each block of 64    QLoRA,    arXiv:2305.14314

NF4 blocks run over the row-major weight, so they may cross rows; two indices share a byte, the first in its high half.
absmax is float32, or itself in 8 bits (double quantisation): 4.127 bits a parameter instead of 4.5.

A product is made in the open: `opened` gives the matrix C and, for int8, the row scale σ that belongs on the output of the
dot, where it costs O numbers and not O·I. Dequantised NF4 values are a float32 code times a float32 absmax, rounded once
to the weight's dtype. Nothing here has a derivative: weights are opaque, and what multiplies them is an ordinary dot.
The quantisers are in kernels/quantizers.py; the CUDA forms of the two dequantisations in kernels/cuda. `Bits`, for a CPU, is
a dense 16-bit stack in another guise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bidora_jax.kernels import xla_tpu
from bidora_jax.kernels.cuda import ops
from bidora_jax.kernels.dynamic_8bit import dynamic_map
from bidora_jax.kernels.varying import own_part
from bidora_jax.kernels.xla_cpu.weights import Bits, Transposed

BLOCK = 64
"""Weights that share an absmax."""
NESTED_BLOCK = 256
"""absmax values that share one, with double quantisation."""
# bitsandbytes.functional.get_4bit_type("nf4"): float32 quantiles of a standard normal, scaled to [-1, 1].
CODEBOOK = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32,
)  # fmt: skip
# The two values of every byte: one lookup a byte is 1.5 times as fast as one a value on a CPU.
PAIRS = np.stack([CODEBOOK[np.arange(256) >> 4], CODEBOOK[np.arange(256) & 15]], axis=1)
# 1/127 as bitsandbytes multiplies by it.
INT8_STEP = np.float32(7.874015718698502e-3)


Leaf: TypeAlias = Any
"""An array on a device or on the host, or its shape: what stands in a pytree."""


@partial(jax.tree_util.register_dataclass, data_fields=["codes", "absmax"], meta_fields=["dtype"])
@dataclass(frozen=True)
class Int8:
    """A weight, or a stack of them, in 8 bits."""

    codes: Leaf
    """int8 (*L, O, I), from -127 to 127."""
    absmax: Leaf
    """float32 (*L, O), largest |weight| of each row."""
    dtype: np.dtype
    """dtype that the weight is used in."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape


class Nested(NamedTuple):
    """absmax in 8 bits: value = dynamic_map[codes]·absmax + offset, in blocks of 256."""

    codes: Leaf
    """uint8 (*L, blocks)"""
    absmax: Leaf
    """float32 (*L, ⌈blocks/256⌉)"""
    offset: Leaf
    """float32 (*L,), the mean that was taken off."""


@partial(jax.tree_util.register_dataclass, data_fields=["codes", "absmax"], meta_fields=["matrix_shape", "dtype"])
@dataclass(frozen=True)
class NF4:
    """A weight, or a stack of them, in 4 bits."""

    codes: Leaf
    """uint8 (*L, ⌈O·I/2⌉), two indices a byte."""
    absmax: Leaf
    """float32 (*L, ⌈O·I/64⌉), or Nested."""
    matrix_shape: tuple[int, int]
    """(O, I)"""
    dtype: np.dtype
    """dtype that the weight is dequantised to."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.codes.shape[:-1], *self.matrix_shape)


@partial(jax.tree_util.register_dataclass, data_fields=["held"], meta_fields=["cut", "axis", "tensor"])
@dataclass(frozen=True)
class Part:
    """What one device holds of a stack that is cut over the devices of a mesh, inside `jax.shard_map` (models/spread.py).

    Opening a layer gathers it from all devices, and what travels is codes.
    """

    held: Any
    """An array, Int8, NF4 or Bits, of shorter leaves; NF4's matrix_shape is that of the whole matrix."""
    cut: tuple[bool, ...]
    """Which of its leaves are cut along axis 1; the others, such as a nested absmax, are whole on every device."""
    axis: str
    """Of the mesh."""
    tensor: tuple[str, bool] | None = None
    """Of a mesh whose devices share products, the axis that they lie along, and whether each takes its columns of the matrix
    rather than its rows. The leaves are cut over both axes, that one first."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.held.shape


class Layer(NamedTuple):
    """One weight of a stack. The stack stays whole, so that a scan over layers copies none of it."""

    stack: Int8 | NF4 | Bits | Part
    number: Int[Array, ""]


Weight: TypeAlias = Array | Int8 | NF4 | Bits | Transposed | Layer


def is_quantised(leaf: Any) -> TypeGuard[Int8 | NF4]:
    """Whether a leaf of a base tree is a quantised weight or stack; also serves as is_leaf of jax.tree.map."""
    return isinstance(leaf, Int8 | NF4)


def is_packed(leaf: Any) -> TypeGuard[Int8 | NF4 | Bits | Part]:
    """Whether a leaf of a base tree is anything but a plain array; also serves as is_leaf of jax.tree.map."""
    return isinstance(leaf, Int8 | NF4 | Bits | Part)


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all arrays of a tree, random keys among them; their shapes will do."""
    return sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def opened(weight: Weight) -> tuple[Float[Array, "O I"], Float[Array, " O"] | None]:
    """(C, σ) with W0 = diag(σ)·C, C in the weight's dtype, σ float32 or None for 1. A dense weight is itself.

    Open a weight once for all that is made of it: every call is a pass over its codes.
    """
    if isinstance(weight, Transposed):
        return opened(weight.weight)[0].T, None
    if not isinstance(weight, Int8 | NF4 | Bits | Layer):
        return weight, None
    stack, index = _layer(weight)
    if isinstance(stack, Part):
        return opened(_gathered(stack, index)) if stack.tensor is None else _opened_part(stack, index)
    if isinstance(stack, Bits):
        return jax.lax.bitcast_convert_type(_at(stack.bits, index), stack.dtype), None
    if isinstance(stack, Int8):
        matrix = _by_platform(ops.int8, _int8, stack.codes, index, dtype=stack.dtype)
        return matrix, jax.lax.stop_gradient(_at(stack.absmax, index)) * INT8_STEP
    return _dequantised(stack, index), None


def dense(weight: Weight) -> Float[Array, "O I"]:
    """W0 itself: the weight as it is, and float32 for a quantised one, whose values are the ones products are made with."""
    if isinstance(weight, Transposed):
        return dense(weight.weight).T
    if not isinstance(weight, Int8 | NF4 | Bits | Layer):
        return weight
    stack, index = _layer(weight)
    if isinstance(stack, Part):
        assert stack.tensor is None, "of a layer whose products are shared no device has the whole matrix"
        return dense(_gathered(stack, index))
    if isinstance(stack, Bits):
        return opened(weight)[0]
    if isinstance(stack, Int8):
        return _at(stack.codes, index).astype(jnp.float32) * _at(stack.absmax, index)[:, None] * INT8_STEP
    return _dequantised(stack, index).astype(jnp.promote_types(stack.dtype, jnp.float32))


def rows(weight: Array | Int8 | NF4, indices: Int[Array, "*batch"]) -> Float[Array, "*batch I"]:
    """Rows of W0 in the weight's dtype, as an embedding looks them up, without opening the rest."""
    if isinstance(weight, Int8):
        scaled = weight.codes[indices].astype(jnp.float32) * weight.absmax[indices][..., None] * INT8_STEP
        return scaled.astype(weight.dtype)
    if not isinstance(weight, NF4):
        return weight[indices]
    columns = weight.matrix_shape[1]
    flat = indices[..., None] * columns + jnp.arange(columns).reshape((1,) * indices.ndim + (-1,))
    values = jnp.asarray(PAIRS).reshape(-1)[weight.codes[flat // 2].astype(jnp.int32) * 2 + flat % 2]
    return (values * _block_absmax(weight.absmax, flat // BLOCK)).astype(weight.dtype)


def over_layers(function: Callable[..., Any], weight: Array | Int8 | NF4 | Bits, *stacks: PyTree) -> Any:
    """`lax.map` of function(weight, *parts) over the layers of a stacked weight, packed or not, and of `stacks`."""
    if not is_packed(weight):
        return jax.lax.map(lambda parts: function(*parts), (weight, *stacks))
    indices = jnp.arange(weight.shape[0])
    return jax.lax.map(lambda parts: function(Layer(weight, parts[0]), *parts[1:]), (indices, *stacks))


def _gathered(part: Part, index: Int[Array, ""]) -> Array | Layer:
    """One layer, whole on this device."""
    axes = part.axis if part.tensor is None else (part.tensor[0], part.axis)
    return _joined(part, index, lambda leaf: jax.lax.all_gather(leaf, axes, tiled=True))


def _joined(part: Part, index: Int[Array, ""], join: Callable[[Array], Array]) -> Array | Layer:
    """One layer, in which `join` has made one array of the parts of each leaf that is cut."""
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda leaf: _at(leaf, index), part.held))
    one = jax.tree.unflatten(tree, [join(leaf) if cut else leaf for leaf, cut in zip(leaves, part.cut, strict=True)])
    return Layer(jax.tree.map(lambda leaf: leaf[None], one), jnp.int32(0)) if is_packed(one) else one


def _opened_part(part: Part, index: Int[Array, ""]) -> tuple[Float[Array, "O I"], Float[Array, " O"] | None]:
    """(C, σ) of the rows or the columns of one layer that this device multiplies by.

    Rows lie where they are used, and columns are exchanged for them. Blocks of NF4 run over the rows of a matrix, so that one is
    gathered and opened whole, as is one that is not cut.
    """
    assert part.tensor is not None
    axis, columns = part.tensor
    if part.cut[0] and not isinstance(part.held, NF4):

        def join(leaf):
            leaf = jax.lax.all_gather(leaf, part.axis, tiled=True)
            if not columns:
                return leaf
            if leaf.ndim == 1:
                return jax.lax.all_gather(leaf, axis, tiled=True)
            return jax.lax.all_to_all(leaf, axis, split_axis=1, concat_axis=0, tiled=True)

        return opened(_joined(part, index, join))
    matrix, row_scale = opened(_gathered(part, index))
    if columns or row_scale is None:
        return own_part(matrix, axis, int(columns)), row_scale
    return own_part(matrix, axis, 0), own_part(row_scale, axis, 0)


def _layer(weight: Int8 | NF4 | Bits | Layer) -> Layer:
    """Any packed weight as one of a stack."""
    if isinstance(weight, Layer):
        return weight
    return Layer(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], weight), jnp.int32(0))


def _at(stack: Array, index: Int[Array, ""]) -> Array:
    return jax.lax.dynamic_index_in_dim(stack, index, keepdims=False)


def _dequantised(stack: NF4, index: Int[Array, ""]) -> Float[Array, "O I"]:
    settings = {"shape": stack.matrix_shape, "dtype": stack.dtype}
    if isinstance(stack.absmax, Nested):
        return _by_platform(ops.nf4_nested, _nf4_nested, stack.codes, *stack.absmax, index, tpu=True, **settings)
    return _by_platform(ops.nf4, _nf4, stack.codes, stack.absmax, index, tpu=True, **settings)


def _by_platform(cuda: Callable, default: Callable, *operands: Array, tpu: bool = False, **settings: Any) -> Array:
    """The CUDA form where it is built and the program is compiled for CUDA; in a program for a TPU the default with another
    unpacking, where it has one (`tpu`); the default everywhere else."""
    forms = {"tpu": partial(default, unpack=_unpack_on_tpu, **settings)} if tpu else {}
    if ops.available():
        forms["cuda"] = partial(cuda, **settings)
    default = partial(default, **settings)
    operands = tuple(jax.lax.stop_gradient(operand) for operand in operands)
    if not forms or settings["dtype"].itemsize > 4:  # float64 is for tests
        return default(*operands)
    return jax.lax.platform_dependent(*operands, **forms, default=default)


def _int8(codes, index, *, dtype):
    return _at(codes, index).astype(dtype)


def _unpack(codes, absmax, shape, dtype):
    count = prod(shape)
    padded = jnp.pad(codes, (0, absmax.shape[0] * (BLOCK // 2) - codes.shape[0])).reshape(-1, BLOCK // 2)
    values = jnp.asarray(PAIRS).at[padded].get(mode="promise_in_bounds") * absmax[:, None, None]
    return values.astype(dtype).reshape(-1)[:count].reshape(shape)


def _unpack_on_tpu(codes, absmax, shape, dtype):
    if shape[1] % BLOCK:
        return _unpack(codes, absmax, shape, dtype)
    return xla_tpu.nf4_matrix(codes, absmax, CODEBOOK, shape, BLOCK).astype(dtype)


def _nf4(codes, absmax, index, *, shape, dtype, unpack=_unpack):
    return unpack(_at(codes, index), _at(absmax, index), shape, dtype)


def _nf4_nested(codes, absmax_codes, nested_absmax, offset, index, *, shape, dtype, unpack=_unpack):
    nested = Nested(*(_at(leaf, index) for leaf in (absmax_codes, nested_absmax, offset)))
    return unpack(_at(codes, index), _block_absmax(nested, jnp.arange(absmax_codes.shape[1])), shape, dtype)


def _block_absmax(absmax: Array | Nested, blocks: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """absmax of the given blocks of one weight."""
    if not isinstance(absmax, Nested):
        return absmax[blocks]
    values = jnp.asarray(dynamic_map(signed=True))[absmax.codes[blocks].astype(jnp.int32)]
    # The product is rounded before the sum, as in bitsandbytes: the maximum changes no value, and keeps the compiler from
    # contracting the two to one fused operation. An optimisation barrier does not.
    product = jnp.maximum(values * absmax.absmax[blocks // NESTED_BLOCK], jnp.finfo(jnp.float32).min)
    return product + absmax.offset
