"""Matrix products in the dtype of the activations, with float32 sums and derivatives that move no large operand.

    frozen_dot   y = x·W0ᵀ      W0 is frozen: linear in x alone
    frozen_times y = W0·Aᵀ      the same, laid out for an A of few rows
    product      y = x·Wᵀ       both have a derivative, W in any float dtype
    matmul       y = x·W        the same for a W that lies the other way

For narrow x (bf16, float16) a cotangent is rounded to that dtype before it meets a matrix: a float32 cotangent times a bf16
matrix is a mixed product, several times slower on a CPU and outside the tensor cores of a GPU. Sums are float32 (float64 for
float64) and are returned as they are. Every function here is differentiable to second order forward over reverse.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero, linear_call
from jaxtyping import Array, Float, Int

from bidora_jax.kernels.alone import alone

KEPT = "kept"
"""The sums of the linear layers: behind them is nearly all of a model's arithmetic, what is worth keeping, if anything is."""


def wide(dtype) -> jnp.dtype:
    """The dtype sums of `dtype` are made in: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def frozen_dot(x: Float[Array, "*batch I"], w0: Float[Array, "O I"]) -> Float[Array, "*batch O"]:
    """x·W0ᵀ with the accumulator returned as it is: float32 for bf16 and float16 inputs.

    For those narrow inputs the product is declared linear in x alone. W0 then has no derivative at all (differentiating it
    fails loudly); in float32 and float64 this is an ordinary product.
    """
    narrow = x.dtype != wide(x.dtype)
    return linear_call(_narrow_dot, _narrow_dot_transpose, (w0,), x) if narrow else _contract(x, w0)


def frozen_times(w0: Float[Array, "O I"], a: Float[Array, "r I"]) -> Float[Array, "O r"]:
    """W0·Aᵀ, otherwise as `frozen_dot`. XLA's CPU backend packs the right factor of every product, which is the small one here:
    with 16 rows that takes 0.6 of the time."""
    narrow = a.dtype != wide(a.dtype)
    return linear_call(_narrow_times, _narrow_times_transpose, (w0,), a) if narrow else _contract(w0, a)


def kept(y: Array, dtype, name: str = "") -> Array:
    """y as `kept_dtype` has it, under the name KEPT: what a policy of `jax.checkpoint` keeps rather than makes the products
    before it again."""
    return checkpoint_name(y.astype(kept_dtype(dtype)), KEPT)


def kept_dtype(dtype) -> jnp.dtype:
    """In which dtype a scan over layers keeps activations of `dtype`: that one, but the wide one on a CPU.

    XLA's CPU backend has no 16-bit float update of an array in place: it would widen and narrow all layers at every one.
    models/stacks.py keeps bits instead, where derivatives allow it.
    """
    return wide(dtype) if jax.default_backend() == "cpu" else jnp.dtype(dtype)


def _contract(x, w):
    return jax.lax.dot_general(x, w, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=wide(x.dtype))


def _narrow_dot(residuals, x):
    (w0,) = residuals
    return _contract(x, w0)


def _narrow_dot_transpose(residuals, g):
    (w0,) = residuals
    g = g.astype(w0.dtype)
    dims = (((g.ndim - 1,), (0,)), ((), ()))
    return jax.lax.dot_general(g, w0, dims, preferred_element_type=wide(w0.dtype)).astype(w0.dtype)


def _narrow_times(residuals, a):
    (w0,) = residuals
    return _contract(w0, a)


def _narrow_times_transpose(residuals, g):
    (w0,) = residuals
    return over_rows(g.astype(w0.dtype), w0).astype(w0.dtype)


def product(x: Float[Array, "*batch M K"], w: Float[Array, "*batch N K"]) -> Float[Array, "*batch M N"]:
    """x·Wᵀ over equal leading axes; W is rounded to the dtype of x.

    The derivative of W is a sum over rows, `over_rows`. JAX's own rule turns the cotangent, which is the large one wherever K
    is small: low-rank factors, heads of attention. Forward-mode differentiation passes through its gradient but not
    through the function itself.
    """
    return _product(x, w, -1)


def matmul(x: Float[Array, "*batch M K"], w: Float[Array, "*batch K N"]) -> Float[Array, "*batch M N"]:
    """x·W, otherwise as `product`."""
    return _product(x, w, -2)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x, w, axis: int):
    return dot(x, w.astype(x.dtype), -1, axis)


def _product_forward(x, w, axis: int):
    return dot(x, w.astype(x.dtype), -1, axis), (x, w)  # not _product: it would bar a forward pass over its gradient


def _product_backward(axis: int, residuals, g):
    x, w = residuals
    g = g.astype(x.dtype)
    dx = dot(g, w.astype(x.dtype), -1, -3 - axis)
    dw = over_rows(x, g) if axis == -2 else over_rows(g, x)
    return dx.astype(x.dtype), dw.astype(w.dtype)


_product.defvjp(_product_forward, _product_backward)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def dot(
    left: Float[Array, "*batch _ _"], right: Float[Array, "*batch _ _"], left_axis: int, right_axis: int
) -> Float[Array, "*batch M N"]:
    """Contracts one of the two last axes of each over equal leading axes: x·yᵀ for -1 and -1, x·y for -1 and -2.

    For narrow factors the derivative of a result that is larger than they are is one product over twice as many numbers,
    rather than the sum of two such results: dx·yᵀ + x·dyᵀ = [dx, x]·[y, dy]ᵀ. It is declared linear, and so can't be mapped over.
    """
    return _dot(left, right, left_axis, right_axis)


def _dot(left, right, left_axis: int, right_axis: int):
    leading = tuple(range(left.ndim - 2))
    contracted = ((left.ndim + left_axis,), (right.ndim + right_axis,))
    dims = (contracted, (leading, leading))
    return jax.lax.dot_general(left, right, dims, preferred_element_type=wide(left.dtype))


def _dot_jvp(left_axis: int, right_axis: int, primals, tangents):
    (left, right), (left_t, right_t) = primals, tangents
    y = dot(left, right, left_axis, right_axis)
    left_moves, right_moves = (not isinstance(tangent, SymbolicZero) for tangent in tangents)
    narrow, larger = left.dtype != y.dtype, left.shape[left_axis] * sum(y.shape[-2:]) <= y.shape[-2] * y.shape[-1]
    if left_moves and right_moves and narrow and larger:
        both = partial(_joined_dots, left_axis, right_axis), partial(_joined_dots_transpose, left_axis, right_axis)
        return y, linear_call(*both, primals, tangents)
    terms = [dot(left_t, right, left_axis, right_axis)] if left_moves else []
    terms += [dot(left, right_t, left_axis, right_axis)] if right_moves else []
    return y, sum(terms[1:], terms[0])


dot.defjvp(_dot_jvp, symbolic_zeros=True)


def _joined_dots(left_axis: int, right_axis: int, residuals, tangents):
    (left, right), (left_t, right_t) = residuals, tangents
    left = jnp.concatenate([left_t, left], axis=left_axis)
    return _dot(left, jnp.concatenate([right, right_t], axis=right_axis), left_axis, right_axis)


def _joined_dots_transpose(left_axis: int, right_axis: int, residuals, g):
    left, right = (array.astype(g.dtype) for array in residuals)
    left_free, right_free = -3 - left_axis, -3 - right_axis
    of_left = (g, right, -1, right_free) if left_axis == -1 else (right, g, right_free, -1)
    of_right = (g, left, -2, left_free) if right_axis == -1 else (left, g, left_free, -2)
    return tuple(_dot(*of).astype(one.dtype) for of, one in zip((of_left, of_right), residuals, strict=True))


def over_rows(x: Float[Array, "*batch M K"], y: Float[Array, "*batch M N"]) -> Float[Array, "*batch K N"]:
    """xᵀ·y, a sum over rows. One of its two factors has to be turned: the smaller one."""
    if x.shape[-1] > y.shape[-1]:
        sums = over_rows(y, x)
        return _turned(sums) if _transposes_show(y) else sums.swapaxes(-2, -1)
    return dot(swapped(x, -2, -1), y, -1, -2) if _transposes_show(x) else dot(x, y, -2, -2)


def swapped(x: Array, first: int, second: int) -> Array:
    """x with two of its axes swapped, as an operand of a product.

    On a CPU XLA computes a 16-bit product in float32 if it can see that an operand was transposed: at half the speed, and
    with copies of both operands in float32. Pairs of numbers transposed as one integer it does not see through. A pair is
    one number of either half of the last axis; neighbours would be paired and parted one by one.
    """
    if not _transposes_show(x):
        return x.swapaxes(first, second)
    swap = partial(_swapped_pairs, first=first, second=second)
    return linear_call(lambda _, x: swap(x), lambda _, g: swap(g), (), x)


def _transposes_show(x: Array) -> bool:
    return jax.default_backend() == "cpu" and x.dtype.itemsize == 2 and x.shape[-1] % 2 == 0


def _swapped_pairs(x: Array, first: int, second: int) -> Array:
    if x.shape[-1] % 2:  # a cotangent, whose last axis is another
        return x.swapaxes(first, second)
    bits, last = jax.lax.bitcast_convert_type, x.ndim - 1
    low, high = jnp.split(bits(x, jnp.uint16).astype(jnp.uint32), 2, axis=-1)
    pairs = (low | high << 16).swapaxes(first, second)
    halves = [pairs.astype(jnp.uint16), (pairs >> 16).astype(jnp.uint16)]
    first, second = first % x.ndim, second % x.ndim
    return bits(jnp.concatenate(halves, axis={first: second, second: first}.get(last, last)), x.dtype)


@alone
def _turned(sums: Array) -> Array:
    """The last two axes swapped. Fused to what follows this took six times as long, and of a swap that it sees beside the
    product XLA would make a product of transposed operands."""
    return sums.swapaxes(-2, -1)


def bits(leaf: Array) -> Array:
    """16-bit weights as their bits, to be sliced as integers and read back by `floats`.

    XLA's CPU backend has no 16-bit float slice: it would widen the whole array to float32 and slice that. The cast is a
    copy there, so the large stacks of a loaded model are `quant.Bits` on a CPU. On a GPU the two casts are free.
    """
    return jax.lax.bitcast_convert_type(leaf, jnp.uint16) if leaf.dtype.itemsize == 2 else leaf


def floats(leaf: Array, like: Array) -> Array:
    """What `bits` made of `like`, or a part of it, in its dtype again."""
    return jax.lax.bitcast_convert_type(leaf, like.dtype) if leaf.dtype == jnp.uint16 else leaf


def some_rows(w: Float[Array, "V D"], first: Int[Array, ""], count: int) -> Float[Array, "C D"]:
    """`count` rows of w from `first` on, for a loop over them.

    In a loop the cast of all of w to bits would be made before it, a copy of w. Bound to `first` it stays where it is, and
    only the bits of those rows are read.
    """
    w, first = jax.lax.optimization_barrier((w, first))
    return floats(jax.lax.dynamic_slice_in_dim(bits(w), first, count), w)
