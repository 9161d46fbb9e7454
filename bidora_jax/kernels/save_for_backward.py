"""Names what a policy of `jax.checkpoint` saves for the backward pass.

    save_for_backward(y, dtype) = y, saved by ONLY_SAVED and offloaded by OFFLOADED

The sums of the linear layers are saved: nearly all of a model's arithmetic stands behind them.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.xla_cpu import active

SAVED = "saved"
"""The name in policies of `jax.checkpoint`."""
ONLY_SAVED = jax.checkpoint_policies.save_only_these_names(SAVED)


def save_for_backward(y: Array, dtype) -> Array:
    """y in `saved_dtype(dtype)`, under the name SAVED: a policy saves it, and the products before it are not computed again."""
    return checkpoint_name(y.astype(saved_dtype(dtype)), SAVED)


def saved_dtype(dtype) -> jnp.dtype:
    """The dtype in which a scan over layers saves activations of `dtype`: that dtype, but the wide one on a CPU.

    XLA's CPU backend has no update in place of 16-bit floats, see xla_cpu/scan.py, which saves bits where derivatives allow it.
    """
    return wide(dtype) if active() else jnp.dtype(dtype)
