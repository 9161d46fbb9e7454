"""RMS norm and layer norm, differentiable to second order.

    rms_norm(x) = w ⊙ x / √(mean(x²) + ε)                              RMSNorm, arXiv:1910.07467
    layer_norm(x) = w ⊙ (x − μ) / √(mean((x − μ)²) + ε) + b            LayerNorm, arXiv:1607.06450, μ = mean(x)

Means and the division are float32 (float64 for float64). They round where transformers and torch do: RMS norm before it meets w,
layer norm once, at its end.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.xla_cpu.reductions import row_dots, row_sums


def layer_norm(
    x: Float[Array, "*batch D"], weight: Float[Array, " D"], bias: Float[Array, " D"] | None, *, eps: float
) -> Float[Array, "*batch D"]:
    """Normalises the last axis, with weight and bias, all in float32; rounded to the dtype of x."""
    centred = x.astype(wide(x.dtype)) - row_sums(x) / x.shape[-1]
    scale = jax.lax.rsqrt(row_dots(centred, centred) / x.shape[-1] + eps)
    row = (1,) * (x.ndim - 1) + weight.shape
    y = centred * scale * weight.reshape(row)
    return (y if bias is None else y + bias.reshape(row)).astype(x.dtype)


def rms_norm(x: Float[Array, "*batch D"], weight: Float[Array, " D"], *, eps: float) -> Float[Array, "*batch D"]:
    """Normalises the last axis in float32, rounds to the dtype of x, then multiplies by the weight, as transformers does."""
    return jnp.multiply(_normed(x, eps), weight.reshape((1,) * (x.ndim - 1) + weight.shape))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _normed(x: Float[Array, "*batch D"], eps: float) -> Float[Array, "*batch D"]:
    """r·x with r = 1/√(mean(x²) + ε); its derivative is r·g − r³·mean(g ∘ x)·x."""
    return _normed_forward(x, eps)[0]


def _normed_forward(x, eps: float):
    scale = jax.lax.rsqrt(row_dots(x, x) / x.shape[-1] + eps)
    return (x.astype(scale.dtype) * scale).astype(x.dtype), (x, scale)


def _normed_backward(eps: float, residuals, g):
    del eps
    x, scale = residuals
    slope = row_dots(g, x) * scale**3 / x.shape[-1]
    return ((g.astype(scale.dtype) * scale - x.astype(scale.dtype) * slope).astype(x.dtype),)


_normed.defvjp(_normed_forward, _normed_backward)
