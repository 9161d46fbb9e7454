"""Names what a policy of `jax.checkpoint` saves for the backward pass: the sums of the linear layers."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from bidora_jax.kernels.precision import wide

SAVED = "kept"
"""The sums of the linear layers: behind them is nearly all of a model's arithmetic, what is worth keeping, if anything is."""


def save_for_backward(y: Array, dtype, name: str = "") -> Array:
    """y as `kept_dtype` has it, under the name KEPT: what a policy of `jax.checkpoint` keeps rather than makes the products
    before it again."""
    return checkpoint_name(y.astype(saved_dtype(dtype)), SAVED)


def saved_dtype(dtype) -> jnp.dtype:
    """In which dtype a scan over layers keeps activations of `dtype`: that one, but the wide one on a CPU.

    XLA's CPU backend has no 16-bit float update of an array in place: it would widen and narrow all layers at every one.
    kernels/xla_cpu/scan.py keeps bits instead, where derivatives allow it.
    """
    return wide(dtype) if jax.default_backend() == "cpu" else jnp.dtype(dtype)
