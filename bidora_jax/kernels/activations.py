"""Activations of an MLP by name, and the gated unit made of one. Ordinary code, with all derivatives.

    gelu(x) = x·Φ(x)                                                   arXiv:1606.08415, Φ by the error function
    gelu_tanh(x) = x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2            its approximation
    gated(a, g) = act(a) ∘ g                                           GeGLU and its like, arXiv:2002.05202

In float32 (float64 for float64), rounded to the dtype of the input after the activation and after the product, as torch does.
"""

from functools import partial
from math import pi
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bidora_jax.kernels.precision import wide

Kind = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]


@jax.custom_jvp
def _erf(x):
    """jax.lax.erf. Its own derivative is a polynomial in JAX 0.12, which jax.shard_map refuses: the coefficients are typed as equal
    on every device."""
    return jax.lax.erf(x)


@_erf.defjvp
def _erf_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    return _erf(x), 2 * pi**-0.5 * (tangent * jnp.exp(-(x * x)))


_FUNCTIONS = {
    # torch's form: JAX's own takes erfc, which needs twice the time.
    "gelu": lambda x: 0.5 * x * (1 + _erf(x * 0.5**0.5)),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


def activate(x: Float[Array, "*n"], kind: Kind) -> Float[Array, "*n"]:
    """The activation of every number."""
    return _FUNCTIONS[kind](x.astype(wide(x.dtype))).astype(x.dtype)


def gated(a: Float[Array, "*n"], g: Float[Array, "*n"], kind: Kind) -> Float[Array, "*n"]:
    """act(a) ∘ g: the first argument is the one that is activated."""
    return activate(a, kind) * g
