"""Sums over an axis, as XLA's CPU backend computes them quickly. Sums are float32 (float64 for float64).

    row_sums(x)         = jnp.sum(x, -1, keepdims=True)
    row_dots(a, b)      = jnp.sum(a * b, -1, keepdims=True)
    token_dots(a, b)_o  = Σ_t a_to·b_to

XLA hands a sum to YNNPACK, together with the elementwise operations around it: each of them becomes a float32 array, operands and
broadcast factors too. Here the parts of an axis are added elementwise first. That reads 16-bit operands as they are and writes a
fraction of their size. A product with ones sums the rest, and XLA fuses nothing into a product. A norm of 1,024 x 576 bfloat16
numbers and its gradient take 0.7 ms of a core rather than 1.8.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.xla_cpu import active
from bidora_jax.kernels.xla_cpu.outline import outlined

PARTS = (8, 4, 2)
"""Into how many parts an axis may be cut. LLVM does not vectorise a loop that reads 16 arrays at a time."""
SHORTEST_PART = 16
"""Numbers in a part, at least: those of a vector register."""


def row_sums(x: Float[Array, "*batch D"]) -> Float[Array, "*batch 1"]:
    """Σ over the last axis."""
    return _by_parts(lambda x: x, x)


@jax.custom_jvp
def row_dots(a: Float[Array, "*batch D"], b: Float[Array, "*batch D"]) -> Float[Array, "*batch 1"]:
    """Σ a ∘ b over the last axis."""
    return _by_parts(jnp.multiply, a, b)


@row_dots.defjvp
def _row_dots_jvp(primals, tangents):
    (a, b), (a_tangent, b_tangent) = primals, tangents
    # Two sums over two arrays each are faster than one sum over four.
    return row_dots(a, b), row_dots(a_tangent, b) + row_dots(a, b_tangent)


def _by_parts(term, *arrays: Float[Array, "*batch D"]) -> Float[Array, "*batch 1"]:
    width = arrays[0].shape[-1]
    count = _parts(width)
    part = _added(term, [[array[..., piece] for array in arrays] for piece in _pieces(width, count)])
    if count == 1:
        return jnp.sum(part, axis=-1, keepdims=True)
    rows = part.reshape(-1, part.shape[-1])
    return _dot(rows, jnp.ones((1, rows.shape[1]), rows.dtype), 1).reshape(*part.shape[:-1], 1)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def token_dots(a: Float[Array, "*batch O"], b: Float[Array, "*batch O"], members: int = 0) -> Float[Array, "*N O"]:
    """Σ a ∘ b over all axes but the last one and the first `members`."""
    a, b = (array.reshape(*array.shape[:members], -1, array.shape[-1]) for array in (a, b))
    if members or _parts(a.shape[0]) == 1:
        return jnp.sum(_added(jnp.multiply, [[a, b]]), axis=-2)
    part = _token_parts(a, b)
    return _dot(jnp.ones((1, part.shape[0]), part.dtype), part, 0)[0]


@outlined
def _token_parts(a: Float[Array, "M O"], b: Float[Array, "M O"]) -> Float[Array, "P O"]:
    """A call of its own: fused into a reader of bits, or in the shape of heads, it takes three to five times as long."""
    return _added(jnp.multiply, [[a[piece], b[piece]] for piece in _pieces(a.shape[0], _parts(a.shape[0]))])


@token_dots.defjvp
def _token_dots_jvp(members: int, primals, tangents):
    (a, b), (a_tangent, b_tangent) = primals, tangents
    return token_dots(a, b, members), token_dots(a_tangent, b, members) + token_dots(a, b_tangent, members)


def _parts(length: int) -> int:
    """Into how many parts an axis of this length is cut; 1, the plain sum, where there is no detour."""
    if not active():
        return 1
    return next((count for count in PARTS if length % count == 0 and length // count >= SHORTEST_PART), 1)


def _pieces(length: int, count: int) -> list[slice]:
    step = length // count
    return [slice(number * step, (number + 1) * step) for number in range(count)]


def _added(term, pieces: list[list[Array]]) -> Array:
    first, *others = (term(*(array.astype(wide(array.dtype)) for array in arrays)) for arrays in pieces)
    return sum(others, first)


def _dot(left: Array, right: Array, axis: int) -> Array:
    """Contracts the last axis of `left` with this one of `right`."""
    return jax.lax.dot_general(left, right, (((1,), (axis,)), ((), ())), preferred_element_type=left.dtype)
