"""Weight-decomposed low-rank adaptation of one linear layer.

    W' = m ⊙ V / ‖V‖        V = W0 + s·B·A        one magnitude m and one norm ‖·‖ per OUTPUT row

DoRA (arXiv:2402.09353, Eq. 5) and BiDoRA (arXiv:2410.09758, Eq. 2), with the axis of NVlabs/DoRA and PEFT. Shapes are
Hugging Face's: W0 (O, I), A (r, I), B (O, r), m (O,). LoRA is the same without m and norm: W' = V.

The norm is factored, so that neither B·A nor V exists outside `merge`:

    ‖V‖² = ‖W0‖² + 2s·rowsum(B ∘ (W0·Aᵀ)) + s²·rowsum((B·(A·Aᵀ)) ∘ B)

A layer composes these functions (models/linear.py), so that it can save what it wants of what lies between them:

    y = frozen(x, W0) + raised(lower(x, A), s·B, x.shape)          z = gain(m, ‖V‖) ⊙ y     (row_gain.py)

s multiplies B rather than the product: in a backward pass that would be one more array of the product's size. Whether the norm is
held constant in a backward pass (DoRA section 4.3) is the layer's choice. Norms, scales and sums are float32 (float64 when the
weights are); products have the dtype of x and accumulate in float32. The frozen W0 gets no gradient where its dtype is
narrow, see `frozen_dot`. Where W0 = diag(σ)·C (int8), C takes its place and σ is `row_scale`. Bias and dropout are not here.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt32

from bidora_jax.kernels.matmul import frozen_dot, frozen_times, product, scale_rows
from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.varying import summed

Scale: TypeAlias = float | Float[Array, ""]
"""s; an array where it is another one in each layer of a stack."""


class Direction(NamedTuple):
    """The low-rank change of direction. The magnitude is not in it: another level trains it, so it is another argument."""

    A: Float[Array, "r I"]
    B: Float[Array, "O r"]


def init(
    key: Key[Array, ""] | UInt32[Array, "2"], w0: Float[Array, "O I"], *, rank: int
) -> tuple[Direction, Float[Array, " O"]]:
    """A direction and a magnitude that change nothing: A uniform in ±1/√I (kaiming with a = √5, as PEFT), B = 0, m = ‖W0‖."""
    out_features, in_features = w0.shape
    dtype = wide(w0.dtype)
    bound = in_features**-0.5
    a = jax.random.uniform(key, (rank, in_features), dtype, -bound, bound)
    return Direction(a, jnp.zeros((out_features, rank), dtype)), jnp.sqrt(square_norm(w0))


def square_norm(w: Float[Array, "O I"]) -> Float[Array, " O"]:
    """Sum of squares of each row, the constant first term of the factored norm."""
    return jnp.sum(jnp.square(w.astype(wide(w.dtype))), axis=1)


def row_norm(
    w0: Float[Array, "O I"],
    norm_sq: Float[Array, " O"],
    direction: Direction,
    *,
    scale: Scale,
    row_scale: Float[Array, " O"] | None = None,
    over: str | None = None,
) -> Float[Array, " O"]:
    """‖W0 + s·B·A‖ of each row. `norm_sq` is `square_norm` of W0. A zero row has norm 0 and a zero derivative, not NaN.

    `over`: the axis of a mesh whose devices have some columns each of W0 and A, and all of B and `norm_sq`.
    """
    cross, update_sq = _overlaps(w0, direction, row_scale)
    if over is not None:
        cross, update_sq = summed(cross, over), summed(update_sq, over)
    total = norm_sq + 2 * scale * cross + scale**2 * update_sq
    positive = total > 0
    # The root is taken of 1 where the row vanishes: its infinite slope at 0 would turn a zero cotangent into NaN.
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, total, 1.0)), 0.0)


def drift(
    w0: Float[Array, "O I"],
    norm_sq: Float[Array, " O"],
    direction: Direction,
    *,
    scale: Scale,
    row_scale: Float[Array, " O"] | None = None,
) -> tuple[Float[Array, " O"], Float[Array, " O"]]:
    """How much longer V is than W0, ‖V‖ − ‖W0‖, and how far it has turned, 1 − cos(V, W0), of each row; a zero row has no
    direction to turn from.

    Both are differences of numbers that are nearly the same, of which float32 would keep no digit below 1e-7. With U = s·B·A

        ‖V‖ − ‖W0‖ = (2·W0·U + ‖U‖²) / (‖V‖ + ‖W0‖)        ‖V‖·‖W0‖ − V·W0 = (‖W0‖²·‖U‖² − (W0·U)²) / (‖V‖·‖W0‖ + V·W0)
    """
    cross, update_sq = _overlaps(w0, direction, row_scale)
    cross, update_sq = scale * cross, scale**2 * update_sq
    before, after = jnp.sqrt(norm_sq), jnp.sqrt(jnp.maximum(norm_sq + 2 * cross + update_sq, 0.0))
    growth = _ratio(2 * cross + update_sq, before + after)
    along, lengths, gram = norm_sq + cross, before * after, jnp.maximum(norm_sq * update_sq - cross**2, 0.0)
    # Beyond a right angle it is the sum that cancels, and the difference that does not.
    difference = jnp.where(along > 0, _ratio(gram, lengths + jnp.maximum(along, 0.0)), lengths - along)
    return growth, _ratio(difference, lengths)


def _ratio(x: Float[Array, " O"], y: Float[Array, " O"]) -> Float[Array, " O"]:
    """x / y, and 0 where y is 0."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1.0), 0.0)


