"""kernels/matmul.py against plain einsum and JAX's own derivatives of it.

kernels/precision.py names the dtype of sums, kernels/xla_cpu/transpose.py a transpose that XLA's CPU backend does not see.
"""

from functools import partial

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels import matmul, precision
from bidora_jax.kernels.matmul import frozen_dot, frozen_times
from bidora_jax.kernels.xla_cpu.transpose import transpose

BATCH, ROWS, INNER = 3, 11, 5


def arrays(dtype, *shapes):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.normal(size=shape), dtype) for shape in shapes]


# The small factor of a sum over rows is x for 13 columns and the cotangent for 2: each is turned in one case.
@pytest.mark.parametrize("columns", [13, 2])
@pytest.mark.parametrize(("fast", "plain"), [("product", "bmk,bnk->bmn"), ("matmul", "bmk,bkn->bmn")])
def test_products_have_einsums_value_and_derivatives_of_both_orders(x64, fast, plain, columns):
    right = (BATCH, columns, INNER) if fast == "product" else (BATCH, INNER, columns)
    x, w, dx, dw = arrays(jnp.float64, (BATCH, ROWS, INNER), right, (BATCH, ROWS, INNER), right)

    def derivatives(multiply):
        gradient = jax.grad(lambda x, w: jnp.sum(jnp.sin(multiply(x, w))), (0, 1))
        forward = jax.jvp(gradient, (x, w), (dx, dw))
        backward = jax.grad(lambda x, w: jnp.vdot(gradient(x, w)[0], dx) + jnp.vdot(gradient(x, w)[1], dw), (0, 1))
        return multiply(x, w), forward, backward(x, w)

    found, expected = derivatives(getattr(matmul, fast)), derivatives(lambda x, w: jnp.einsum(plain, x, w))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_a_wide_factor_gets_its_gradient_unrounded():
    x, w, g = arrays(jnp.float32, (ROWS, INNER), (13, INNER), (ROWS, 13))
    narrow_x, narrow_g = (array.astype(jnp.bfloat16).astype(jnp.float32) for array in (x, g))
    found = jax.vjp(lambda w: matmul.product(x.astype(jnp.bfloat16), w), w)[1](g)[0]
    assert found.dtype == jnp.float32
    # Products of two bf16 numbers are exact in float32; only the order of the sum may differ.
    np.testing.assert_allclose(found, narrow_g.T @ narrow_x, rtol=1e-5, atol=1e-5)


def test_the_large_cotangent_is_never_turned():
    x, w, g = arrays(jnp.float32, (331, 3), (257, 3), (331, 257))
    contracted = hlo.contractions(hlo.lowered(lambda x, w, g: jax.vjp(matmul.product, x, w)[1](g), x, w, g))
    assert ("0", "0", "tensor<331x3xf32>", "tensor<331x257xf32>") in contracted
    assert not any(one.left == "tensor<331x257xf32>" and one.left_axis == "0" for one in contracted)


DTYPES = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])


@DTYPES
@pytest.mark.parametrize("last", [6, 7])
@pytest.mark.parametrize("axes", [(1, 2), (-2, -1), (3, 1)])
def test_swapped_is_swapaxes_with_its_transpose(dtype, last, axes):
    x, g = arrays(dtype, (2, 3, 5, last), np.empty((2, 3, 5, last)).swapaxes(*axes).shape)
    found, pull = jax.jit(lambda x: jax.vjp(lambda x: transpose(x, *axes), x))(x)
    np.testing.assert_array_equal(found, x.swapaxes(*axes))
    np.testing.assert_array_equal(pull(g)[0], g.swapaxes(*axes))


MANY, FLAT, ONE, LARGE = (BATCH, ROWS), (ROWS,), (BATCH, 1), (1, 64)


