"""Which weights of a model are quantised, and how: the meaning of `model.quantization` and its companions."""

from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from jaxtyping import PyTree

from bidora_jax.errors import InputError, did_you_mean
from bidora_jax.kernels import quantized, quantizers
from bidora_jax.kernels.cuda import ops
from bidora_jax.kernels.xla_cpu import weights
from bidora_jax.models.architectures.architecture import (
    EMBEDDING,
    HEAD,
    LAYERS,
    ROLE_NAMES,
    Architecture,
    embeddings,
    linear_names,
)
from bidora_jax.models.base import dense_shapes, dtype_of
from bidora_jax.models.settings import ModelConfig


@dataclass(frozen=True)
class Quantization:
    """A quantised form, and the modules that are quantised to it."""

    form: Literal["int8", "nf4"]
    double: bool
    """absmax in 8 bits (nf4 only)."""
    modules: tuple[str, ...]
    """Dotted paths below the base tree, such as 'layers.self_attn.q_proj' and 'lm_head'."""

    def covers(self, path: tuple[str, ...]) -> bool:
        """Whether the leaf of this path in the base tree is to be quantised."""
        return path[-1] == "weight" and ".".join(path[:-1]) in self.modules

    def quantise(self, weight: np.ndarray, dtype) -> quantized.Int8 | quantized.NF4:
        """One weight (O, I) on the host; `dtype` is the one it will be used in."""
        if self.form == "int8":
            return quantizers.int8(weight, dtype)
        return quantizers.nf4(weight, dtype, double=self.double)


def resolve(settings: ModelConfig, architecture: Architecture) -> Quantization | None:
    """What the settings mean on this model; None for a dense base. InputError for a module that the model lacks."""
    if settings.quantization == "none":
        return None
    linears = linear_names(architecture)
    names = [name for one in settings.quantized_modules for name in (linears if one == "all-linear" else [one])]
    roles = {ROLE_NAMES[name] for name in names if name in ROLE_NAMES and name not in linears}
    outside = {spec.module.rpartition(".")[2]: key for key, spec in reversed(embeddings(architecture).items())}
    known = (*linears, *outside)
    unknown = [name for name in names if name not in known and name not in ROLE_NAMES]
    if unknown or not names:
        found = ", ".join(f"{name!r}{did_you_mean(name, known)}" for name in unknown) or "none at all"
        raise InputError(
            f"model.quantized_modules: nothing in this model is called {found}; expected some of {', '.join(known)}, "
            "or all-linear"
        )
    chosen = tuple(key for name, key in outside.items() if name in names)
    if architecture.tied and HEAD in chosen:
        head, embedding = (next(name for name, key in outside.items() if key == one) for one in (HEAD, EMBEDDING))
        raise InputError(
            f"model.quantized_modules names {head}, which in this model is the input embedding; name {embedding} to "
            "quantise the two"
        )
    inside = tuple(
        f"{LAYERS}.{linear.path}" for linear in architecture.linears if linear.name in names or roles & {*linear.roles}
    )
    return Quantization(settings.quantization, settings.double_quant, inside + chosen)


def base_shapes(settings: ModelConfig, architecture: Architecture, dtype) -> PyTree:
    """Shapes of the base as the loader holds it: quantised as asked, the other 16-bit stacks as integers on a CPU."""
    chosen = resolve(settings, architecture)

    def leaf(path, like):
        if chosen is not None and chosen.covers(tuple(key.key for key in path)):
            return packed_shapes(chosen, like.shape, like.dtype)
        as_bits = weights.held_as_bits(like.shape, like.dtype)
        return weights.Bits(jax.ShapeDtypeStruct(like.shape, np.uint16), like.dtype) if as_bits else like

    return jax.tree_util.tree_map_with_path(leaf, dense_shapes(architecture, dtype))


def packed_shapes(chosen: Quantization, shape: tuple[int, ...], dtype) -> quantized.Int8 | quantized.NF4:
    """Shapes of a quantised weight (*L, O, I), to be used in `dtype`."""
    dtype, struct = np.dtype(dtype), jax.ShapeDtypeStruct
    *layers, rows, columns = shape
    if chosen.form == "int8":
        return quantized.Int8(struct(shape, np.int8), struct((*layers, rows), np.float32), dtype)
    blocks = -(-rows * columns // quantized.BLOCK)
    absmax: quantized.Leaf = struct((*layers, blocks), np.float32)
    if chosen.double:
        groups = struct((*layers, -(-blocks // quantized.NESTED_BLOCK)), np.float32)
        absmax = quantized.Nested(struct((*layers, blocks), np.uint8), groups, struct(tuple(layers), np.float32))
    return quantized.NF4(struct((*layers, -(-rows * columns // 2)), np.uint8), absmax, (rows, columns), dtype)


def describe(base) -> list[str]:
    """Lines on the weights of a base tree: which are quantised, at how many bits, and which are not."""
    leaves = jax.tree_util.tree_leaves_with_path(base, is_leaf=quantized.is_packed)
    named = [(".".join(key.key for key in path[:-1]), leaf) for path, leaf in leaves if path[-1].key == "weight"]
    packed = [(name, leaf) for name, leaf in named if quantized.is_quantised(leaf)]
    if not packed:
        return []
    bits = 8 * quantized.tree_bytes([leaf for _, leaf in packed]) / sum(int(np.prod(leaf.shape)) for _, leaf in packed)
    form = type(packed[0][1]).__name__.lower()
    plain = [name.removeprefix("layers.") for name, leaf in named if not quantized.is_quantised(leaf)]
    return [
        f"{form}: {', '.join(name.removeprefix('layers.') for name, _ in packed)} at {bits:.2f} bits a parameter",
        f"kept in {dtype_of(base)}: {', '.join(plain)}",
        f"dequantised by {ops.described()}",
    ]
