"""The scan over layers: one layer as a function, applied to stacks of parameters, with as much recomputed as `remat` says.

    x ← layer(x, d, m)  for every layer

    remat layer    saved: x and norms that are held constant; a layer is computed again from them
    remat dots     saved: the sums of its linear layers too, each times its gain where it has one
    remat none     saved: all activations          remat offload    dots, in the host's memory

`layer` and `dots` are a custom_vjp of their own, `_scanned`. Its backward pass gives each layer what the forward pass saved of
it (tape.py). A gradient with respect to an `EmptyTape` is the `TapeValues` of that pass. A later pass that is given them, at the
same point and over the same tokens, takes the values and keeps all derivatives: of the gradient's derivative in a bilevel
step, only the tangents are left to compute.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bidora_jax.kernels import known_values, quantized
from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.save_for_backward import ONLY_SAVED, SAVED, saved_dtype
from bidora_jax.kernels.varying import as_varying, one_of
from bidora_jax.kernels.xla_cpu.bfloat16 import bits, floats
from bidora_jax.kernels.xla_cpu.scan import scan
from bidora_jax.models import tape
from bidora_jax.models.compute import Compute
from bidora_jax.models.tape import NORM, EmptyTape, TapeValues

Layer = Callable[..., tuple[Array, PyTree]]
"""(variables, slice of what is frozen, Shared, x, collections to write) -> (x of the next layer, the collections). It closes
over no array, so that it can be differentiated after the trace that made it has ended."""


@partial(jax.tree_util.register_dataclass, data_fields=["layers", "given", "key"], meta_fields=["dtype"])
@dataclass(frozen=True)
class Shared:
    """What all layers share."""

    layers: PyTree
    """The base's stacks, of which packed ones are read in place."""
    given: PyTree
    """What every layer is given beside x: angles, documents."""
    key: Any
    """Of dropout: an array, or None. A pytree's leaves are at times no arrays."""
    dtype: Any
    """dtype of the activations inside a layer."""


def apply_layers(
    layer: Layer, compute: Compute, variables: PyTree, frozen: PyTree, shared: Shared, x: Float[Array, "B T D"],
    given: EmptyTape | TapeValues | None = None,
) -> Float[Array, "B T D"]:  # fmt: skip
    """x after all layers, differentiable in `variables`, stacks of what is trained, and in x.

    `frozen` is stacks too: what `packed` made of the base, and the numbers of the layers. With remat layer and dots a derivative in
    one of its weights is a TypeError. `given` asks for the tape's values, or gives them; of the layers it needs remat dots.
    """
    if compute.remat in ("layer", "dots"):
        saves = _LayerScan(layer, compute, shared.dtype)
        return _scanned(saves, *_parts(saves, variables, frozen, shared, x, given))
    body = _rematerialised(lambda x, one: (layer(one[0], one[1], shared, x)[0], None), compute.remat, shared.layers)
    return jax.lax.scan(body, x, (variables, frozen))[0]


def _rematerialised(body, remat: str, layers: PyTree):
    """The body of the scan over layers, recomputed in the backward pass as far as `remat` asks for."""
    if remat == "offload":
        moved = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=[SAVED], offload_src="device",
            offload_dst="pinned_host",
        )  # fmt: skip
        return jax.checkpoint(body, policy=moved, prevent_cse=False)
    if any(map(quantized.is_packed, jax.tree.leaves(layers, is_leaf=quantized.is_packed))):
        return body  # each linear layer dequantises its weight anew
    # A weight that is read back from its bits would be saved: a second copy of a 16-bit base among the residuals.
    read = "bitcast_convert_type"
    return jax.checkpoint(body, policy=lambda primitive, *_, **__: primitive.name != read, prevent_cse=False)


# The base as the scan slices it


def packed(stacks: PyTree) -> PyTree:
    """What the scan over layers slices: everything but packed stacks, which are read in place.

    Vectors are sliced in `saved_dtype`: XLA's CPU backend would read the bits of one inside the loop over the array that it scales,
    element by element (the second computation of a query's norm and rotation takes four times as long).
    """

    def pack(leaf):
        if quantized.is_packed(leaf):
            return None
        return bits(leaf) if leaf.ndim > 2 else leaf.astype(saved_dtype(leaf.dtype))

    return {**stacks, "base": jax.tree.map(pack, stacks["base"], is_leaf=quantized.is_packed)}


def unpacked(variables: PyTree, layers: PyTree, index: Array) -> PyTree:
    """One slice of `packed` as the variables of a layer; `layers` are the base's stacks, of which it is number `index`."""

    def unpack(stack, part):
        return quantized.Layer(stack, index) if quantized.is_packed(stack) else floats(part, stack).astype(stack.dtype)

    return {**variables, "base": jax.tree.map(unpack, layers, variables["base"], is_leaf=quantized.is_packed)}


# The scan that saves


def empty_tape(
    layer: Layer, compute: Compute, variables: PyTree, frozen: PyTree, shared: Shared, x: Array, means: Array | None
) -> EmptyTape:
    """The empty tape of a pass over these stacks, whose first layer takes x, and of a head with these `means`."""
    if not compute.saves_sums:
        return EmptyTape(None, None, None, means)
    one = one_of((variables, frozen))
    _, written = jax.eval_shape(lambda *args: layer(*args, (tape.SAVED, tape.ZEROS)), *one, shared, x)
    layers = jax.tree.leaves(frozen)[0].shape[0]
    as_bits = compute.as_bits(shared.dtype)

    def zeros(path, leaf):
        dtype = wide(x.dtype) if _is_norm(path) else jnp.bfloat16 if as_bits else x.dtype
        return as_varying(jnp.zeros((layers, *leaf.shape), dtype), x)

    inputs, saved, exposed = (
        jax.tree_util.tree_map_with_path(zeros, tree) for tree in (x, written[tape.SAVED], written[tape.ZEROS])
    )
    return EmptyTape(inputs, saved, exposed, means)