@DTYPES
@pytest.mark.parametrize(
    ("leading", "left", "right"),
    [(MANY, 2, 14), (MANY, 14, 2), (MANY, 3, 7), (MANY, 7, 3), (FLAT, 8, 14), (FLAT, 14, 8), (FLAT, 1, 1), (ONE, 1, 8),
     (ONE, 8, 1), (ONE, 6, 4), (LARGE, 64, 96), (LARGE, 96, 64)],
)  # fmt: skip
def test_a_sum_over_rows_is_einsums_with_its_derivatives(dtype, leading, left, right):
    x, y, dx, dy = arrays(dtype, *[(*leading, left), (*leading, right)] * 2)
    (g,) = arrays(jnp.float32, (*leading[:-1], left, right))

    def all_of(sums, *inputs):
        value, tangent = jax.jvp(sums, inputs[:2], inputs[2:])
        return value, tangent, jax.vjp(sums, *inputs[:2])[1](g)

    found = jax.jit(partial(all_of, matmul.matmul_transposed_left))(x, y, dx, dy)
    einsum = partial(jnp.einsum, "...mk,...mn->...kn", precision="highest")
    expected = all_of(einsum, *(array.astype(jnp.float32) for array in (x, y, dx, dy)))
    assert found[0].dtype == jnp.float32
    # A cotangent is rounded to the dtype of its input.
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=max(1e-5, float(jnp.finfo(one.dtype).eps)), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("axes", [(-1, -1), (-1, -2), (-2, -1), (-2, -2)])
def test_a_dot_and_its_derivatives_are_those_of_an_einsum(dtype, axes):
    shapes = [(2, 3, rows) if axis == -2 else (2, rows, 3) for rows, axis in zip((5, 7), axes, strict=True)]
    inputs = arrays(dtype, *shapes, *shapes)
    (g,) = arrays(jnp.float32, (2, 5, 7))
    letters = ["mk" if axes[0] == -1 else "km", "nk" if axes[1] == -1 else "kn"]
    einsum = partial(jnp.einsum, f"b{letters[0]},b{letters[1]}->bmn", precision="highest")

    def all_of(product, left, right, *tangents):
        value, tangent = jax.jvp(product, (left, right), tangents)
        return value, tangent, jax.vjp(product, left, right)[1](g)

    found = all_of(partial(matmul.dot, left_axis=axes[0], right_axis=axes[1]), *inputs)
    expected = all_of(einsum, *(array.astype(jnp.float32) for array in inputs))
    assert found[0].dtype == found[1].dtype == jnp.float32
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=max(1e-5, float(jnp.finfo(one.dtype).eps)), atol=1e-5)


def widened(function, *inputs) -> list[str]:
    """The names of the compiled function's instructions that write something out as float32."""
    return hlo.widened(hlo.compiled(function, *inputs))


@pytest.mark.parametrize("inner", [8, 512])
def test_a_narrow_product_and_its_derivatives_copy_nothing_into_float32(inner):
    x, w, g = arrays(jnp.bfloat16, (2, 256, inner), (2, 384, inner), (2, 256, 384))
    if widened(lambda x, w: matmul.dot(x, w, -1, -1), x, w):
        pytest.skip("this processor has no 16-bit products at all")

    def all_of(x, w, g):
        y, pull = jax.vjp(lambda x, w: matmul.product(x, w).astype(x.dtype), x, w)
        return y, pull(g)

    assert widened(all_of, x, w, g) == []


def test_narrow_frozen_dot_is_the_plain_dot_forward_and_backward():
    x, w = arrays(jnp.bfloat16, (2, 5, 13), (7, 13))
    (cotangent,) = arrays(jnp.bfloat16, (2, 5, 7))

    def through(dot):
        return jax.vjp(lambda x: dot(x).astype(jnp.bfloat16), x)

    fast, fast_vjp = through(lambda x: frozen_dot(x, w))
    slow, slow_vjp = through(lambda x: frozen_dot(x.astype(jnp.float32), w.astype(jnp.float32)))
    np.testing.assert_array_equal(fast, slow)
    np.testing.assert_allclose(
        np.asarray(fast_vjp(cotangent)[0], np.float32),
        np.asarray(slow_vjp(cotangent)[0], np.float32),
        rtol=2**-7,
        atol=1e-2,
    )
    assert frozen_dot(x, w).dtype == jnp.float32


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float64, 1e-12), (jnp.bfloat16, 2**-7)])
def test_frozen_times_is_frozen_dot_laid_out_for_few_rows(x64, dtype, tolerance):
    w, a = arrays(dtype, (13, 8), (3, 8))
    (cotangent,) = arrays(precision.wide(dtype), (13, 3))
    (found, back), (expected, plain_back) = (
        jax.vjp(form, a) for form in (lambda a: frozen_times(w, a), lambda a: frozen_dot(a, w).T)
    )
    assert found.dtype == precision.wide(dtype)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    (one,), (other,) = back(cotangent), plain_back(cotangent)
    assert one.dtype == dtype
    one, other = (np.asarray(leaf, np.float64) for leaf in (one, other))
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_narrow_frozen_dot_refuses_a_gradient_of_the_frozen_weight():
    x, w = arrays(jnp.bfloat16, (2, 5, 13), (7, 13))
    with pytest.raises(AssertionError):  # linear_call's own: what it holds constant was differentiated
        jax.grad(lambda w: jnp.sum(frozen_dot(x, w)))(w)
