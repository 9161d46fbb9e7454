"""Sums over an axis, as XLA's CPU backend makes them quickly.

    row_sums(x) = Σ_d x_d        row_dots(a, b) = Σ_d a_d·b_d        token_dots(a, b)_o = Σ_t a_to·b_to

On a CPU XLA gives a sum to YNNPACK, and with it the elementwise work before and after it: one array of float32 for each
operation, operands and broadcast factors among them. Here the parts of an axis are added up elementwise first, which reads
16-bit operands as they are and writes a fraction of their size, and what is left by a product with ones, to which XLA joins
nothing: a norm of 1024 x 576 bf16 numbers and its gradient take 0.7 ms of a core rather than 1.8. On a GPU it is `jnp.sum`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bidora_jax.kernels.matmul import dot
from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.xla_cpu.outline import outlined

PARTS = (8, 4, 2)
"""Into how many parts an axis may be cut. With 16 a loop reads so many arrays at a time that LLVM does not vectorise it."""
SHORTEST_PART = 16
"""Numbers that a part has at least: those of a vector register."""


def row_sums(x: Float[Array, "*batch D"]) -> Float[Array, "*batch 1"]:
    """Σ over the last axis, in float32 (float64 for float64)."""
    return _by_parts(lambda x: x, x)


@jax.custom_jvp
def row_dots(a: Float[Array, "*batch D"], b: Float[Array, "*batch D"]) -> Float[Array, "*batch 1"]:
    """Σ a ∘ b over the last axis, in float32 (float64 for float64)."""
    return _by_parts(jnp.multiply, a, b)


@row_dots.defjvp
def _row_dots_jvp(primals, tangents):
    (a, b), (a_tangent, b_tangent) = primals, tangents
    # Two sums of few arrays, not one of many.
    return row_dots(a, b), row_dots(a_tangent, b) + row_dots(a, b_tangent)


def _by_parts(term, *arrays: Float[Array, "*batch D"]) -> Float[Array, "*batch 1"]:
    width = arrays[0].shape[-1]
    count = _parts(width)
    part = _added(term, [[array[..., piece] for array in arrays] for piece in _pieces(width, count)])
    if count == 1:
        return jnp.sum(part, axis=-1, keepdims=True)
    rows = part.reshape(-1, part.shape[-1])
    return dot(rows, jnp.ones((1, rows.shape[1]), rows.dtype), -1, -1).reshape(*part.shape[:-1], 1)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def token_dots(a: Float[Array, "*batch O"], b: Float[Array, "*batch O"], members: int = 0) -> Float[Array, "*N O"]:
    """Σ a ∘ b over all axes but the last one and the first `members`, in float32 (float64 for float64)."""
    a, b = (array.reshape(*array.shape[:members], -1, array.shape[-1]) for array in (a, b))
    if members or _parts(a.shape[0]) == 1:
        return jnp.sum(_added(jnp.multiply, [[a, b]]), axis=-2)
    part = _token_parts(a, b)
    return dot(jnp.ones((1, part.shape[0]), part.dtype), part, -1, -2)[0]


@outlined
def _token_parts(a: Float[Array, "M O"], b: Float[Array, "M O"]) -> Float[Array, "P O"]:
    """In loops of its own: in that of a bits' reader, or in the shape of heads, it takes three to five times as long."""
    return _added(jnp.multiply, [[a[piece], b[piece]] for piece in _pieces(a.shape[0], _parts(a.shape[0]))])


@token_dots.defjvp
def _token_dots_jvp(members: int, primals, tangents):
    (a, b), (a_tangent, b_tangent) = primals, tangents
    return token_dots(a, b, members), token_dots(a_tangent, b, members) + token_dots(a, b_tangent, members)


def _parts(length: int) -> int:
    if jax.default_backend() != "cpu":
        return 1
    return next((count for count in PARTS if length % count == 0 and length // count >= SHORTEST_PART), 1)


def _pieces(length: int, count: int) -> list[slice]:
    step = length // count
    return [slice(number * step, (number + 1) * step) for number in range(count)]


def _added(term, pieces: list[list[Array]]) -> Array:
    first, *others = (term(*(array.astype(wide(array.dtype)) for array in arrays)) for arrays in pieces)
    return sum(others, first)
