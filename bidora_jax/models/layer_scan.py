"""The scan over layers that keeps the sums of their products, and the record by which one pass spares another its products.

    x ← layer(x, d, m)  for every layer         kept: x, norms that are held constant, and the sums of its linear layers,
                                                each times its gain where it has one; a layer is made again from them

A gradient with respect to a `Blank` is its `Record`: what the pass and its gradient made on the way. A pass that is given the
record, at the same point and of the same tokens, takes the values from there, and has its derivatives from the products as
ever: of the gradient's derivative in a bilevel step only the tangents are left to compute.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bidora_jax.kernels import known_values, quantized
from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.save_for_backward import SAVED, saved_dtype
from bidora_jax.kernels.xla_cpu.bfloat16 import bits, floats
from bidora_jax.kernels.xla_cpu.scan import scan
from bidora_jax.models.tape import COTANGENTS, NORMS, ROUNDED, SUMS, TAPS

Remat = Literal["auto", "none", "dots", "layer", "offload"]


def _by_bits(reversible: bool, dtype) -> bool:
    return not reversible and dtype == jnp.bfloat16 and saved_dtype(dtype) != dtype


def _rematerialised(body, remat: Remat, base: PyTree):
    """The body of the scan over layers, recomputed in the backward pass as far as `remat` asks for."""
    if remat == "offload":
        moved = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=[SAVED], offload_src="device",
            offload_dst="pinned_host",
        )  # fmt: skip
        return jax.checkpoint(body, policy=moved, prevent_cse=False)
    if remat == "auto":
        raise ValueError(
            "remat auto is for training, which settles it (planning/remat_choice.py); say which policy is meant"
        )
    if any(map(quantized.is_packed, jax.tree.leaves(base["layers"], is_leaf=quantized.is_packed))):
        return body  # each linear layer opens its weight anew
    # A weight read back from its bits would be kept once more: a second copy of a 16-bit base among the residuals.
    read = "bitcast_convert_type"
    return jax.checkpoint(body, policy=lambda primitive, *_, **__: primitive.name != read, prevent_cse=False)


def _packed(stacks: PyTree) -> PyTree:
    """What the scan over layers slices: everything but packed stacks, which are read in place.

    Vectors go as `kept_dtype` has them: XLA's CPU backend would read the bits of one inside the loop over the array that it
    scales, element by element (the second computation of a query's norm and rotation takes four times as long).
    """

    def pack(leaf):
        if quantized.is_packed(leaf):
            return None
        return bits(leaf) if leaf.ndim > 2 else leaf.astype(saved_dtype(leaf.dtype))

    return {**stacks, "base": jax.tree.map(pack, stacks["base"], is_leaf=quantized.is_packed)}


def _unpacked(variables: PyTree, base: PyTree, index: Array) -> PyTree:
    def unpack(stack, part):
        return quantized.Layer(stack, index) if quantized.is_packed(stack) else floats(part, stack).astype(stack.dtype)

    layers = jax.tree.map(unpack, base["layers"], variables["base"], is_leaf=quantized.is_packed)
    return {**variables, "base": layers}


Layer = Callable[..., tuple[Array, PyTree]]
"""(variables, slice of what is frozen, what all layers share, x, collections to write) -> (what the next layer takes, the
collections). It closes over no array: its derivatives are taken where it was made, or later, outside of that."""


class Record(NamedTuple):
    """Of all layers, stacked, in the dtype that activations are kept in, or None; and of the head."""

    inputs: Float[Array, "L B T D"] | None
    sums: PyTree
    """Beside them the norms, in float32."""
    cotangents: PyTree
    """Of the inputs of linear layers but the MLP's last one, which is as wide as it is cheap to make again."""
    means: Float[Array, "N D"]
    """Of every token that predicts another softmax(x·Eᵀ)·E, see kernels/losses.py."""


class Blank(NamedTuple):
    """Zeros in the shapes of a `Record`; nothing reads them."""

    inputs: Array | None
    sums: PyTree
    cotangents: PyTree
    means: Array


def blank(
    layer: Layer, variables: PyTree, frozen: PyTree, shared: PyTree, x: Array, means: Array, *, by_bits: bool
) -> Blank:
    """The blank record of layers stacked in `variables` and `frozen`, whose first one takes x."""
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (variables, frozen))
    _, written = jax.eval_shape(lambda *args: layer(*args, (SUMS, NORMS, TAPS)), *one, shared, x)
    layers = jax.tree.leaves(frozen)[0].shape[0]

    def zeros(tree, dtype=jnp.bfloat16 if by_bits else x.dtype):
        return jax.tree.map(lambda leaf: jnp.zeros((layers, *leaf.shape), dtype), tree)

    written = {name: zeros(tree, wide(x.dtype)) if name == NORMS else zeros(tree) for name, tree in written.items()}
    taps = {TAPS: written.pop(TAPS)}
    return Blank(zeros(x), written, taps, means)


