"""Which arrays differ between the devices of a mesh, inside `jax.shard_map`, which types them by it.

    varying(x, axes) = x        as_varying(x, like) = x        only the type changes, and outside of a map not even that

A loop carries one type, and a custom derivative gives back the type of its argument. Zeros that a sum over a device's own numbers
starts with are made from no array of that device, so their type has to be said. Outside of a map these functions trace nothing.
"""

from collections.abc import Iterable
from typing import Any

import jax
from jaxtyping import Array, PyTree


def axes_of(x: Any) -> frozenset[str]:
    """The axes of the mesh along which x may differ; none outside of a map."""
    kind = getattr(jax.typeof(x), "manual_axis_type", None)
    return frozenset() if kind is None else kind.varying


def varying(x: Array, axes: Iterable[str]) -> Array:
    """x as one that may differ along these axes too. Its cotangent is summed over those that are new."""
    new = tuple(sorted(set(axes) - axes_of(x)))
    return jax.lax.pcast(x, new, to="varying") if new else x


def as_varying(x: Array, like: Array) -> Array:
    """x as one that may differ wherever `like` may."""
    return varying(x, axes_of(like))


def one_of(stacks: PyTree) -> PyTree:
    """The shapes of one layer of stacks, for `jax.eval_shape`; inside of a map a layer itself, whose types say where it differs."""
    if any(map(axes_of, jax.tree.leaves(stacks))):
        return jax.tree.map(lambda stack: stack[0], stacks)
    return jax.tree.map(lambda stack: jax.ShapeDtypeStruct(stack.shape[1:], stack.dtype), stacks)
