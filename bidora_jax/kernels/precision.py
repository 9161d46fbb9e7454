"""The dtype that sums are made in."""

import jax.numpy as jnp


def wide(dtype) -> jnp.dtype:
    """The dtype sums of `dtype` are made in: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)