def scan_layers(
    layer: Layer,
    variables: PyTree,
    frozen: PyTree,
    shared: PyTree,
    x: Float[Array, "B T D"],
    *,
    sums: bool,
    record: Blank | Record | None = None,
    by_bits: bool = False,
) -> Float[Array, "B T D"]:
    """x after all layers, differentiable in the variables and x. TypeError for a derivative in a weight of `frozen`.

    Without `sums` a layer is made again from its input and norms. A `record` that is one of layers needs them. With `by_bits` x is
    bfloat16 in float32, what is kept takes half of the memory, and a gradient has no derivative in reverse (xla_cpu/scan.py).
    """
    record = None if record is None or record.inputs is None else record
    assert sums or record is None
    written = (NORMS,) if not sums else (NORMS, SUMS, ROUNDED) if by_bits else (NORMS, SUMS)
    frozen = jax.tree.map(lambda leaf: _constant(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, frozen)

    def narrowed(parts):
        return jax.tree.map(lambda part: part.astype(jnp.bfloat16), parts) if by_bits else parts

    @jax.custom_vjp
    def scanned(variables, x, blank, frozen, shared, earlier):
        return forward(variables, x, None, frozen, shared, earlier)[0]

    def forward(variables, x, blank, frozen, shared, earlier):
        def body(x, slices, shared):
            variables, frozen, values = slices
            if values is not None:
                inputs, sums = values
                x, variables = known_values.with_value(inputs, x), {**variables, **sums}
            # As a part of a gradient: products have a forward derivative there, and none outside of one.
            out, _, sums = jax.vjp(lambda *at: layer(at[0], frozen, shared, at[1], written), variables, x, has_aux=True)
            sums = {name: tree if name == NORMS else narrowed(tree) for name, tree in sums.items()}
            return out, (narrowed(x), sums)

        values = None if earlier is None else (earlier.inputs, earlier.sums)
        last, kept = scan(body, x, (variables, frozen, values), shared, after=variables, by_bits=by_bits)
        if values is not None:
            # The values are those of the record: what the scan stacks of them is dropped, its derivatives are not.
            inputs, sums = kept
            kept = known_values.with_value(values[0], inputs), _replaced(values[1], sums)
        return last, (variables, *kept, blank, frozen, shared, earlier)

    def backward(residuals, g):
        variables, inputs, sums, blank, frozen, shared, earlier = residuals

        def body(g, slices, shared):
            variables, frozen, x, sums, taps, cotangents = slices

            def out(variables, x, taps):
                return layer({**variables, **sums, **taps, **cotangents}, frozen, shared, x, ())[0]

            variables_g, g, taps_g = jax.vjp(out, variables, x, taps)[1](g)
            return g, (variables_g, narrowed(taps_g))

        taps = {} if blank is None else blank.cotangents
        cotangents = {} if earlier is None else {COTANGENTS: earlier.cotangents[TAPS]}
        slices = (variables, frozen, inputs, sums, taps, cotangents)
        g, (variables_g, taps_g) = scan(body, g, slices, shared, reverse=True, by_bits=by_bits)
        blank_g = None if blank is None else Blank(inputs, sums, taps_g, jnp.zeros_like(blank.means))
        return variables_g, g, blank_g, None, None, None

    scanned.defvjp(forward, backward)
    blank, earlier = (record if isinstance(record, kind) else None for kind in (Blank, Record))
    return scanned(variables, x, blank, frozen, shared, earlier)


def _replaced(values: PyTree, sums: PyTree) -> PyTree:
    """The sums with the values of a record, which may have fewer: cuDNN's attention writes nothing down."""
    if not isinstance(sums, dict):
        return known_values.with_value(values, sums)
    return {name: _replaced(values[name], part) if name in values else part for name, part in sums.items()}


@jax.custom_jvp
def _constant(weight: Array) -> Array:
    """The weight, whose derivative nothing here computes: one of zero would be a silent mistake."""
    return weight


@_constant.defjvp
def _constant_jvp(primals, tangents):
    raise TypeError(
        "the base is frozen with remat layer and dots: for derivatives in its layers' weights, take remat none"
    )
