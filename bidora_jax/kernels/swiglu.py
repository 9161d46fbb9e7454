"""The gated unit of an MLP and its derivative, in loops that each read few arrays.

    swiglu(g, u) = silu(g) ∘ u        silu(g) = g·σ(g)                                             arXiv:2002.05202
    ḡ = z̄ ∘ u ∘ (σ + g·σ·(1 − σ)),    ū = z̄ ∘ silu(g)

In float32, rounded to the dtype of the activations after silu and after each product, as transformers does.
"""

import jax
from jaxtyping import Array, Float

from bidora_jax.kernels.xla_cpu.bfloat16 import to_bfloat16, to_float32
from bidora_jax.kernels.xla_cpu.outline import outlined


@jax.custom_vjp
def swiglu(gate: Float[Array, "*n"], up: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """silu(gate) ∘ up. Forward-mode differentiation passes through its gradient but not through the function itself."""
    return _silu_times(gate, up)


def _backward(residuals, g):
    gate, up = residuals
    return _gate_cotangent(gate, up, g), _silu_times(gate, g)


swiglu.defvjp(lambda gate, up: (_silu_times(gate, up), (gate, up)), _backward)


@outlined
def _silu_times(gate, other):
    x = to_float32(gate)
    silu = to_bfloat16(x * jax.nn.sigmoid(x), gate.dtype)
    return to_bfloat16(to_float32(silu) * to_float32(other), gate.dtype)


@outlined
def _gate_cotangent(gate, up, g):
    x, g = to_float32(gate), to_float32(to_bfloat16(to_float32(g) * to_float32(up), g.dtype))
    open_by = jax.nn.sigmoid(x)
    return to_bfloat16(g * (open_by + x * open_by * (1 - open_by)), gate.dtype)
