"""Which arrays differ between the devices of a mesh, inside `jax.shard_map`, which types them by it.

    varying(x, axes) = x        as_varying(x, like) = x        only the type changes, and outside of a map not even that

A loop carries one type, and a custom derivative gives back the type of its argument. Zeros that a sum over a device's own numbers
starts with are made from no array of that device, so their type has to be said. Outside of a map these functions trace none of it.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree


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


def copies_of(x: Array) -> int:
    """On how many devices x is one of its own; 1 outside of a map. What each of them adds to a sum counts so many times."""
    names = _names(x)
    return jax.lax.axis_size(names) if names else 1


def _names(x: Array) -> tuple[str, ...]:
    """`axes_of` in the mesh's order."""
    return tuple(name for name in jax.sharding.get_abstract_mesh().axis_names if name in axes_of(x))


def summed(x: Float[Array, "..."], axis: str) -> Float[Array, "..."]:
    """Σ x over the devices along an axis, which goes on as a number of each device's own."""
    return varying(jax.lax.psum(x, axis), axes_of(x))


def own_part(x: Array, axis: str, cut: int) -> Array:
    """This device's part of an x that all devices along the axis have, cut along its axis `cut`."""
    size = x.shape[cut] // jax.lax.axis_size(axis)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * size, size, cut)


def own_share(x: Array, axis: str) -> Array:
    """This device's share of the rows of x (N, …), which all devices along the axis have, filled up with zeros."""
    count = share_of(x.shape[0], axis)
    whole = jnp.pad(x, ((0, count * jax.lax.axis_size(axis) - x.shape[0]),) + ((0, 0),) * (x.ndim - 1))
    return own_part(whole, axis, 0)


def share_of(rows: int, axis: str) -> int:
    """How many of so many rows a device has in `own_share`."""
    return -(-rows // jax.lax.axis_size(axis))


def bernoulli_of_rows(
    key: Array, p: float, x: Float[Array, "..."], alike: str | None = None, *, columns_cut: bool = False
) -> Bool[Array, "..."]:
    """jax.random.bernoulli(key, p, x.shape) on one device. Inside of a map that cuts the rows of x (B, T, D) over devices, its own
    rows of the draw for all of them: no draw depends on the mesh. Along the axis `alike` devices have the same rows, or with
    `columns_cut` their own columns of them. An x of two axes is taken to be the same on every device."""
    names = tuple(name for name in _names(x) if name != alike)
    if not names or x.ndim < 3:
        return jax.random.bernoulli(key, p, x.shape)
    rows, *others, columns = x.shape
    width = columns * jax.lax.axis_size(alike) if alike is not None and columns_cut else columns
    drawn = jax.random.bernoulli(key, p, (rows * jax.lax.axis_size(names), *others, width))
    drawn = jax.lax.dynamic_slice_in_dim(drawn, rows * jax.lax.axis_index(names), rows)
    return drawn if alike is None or width == columns else own_part(drawn, alike, x.ndim - 1)
