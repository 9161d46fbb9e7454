"""What one pass over a module saves for another pass over it.

A layer is passed several times in a step: forward, again in the backward pass, and twice more in the mixed product of a bilevel
step. Each module that has something to save opens its `Tape` and calls one of three verbs. The pass decides which of them acts:
it makes collections of Flax writable, or hands them in:

    pass                            save(name, y)                 constant(name, norm)     input(name, x)
    writes SAVED                    writes y                      writes the norm          –
    is given SAVED                  takes the value, with the     takes the value          –
                                    first derivative of y
    is given SAVED and writes it    takes the value, with all     takes the value          –
                                    derivatives of y
    is given ZEROS                  –                             –                        the cotangent of the zeros is x's
    is given COTANGENTS             –                             –                        x's cotangent is the known one
    any other                       –                             –                        –

So a pass that is given all that an earlier one saved computes no product of that pass a second time. kernels/known_values.py has
the derivative rules.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bidora_jax.kernels import known_values, row_gain
from bidora_jax.kernels.save_for_backward import save_for_backward
from bidora_jax.models.compute import Compute

SAVED, ZEROS, COTANGENTS = "saved", "zeros", "cotangents"
"""The collections, each a tree of modules."""
NORM = "norm"
"""The name of a constant in a module; all other names of SAVED are sums, in the dtype that activations are saved in."""


class Tape:
    """The tape of one module."""

    def __init__(self, module: nn.Module, compute: Compute) -> None:
        self._module, self._compute = module, compute

    def input(self, name: str, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """x, the input of linear layers, whose cotangent is exposed or known where the pass asks for it."""
        module = self._module
        if module.has_variable(COTANGENTS, name):
            return known_values.with_cotangent(x, module.get_variable(COTANGENTS, name))
        if self._writes(ZEROS):  # a pass over shapes, which learns what there is to expose
            module.put_variable(ZEROS, name, x)
        if module.has_variable(ZEROS, name):
            return known_values.expose_cotangent(x, module.get_variable(ZEROS, name))
        return x

    def save(self, name: str, y: Float[Array, "*n"], dtype) -> Float[Array, "*n"]:
        """y, saved for the backward pass as `save_for_backward` saves activations of `dtype`, which it is returned in."""
        z = self._rounded(save_for_backward(y, dtype), dtype)
        if not self._compute.saves_sums or self._module.is_initializing():
            return z.astype(dtype)
        writes, known = self._writes(SAVED), self._known(name)
        if known is not None:
            z = known_values.with_value(known, z) if writes else known_values.with_value_first_order(known, z)
        if writes:
            self._module.put_variable(SAVED, name, z)
        return z.astype(dtype)

    def save_scaled(
        self, name: str, y: Float[Array, "*batch O"], gain: Float[Array, "*N O"], dtype
    ) -> Float[Array, "*batch O"]:
        """gain ⊙ y, otherwise as `save`. Its reverse derivatives are those of `row_gain.scaled`."""
        gain = row_gain.away_from_zero(gain, dtype)
        z = row_gain.save_scaled(y, gain, jnp.dtype(dtype))
        if self._compute.saves_sums and not self._module.is_initializing():
            writes, known = self._writes(SAVED), self._known(name)
            if writes and self._compute.as_bits(dtype):
                # The derivative reads the rounded value, as a pass that is given it does.
                z = row_gain.with_value(self._rounded(z, dtype), y, gain)
            if known is not None:
                z = row_gain.with_value(known, y, gain) if writes else known
            if writes:
                self._module.put_variable(SAVED, name, z)
        return row_gain.scaled(y, gain, z.astype(dtype))

    def constant(self, norm: Float[Array, " O"]) -> Float[Array, " O"]:
        """The norm, which is held constant: computed once a step, and W0·Aᵀ with it."""
        known = self._known(NORM)
        norm = norm if known is None else known
        if self._writes(SAVED):
            self._module.put_variable(SAVED, NORM, norm)
        return norm

    def _known(self, name: str) -> Array | None:
        return self._module.get_variable(SAVED, name) if self._module.has_variable(SAVED, name) else None

    def _writes(self, collection: str) -> bool:
        return self._module.is_mutable_collection(collection) and not self._module.is_initializing()

    def _rounded(self, z: Float[Array, "*n"], dtype) -> Float[Array, "*n"]:
        """z as the bits that are saved of it: the pass that saves goes on with the numbers that the next pass will read."""
        if not (self._writes(SAVED) and self._compute.saves_sums and self._compute.as_bits(dtype)):
            return z
        narrow = jnp.finfo(dtype)
        return jax.lax.reduce_precision(z, narrow.nexp, narrow.nmant)


class TapeValues(NamedTuple):
    """What the gradient's pass over all layers computed, stacked over layers; and what it computed of the head.

    The first three are None of a pass that saved nothing of its layers.
    """

    inputs: Float[Array, "L B T D"] | None
    saved: PyTree
    """SAVED of every layer."""
    cotangents: PyTree
    """COTANGENTS of every layer: of the inputs of linear layers, but for down_proj's, which is wide and cheap to compute again."""
    means: Float[Array, "N D"] | None
    """softmax(x·Eᵀ)·E of every token that predicts another, see kernels/losses.py; None of another head than that."""


class EmptyTape(NamedTuple):
    """Zeros in the shapes of `TapeValues`. Nothing reads them: a gradient with respect to them is the `TapeValues`.

        ∂L/∂(empty tape) = the values of this pass

    custom_vjp rules return the values as cotangents of the zeros (layer_scan.py, losses.py). So `jax.grad` hands them out, and a
    loss keeps its signature.
    """

    inputs: Array | None
    saved: PyTree
    cotangents: PyTree
    means: Array | None
