"""Which weights of a model are quantised, and how: what `model.quantization` and its companions mean."""

from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from jaxtyping import PyTree

from bidora_jax.errors import InputError, did_you_mean
from bidora_jax.kernels import quantized, quantizers
from bidora_jax.kernels.cuda import ops
from bidora_jax.kernels.xla_cpu import weights
from bidora_jax.models import decoder
from bidora_jax.models.architectures.decoder import LINEARS, PATHS, DecoderConfig
from bidora_jax.models.settings import ModelConfig

OUTSIDE = ("lm_head", "embed_tokens")


@dataclass(frozen=True)
class Quantization:
    """A form and the modules it is for."""

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


def resolve(settings: ModelConfig, *, tied: bool) -> Quantization | None:
    """What the settings mean on a model whose embeddings are tied or not; None for a dense base.

    Raises InputError for a module that is not there.
    """
    if settings.quantization == "none":
        return None
    names = [
        name for chosen in settings.quantized_modules for name in (LINEARS if chosen == "all-linear" else [chosen])
    ]
    known = (*LINEARS, *OUTSIDE)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        found = ", ".join(f"{name!r}{did_you_mean(name, known)}" for name in unknown) or "none at all"
        raise InputError(
            f"model.quantized_modules: nothing in this model is called {found}; expected some of {', '.join(known)}, "
            "or all-linear"
        )
    if tied and "lm_head" in names:
        raise InputError(
            "model.quantized_modules names lm_head, which in this model is the input embedding; name embed_tokens to "
            "quantise the two"
        )
    inside = tuple(f"layers.{path}" for path in PATHS if path.split(".")[1] in names)
    outside = tuple(name for name in OUTSIDE if name in names)
    return Quantization(settings.quantization, settings.double_quant, inside + outside)


def base_shapes(settings: ModelConfig, config: DecoderConfig, dtype) -> PyTree:
    """Shapes of the base as the loader holds it: quantised as asked, the other 16-bit stacks as integers on a CPU."""
    chosen = resolve(settings, tied=config.tie_word_embeddings)

    def leaf(path, like):
        if chosen is not None and chosen.covers(tuple(key.key for key in path)):
            return packed_shapes(chosen, like.shape, like.dtype)
        as_bits = weights.held_as_bits(like.shape, like.dtype)
        return weights.Bits(jax.ShapeDtypeStruct(like.shape, np.uint16), like.dtype) if as_bits else like

    return jax.tree_util.tree_map_with_path(leaf, decoder.base_shapes(config, dtype))


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
    """Lines that say what of a base tree is quantised, at how many bits, and what is not."""
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
        f"kept in {base['norm']['weight'].dtype}: {', '.join(plain)}",
        f"dequantised by {ops.described()}",
    ]
