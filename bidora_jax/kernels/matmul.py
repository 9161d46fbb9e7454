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
from jax.custom_derivatives import linear_call
from jaxtyping import Array, Float

from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.xla_cpu.transpose import transpose, transposed, transposes_show


def scale_rows(y: Float[Array, "*batch O"], gain: Float[Array, "*N O"]) -> Float[Array, "*batch O"]:
    """gain ⊙ y in the wider dtype of the two. Leading axes of `gain`, those of several adapters, are the first of y."""
    *members, rows = gain.shape
    if not members:
        return (y.reshape(-1, rows) * gain[None]).reshape(y.shape)
    return y * gain.reshape(*members, *(1,) * (y.ndim - gain.ndim), rows)


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
    return matmul_transposed_left(g.astype(w0.dtype), w0).astype(w0.dtype)


def product(x: Float[Array, "*batch M K"], w: Float[Array, "*batch N K"]) -> Float[Array, "*batch M N"]:
    """x·Wᵀ over equal leading axes; W is rounded to the dtype of x.

    The derivative of W is a sum over rows, `matmul_transposed_left`. JAX's own rule transposes the cotangent, which is the larger
    factor wherever K is small: low-rank factors, heads of attention. It has no forward derivative of its own; a forward pass
    over its gradient is what a mixed product takes.
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
    dw = matmul_transposed_left(x, g) if axis == -2 else matmul_transposed_left(g, x)
    return dx.astype(x.dtype), dw.astype(w.dtype)


_product.defvjp(_product_forward, _product_backward)


def dot(
    left: Float[Array, "*batch _ _"], right: Float[Array, "*batch _ _"], left_axis: int, right_axis: int
) -> Float[Array, "*batch M N"]:
    """Contracts one of the two last axes of each over equal leading axes: x·yᵀ for -1 and -1, x·y for -1 and -2."""
    leading = tuple(range(left.ndim - 2))
    contracted = ((left.ndim + left_axis,), (right.ndim + right_axis,))
    return jax.lax.dot_general(left, right, (contracted, (leading, leading)), preferred_element_type=wide(left.dtype))


def matmul_transposed_left(x: Float[Array, "*batch M K"], y: Float[Array, "*batch M N"]) -> Float[Array, "*batch K N"]:
    """xᵀ·y, a sum over rows. One of its two factors has to be turned: the smaller one."""
    if x.shape[-1] > y.shape[-1]:
        sums = matmul_transposed_left(y, x)
        return transposed(sums) if transposes_show(y) else sums.swapaxes(-2, -1)
    return dot(transpose(x, -2, -1), y, -1, -2) if transposes_show(x) else dot(x, y, -2, -2)
