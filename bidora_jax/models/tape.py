"""What one pass over a module saves for another pass over it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bidora_jax.kernels import known_values, row_gain

SUMS, TAPS, COTANGENTS = "sums", "taps", "cotangents"
"""Collections of what is written down of a layer's products and read by another pass, see models/layer_scan.py."""
NORMS = "norms"
"""The collection of the norms ‖V‖ that are held constant: with a layer's norm known, W0·Aᵀ is not made again."""
ROUNDED = "rounded"
"""A collection of nothing. A pass that may write it goes on with its sums as they are kept, rounded to the dtype of x."""


def tapped(module: nn.Module, name: str, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """x, the input of linear layers: the sum of their cotangents is what they hand back."""
    if module.has_variable(COTANGENTS, name):
        return known_values.with_cotangent(x, module.get_variable(COTANGENTS, name))
    if module.is_mutable_collection(TAPS) and not module.is_initializing():
        module.put_variable(TAPS, name, x)
    return known_values.expose_cotangent(x, module.get_variable(TAPS, name)) if module.has_variable(TAPS, name) else x


def written_down(
    module: nn.Module, y: Float[Array, "*n"], dtype, name: str, gain: Float[Array, "*N O"] | None = None
) -> Float[Array, "*n"]:
    """y, or gain ⊙ y, as `gains.kept` has it: written down in a pass that asks for SUMS, taken from them in one given them."""
    z = row_gain.save_scaled(y, dtype, name, gain)
    if module.is_initializing():
        return z
    if module.is_mutable_collection(ROUNDED):
        narrow = jnp.finfo(dtype)
        z = jax.lax.reduce_precision(z, narrow.nexp, narrow.nmant)
        # Of what it is rounded to, as in a pass that is given it.
        z = z if gain is None else row_gain.known(z, y, gain)
    written = module.is_mutable_collection(SUMS)
    if module.has_variable(SUMS, name):
        value = module.get_variable(SUMS, name)
        if not written:
            # The derivative in reverse of gain ⊙ y is not this one's, but that of `gains.gained`.
            z = known_values.with_value_first_order(value, z) if gain is None else value
        else:
            z = known_values.with_value(value, z) if gain is None else row_gain.known(value, y, gain)
    if written:
        module.put_variable(SUMS, name, z)
    return z


def norm_written_down(module: nn.Module, norm: Float[Array, " O"]) -> Float[Array, " O"]:
    """The norm, a constant: written down in a pass that asks for NORMS, and taken from them in one given them."""
    norm = module.get_variable(NORMS, "norm") if module.has_variable(NORMS, "norm") else norm
    if module.is_mutable_collection(NORMS) and not module.is_initializing():
        module.put_variable(NORMS, "norm", norm)
    return norm
