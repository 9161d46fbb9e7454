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
from bidora_jax.kernels.xla_cpu.reductions import row_dots, row_sums, token_dots


def layer_norm(
    x: Float[Array, "*batch D"], weight: Float[Array, " D"], bias: Float[Array, " D"] | None, *, eps: float
) -> Float[Array, "*batch D"]:
    """Normalises the last axis, with weight and bias, all in float32; rounded to the dtype of x."""
    return _layer_normed(x, weight, bias, eps)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_normed(x, weight, bias, eps: float):
    """With n = r·(x − μ) and r = 1/√(mean((x − μ)²) + ε), the derivative is r·(h − mean(h) − mean(h ∘ n)·n) of h = g ∘ w."""
    return _layer_normed_forward(x, weight, bias, eps)[0]


def _layer_normed_forward(x, weight, bias, eps: float):
    centred = x.astype(wide(x.dtype)) - row_sums(x) / x.shape[-1]
    scale = jax.lax.rsqrt(row_dots(centred, centred) / x.shape[-1] + eps)
    normed = centred * scale
    y = normed * _as_row(weight, x)
    return (y if bias is None else y + _as_row(bias, x)).astype(x.dtype), (normed, scale, weight, bias)


def _layer_normed_backward(eps: float, residuals, g):
    del eps
    normed, scale, weight, bias = residuals
    h = g.astype(scale.dtype) * _as_row(weight, g)
    dx = (h - row_sums(h) / g.shape[-1] - normed * (row_dots(h, normed) / g.shape[-1])) * scale
    dweight = token_dots(g.astype(scale.dtype), normed).astype(weight.dtype)
    dbias = None if bias is None else jnp.sum(g.astype(scale.dtype), tuple(range(g.ndim - 1))).astype(bias.dtype)
    return dx.astype(g.dtype), dweight, dbias


_layer_normed.defvjp(_layer_normed_forward, _layer_normed_backward)


def _as_row(vector, x):
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


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