def _overlaps(
    w0: Float[Array, "O I"], direction: Direction, row_scale: Float[Array, " O"] | None
) -> tuple[Float[Array, " O"], Float[Array, " O"]]:
    """W0·(B·A) and ‖B·A‖² of each row."""
    a, b = direction
    cross = jnp.sum(b * _wide_times(w0, a), axis=1)
    cross = cross if row_scale is None else cross * row_scale
    return cross, jnp.sum((b @ (a @ a.T)) * b, axis=1)


def _wide_times(w0: Float[Array, "O I"], a: Float[Array, "r I"]) -> Float[Array, "O r"]:
    """W0·Aᵀ without rounding A to a narrow W0's dtype: its rounded part and the rest are two halves of one product.

    The norm would otherwise differ from the one of the same weights in float32 by up to 2⁻⁸ of the cross term, and with it
    an adapter from its own float32 export.
    """
    if w0.dtype == wide(w0.dtype):
        return frozen_times(w0, a.astype(w0.dtype))
    narrow, rank = jnp.finfo(w0.dtype), a.shape[0]
    rounded = jax.lax.reduce_precision(a, narrow.nexp, narrow.nmant)
    both = frozen_times(w0, jnp.concatenate([rounded, a - rounded]).astype(w0.dtype))
    return both[:, :rank] + both[:, rank:]


def gain(magnitude: Float[Array, " O"], norm: Float[Array, " O"]) -> Float[Array, " O"]:
    """m / ‖V‖, and 1 for a row of norm 0, whose product is zero whatever its gain."""
    positive = norm > 0
    return jnp.where(positive, magnitude / jnp.where(positive, norm, 1.0), 1.0)


def lower(x: Float[Array, "*batch I"], a: Float[Array, "r I"]) -> Float[Array, "M r"]:
    """x·Aᵀ over flat rows, with the accumulator returned as it is."""
    return product(x.reshape(-1, x.shape[-1]), a)


def raised(lowered: Float[Array, "M r"], b: Float[Array, "O r"], shape: tuple[int, ...]) -> Float[Array, "*batch O"]:
    """(x·Aᵀ)·Bᵀ of `lowered` = x·Aᵀ, for an x of this shape, with the accumulator returned as it is."""
    y = product(lowered, b)
    return y.reshape(*shape[:-1], y.shape[-1])


def raised_by_member(
    x: Float[Array, "N *batch I"], a: Float[Array, "N r I"], b: Float[Array, "N O r"]
) -> Float[Array, "N *batch O"]:
    """(x·Aᵀ)·Bᵀ of N adapters side by side: each meets its own part of the leading axis of x."""
    return jax.vmap(lambda x, a, b: raised(lower(x, a).astype(x.dtype), b, x.shape))(x, a, b)


def frozen(
    x: Float[Array, "*batch I"], w0: Float[Array, "O I"], row_scale: Float[Array, " O"] | None = None
) -> Float[Array, "*batch O"]:
    """x·W0ᵀ with the accumulator returned as it is, each row times its `row_scale`."""
    y = frozen_dot(x, w0)
    return y if row_scale is None else scale_rows(y, row_scale)


def merge(
    w0: Float[Array, "O I"], direction: Direction, magnitude: Float[Array, " O"] | None = None, *, scale: Scale
) -> Float[Array, "O I"]:
    """The one matrix W' with the effect of the layer, in float32 (float64 for float64)."""
    a, b = direction
    v = w0.astype(wide(w0.dtype)) + scale * (b @ a)
    if magnitude is None:
        return v
    norm = row_norm(w0, square_norm(w0), direction, scale=scale)
    return gain(magnitude, norm)[:, None] * v
