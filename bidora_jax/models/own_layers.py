"""A DoRA layer for a model of one's own, in pure functions: what any JAX, Flax or Equinox code can call.

    layer = freeze(weight, bias, quantization="nf4")          W0 (O, I), held in 16 or 32 bits, int8 or NF4, never trained
    direction, magnitude = start(key, layer, rank=8)          A and B, and m; they change nothing yet
    y = apply(layer, x, direction, magnitude, scale=2.0)      m/‖W0 + s·B·A‖ ⊙ (x·W0ᵀ + s·(x·Aᵀ)·Bᵀ) + bias; of m None LoRA

The formulas are those of kernels/dora.py, and every derivative passes, the mixed one of a bilevel step too. A layer is a pytree of
arrays: pass it as the base of a step, frozen. models/linear.py is the same inside this package's own models.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from bidora_jax.kernels import dora, quantized, quantizers
from bidora_jax.kernels.precision import wide


class FrozenLayer(NamedTuple):
    """A linear layer that is not trained."""

    weight: quantized.Weight
    """(O, I), in one of the forms of kernels/quantized.py."""
    norm_sq: Float[Array, " O"]
    """‖W0‖² of each row, float32 (float64 for float64), of the weight as it is held."""
    bias: Float[Array, " O"] | None


def freeze(weight: Any, bias: Any = None, *, quantization: str = "none", dtype: Any = None) -> FrozenLayer:
    """A weight (O, I) with its bias (O,). `dtype` is the one that products are made in, that of the weight without it;
    `quantization` is none, int8 or nf4.

    ValueError for a weight that is no matrix, and for an unknown quantisation.
    """
    weight = np.asarray(weight)
    if weight.ndim != 2:
        raise ValueError(
            f"freeze takes one weight of shape (out, in), found {weight.shape}; transpose a Flax kernel (in, out)"
        )
    dtype = jax.dtypes.canonicalize_dtype(weight.dtype if dtype is None else dtype)
    if quantization == "none":
        held: quantized.Weight = jnp.asarray(weight, dtype)
    elif quantization == "int8":
        held = quantizers.int8(weight, dtype)
    elif quantization == "nf4":
        held = quantizers.nf4(weight, dtype, double=True)
    else:
        raise ValueError(f"quantization is none, int8 or nf4, found {quantization!r}")
    norm_sq = dora.square_norm(quantized.dense(held))
    return FrozenLayer(held, norm_sq, None if bias is None else jnp.asarray(bias, dtype))


def start(
    key: Key[Array, ""] | UInt32[Array, "2"], layer: FrozenLayer, *, rank: int
) -> tuple[dora.Direction, Float[Array, " O"]]:
    """A direction and a magnitude that change nothing: A uniform in ±1/√I, B = 0, m = ‖W0‖."""
    return dora.init(key, quantized.dense(layer.weight), rank=rank)


def apply(
    layer: FrozenLayer, x: Float[Array, "*batch I"], direction: dora.Direction, magnitude: Float[Array, " O"] | None,
    *, scale: float,
) -> Float[Array, "*batch O"]:  # fmt: skip
    """The layer's output in the dtype of x; `scale` is alpha/r. Without a magnitude it is LoRA's."""
    w0, row_scale = quantized.opened(layer.weight)
    w0, pair = w0.astype(x.dtype), dora.Direction(*direction)
    y = dora.frozen(x, w0, row_scale) + dora.raised(dora.lower(x, pair.A), scale * pair.B, x.shape)
    if magnitude is not None:
        norm = dora.row_norm(w0, layer.norm_sq, pair, scale=scale, row_scale=row_scale)
        y = y * dora.gain(magnitude, norm).reshape((1,) * (y.ndim - 1) + magnitude.shape)
    y = y if layer.bias is None else y + layer.bias.reshape((1,) * (y.ndim - 1) + layer.bias.shape)
    return y.astype(x.dtype)


def merged(
    layer: FrozenLayer, direction: dora.Direction, magnitude: Float[Array, " O"] | None, *, scale: float
) -> Float[Array, "O I"]:
    """The one weight with the layer's effect, float32 (float64 for float64)."""
    return dora.merge(
        quantized.dense(layer.weight).astype(wide(layer.norm_sq.dtype)), direction, magnitude, scale=scale
    )
