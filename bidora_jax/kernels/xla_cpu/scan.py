"""A scan over layers whose stacks, the arrays that it writes layer by layer, are what XLA's CPU backend handles well.

    scan(body, first, slices, shared) = lax.scan(lambda carry, one: body(carry, one, shared), first, slices)

Two faults are avoided. XLA fills a stack with zeros as early as it can: the stacks of all passes of a step would live from its
beginning to its end. Here the zeros depend on numbers that exist late. And a CPU has no update in place of 16-bit floats: it
widens and narrows the whole stack for every layer. Here a stack is float32, or it holds the bits of 16-bit floats as integers.
"""

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, PyTree

from bidora_jax.kernels.varying import one_of
from bidora_jax.kernels.xla_cpu import active
from bidora_jax.kernels.xla_cpu.bfloat16 import bits, with_upper_bits

Body = Callable[[Any, PyTree, PyTree], tuple[Any, PyTree]]
"""(carry, slices of one layer, what all layers share) -> (carry, parts of the stacks). It closes over no array, so that it can be
differentiated after the trace that made it has ended."""


def scan(
    body: Body,
    first: Float[Array, "B T D"],
    slices: PyTree,
    shared: PyTree,
    *,
    policy: Callable[..., bool],
    after: PyTree = (),
    reverse: bool = False,
    as_bits: bool = False,
) -> tuple[Float[Array, "B T D"], PyTree]:
    """`lax.scan` over `slices`. A further derivative saves what `policy` of `jax.checkpoint` allows.

    The stacks are not allocated before `first` and `after` exist. With `as_bits` the loop reads and writes bfloat16 stacks as
    integers, and gives the body float32 for them. It stacks their tangents in the same way. Integers have no cotangents, so
    there are forward derivatives alone, none in `shared`, and JAX's error for reverse ones.
    """
    if as_bits:
        return _scan_as_bits(body, reverse, first, slices, shared, after)
    body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    if not active():
        return jax.lax.scan(lambda carry, one: body(carry, one, shared), first, slices, reverse=reverse)
    return _filled_late(lambda carry, one: body(carry, one, shared), first, slices, _late(first, after), reverse)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _scan_as_bits(body: Body, reverse: bool, first, slices, shared, after):
    return _filled_late_as_bits(
        lambda carry, one: body(carry, one, shared), first, slices, _late(first, after), reverse
    )


def _scan_as_bits_jvp(body: Body, reverse: bool, primals, tangents):
    (first, slices, shared, after), (first_t, slices_t, shared_t, after_t) = primals, tangents
    if any(map(_moves, jax.tree.leaves(shared_t))):
        raise TypeError("a scan as bits has no derivative in what its layers share")
    tree = jax.tree.structure(slices)
    moving = {number: t for number, t in enumerate(jax.tree.leaves(slices_t)) if _moves(t)}
    first_t = jax.tree.map(lambda x, t: t if _moves(t) else jnp.zeros_like(x), first, first_t)

    def both(carried, one, shared):
        (carry, carry_t), (slices, moving) = carried, one
        leaves = jax.tree.leaves(slices)

        def moved(carry, some):
            return body(carry, tree.unflatten(some.get(number, leaf) for number, leaf in enumerate(leaves)), shared)

        at = {number: leaves[number] for number in moving}
        (carry, parts), (carry_t, parts_t) = jax.jvp(moved, (carry, at), (carry_t, moving))
        return (carry, carry_t), (parts, parts_t)

    # The rule calls the function itself, so that its result has a derivative in turn. Bits have none, and raise no error.
    after = after, list(filter(_moves, jax.tree.leaves(after_t)))
    (last, last_t), (stacks, stacks_t) = _scan_as_bits(both, reverse, (first, first_t), (slices, moving), shared, after)
    return (last, stacks), (last_t, stacks_t)


_scan_as_bits.defjvp(_scan_as_bits_jvp, symbolic_zeros=True)


def _moves(tangent) -> bool:
    return not isinstance(tangent, SymbolicZero) and tangent.dtype != jax.dtypes.float0


def _filled_late_as_bits(body: Callable, first, slices, late, reverse: bool):
    """`_filled_late`, with bfloat16 stacks as their bits inside."""

    def on_bits(carry, one):
        # Read as bfloat16, XLA would widen them inside every operation that uses them, element by element.
        one = jax.tree.map(lambda part, stack: with_upper_bits(part) if _narrow(stack) else part, one, slices)
        carry, parts = body(carry, one)
        return carry, jax.tree.map(lambda part: bits(part) if _narrow(part) else part, parts)

    held = jax.tree.map(lambda stack: bits(stack) if _narrow(stack) else stack, slices)
    last, stacks = _filled_late(on_bits, first, held, late, reverse)
    back = partial(jax.lax.bitcast_convert_type, new_dtype=jnp.bfloat16)
    return last, jax.tree.map(lambda stack: back(stack) if stack.dtype == jnp.uint16 else stack, stacks)


def _narrow(leaf) -> bool:
    return leaf.dtype == jnp.bfloat16


def _late(first: PyTree, after: PyTree) -> Float[Array, " D"]:
    """D zeros that depend on `first`, arrays (B, T, D), and on all of `after`."""
    numbers = [leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(after)]
    carried, *others = (leaf[0, 0] for leaf in jax.tree.leaves(first))
    return 0 * (carried + sum(others + numbers))


def _filled_late(body: Callable, first, slices, late: Float[Array, " D"], reverse: bool):
    """The last carry and the stacks. Each stack is filled with another of the `late` zeros: XLA would fill one and copy it."""
    one = one_of(slices)
    numbers, layers = count(), jax.tree.leaves(slices)[0].shape[0]
    stacks = jax.tree.map(
        lambda part: jnp.broadcast_to(late[next(numbers) % late.size].astype(part.dtype), (layers, *part.shape)),
        jax.eval_shape(body, first, one)[1],
    )

    def step(carried, indexed):
        (carry, stacks), (index, slices) = carried, indexed
        carry, parts = body(carry, slices)
        stacks = jax.tree.map(
            lambda stack, part: jax.lax.dynamic_update_index_in_dim(stack, part, index, 0), stacks, parts
        )
        return (carry, stacks), None

    return jax.lax.scan(step, (first, stacks), (jnp.arange(layers), slices), reverse=reverse)[0]