@dataclass(frozen=True)
class _LayerScan:
    """The two passes of the scan. Stacks are what scan.py writes; `dtype` is that of the activations inside a layer."""

    layer: Layer
    compute: Compute
    dtype: Any

    @property
    def as_bits(self) -> bool:
        return self.compute.as_bits(self.dtype)

    def forward(self, variables, x, frozen, shared, values: TapeValues | None):
        """The last x, and (inputs, saved) of every layer."""
        given = None if values is None else (values.inputs, values.saved)
        last, kept = self._scan(self._forward_layer, x, (variables, frozen, given), shared, after=variables)
        if given is not None:
            # The scan stacks what the tape holds: these stacks are dropped, their derivatives are not.
            kept = known_values.with_value(given[0], kept[0]), _with_values(given[1], kept[1])
        return last, kept

    def backward(self, g, variables, kept, frozen, shared, exposed, cotangents):
        """The cotangents of x, of the variables, and of the inputs of linear layers where `exposed` holds zeros for them."""
        slices = (variables, frozen, *kept, exposed, cotangents)
        return self._scan(self._backward_layer, g, slices, shared, reverse=True)

    def _scan(self, body, first, slices, shared, **how):
        return scan(body, first, slices, shared, policy=ONLY_SAVED, as_bits=self.as_bits, **how)

    def _forward_layer(self, x, slices, shared):
        variables, frozen, given = slices
        if given is not None:
            inputs, saved = given
            x, variables = known_values.with_value(inputs, x), {**variables, tape.SAVED: saved}

        def layer(variables, x):
            out, written = self.layer(variables, frozen, shared, x, (tape.SAVED,))
            return out, written.get(tape.SAVED, {})

        # Traced as a part of a gradient: inside one, products have a forward derivative, and outside of one they have none.
        out, _, saved = jax.vjp(layer, variables, x, has_aux=True)
        return out, (self._narrowed(x), jax.tree_util.tree_map_with_path(self._narrowed_sum, saved))

    def _backward_layer(self, g, slices, shared):
        variables, frozen, x, saved, exposed, cotangents = slices
        given = {tape.SAVED: saved, tape.COTANGENTS: cotangents}

        def out(variables, x, exposed):
            return self.layer({**variables, **given, tape.ZEROS: exposed}, frozen, shared, x, ())[0]

        variables_g, g, exposed_g = jax.vjp(out, variables, x, exposed)[1](g)
        return g, (variables_g, jax.tree.map(self._narrowed, exposed_g))

    def _narrowed(self, part):
        return part.astype(jnp.bfloat16) if self.as_bits else part

    def _narrowed_sum(self, path, part):
        return part if _is_norm(path) else self._narrowed(part)


def _parts(saves: _LayerScan, variables, frozen, shared, x, given: EmptyTape | TapeValues | None):
    """The arguments of `_scanned`, with the weights guarded against derivatives and the tape split by its kind."""
    given = None if given is None or given.inputs is None else given
    assert saves.compute.saves_sums or given is None, "a tape of layers needs remat dots"
    frozen, fixed = jax.tree.map(
        lambda leaf: _constant(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, (frozen, shared.given)
    )
    shared = replace(shared, given=fixed)
    empty, values = (given if isinstance(given, kind) else None for kind in (EmptyTape, TapeValues))
    return variables, x, empty, frozen, shared, values


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scanned(saves: _LayerScan, variables, x, empty: EmptyTape | None, frozen, shared, values: TapeValues | None):
    """x after all layers. The cotangent of `empty` is the tape's values."""
    del empty
    return saves.forward(variables, x, frozen, shared, values)[0]


def _scanned_forward(saves: _LayerScan, variables, x, empty, frozen, shared, values):
    last, kept = saves.forward(variables, x, frozen, shared, values)
    return last, (variables, kept, empty, frozen, shared, values)


def _scanned_backward(saves: _LayerScan, residuals, g):
    variables, kept, empty, frozen, shared, values = residuals
    exposed, cotangents = {} if empty is None else empty.cotangents, {} if values is None else values.cotangents
    inputs, saved = kept
    g, (variables_g, exposed_g) = saves.backward(g, variables, kept, frozen, shared, exposed, cotangents)
    empty_g = None if empty is None else EmptyTape(inputs, saved, exposed_g, jax.tree.map(jnp.zeros_like, empty.means))
    return variables_g, g, empty_g, None, None, None


_scanned.defvjp(_scanned_forward, _scanned_backward)


def _with_values(values: PyTree, saved: PyTree) -> PyTree:
    """`saved` with the values of a tape, which may hold fewer: cuDNN's attention saves no result of its own."""
    if not isinstance(saved, dict):
        return known_values.with_value(values, saved)
    return {name: _with_values(values[name], part) if name in values else part for name, part in saved.items()}


def _is_norm(path) -> bool:
    return bool(path) and path[-1].key == NORM


@jax.custom_jvp
def _constant(weight: Array) -> Array:
    """The weight. Nothing here computes its derivative, and a derivative of zero would be a silent mistake."""
    return weight


@_constant.defjvp
def _constant_jvp(primals, tangents):
    raise TypeError(
        "the base is frozen with remat layer and dots: for derivatives in its layers' weights, or in what all layers are given, "
        "take remat none"
    )
