"""kernels/row_gain.py: derivatives read from gain ⊙ y against those of the multiplication."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels import matmul, row_gain


def numbers(seed: int, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def through(y, gain):
    """As a linear layer has it."""
    return row_gain.scaled(y, gain, row_gain.save_scaled(y, gain, y.dtype))


@pytest.mark.parametrize("shape", [(2, 32, 7), (3, 7), (1, 1, 7)])
def test_derivatives_are_those_of_the_multiplication(x64, shape):
    y, gain, *directions = numbers(0, shape), numbers(1, shape[-1:]), numbers(2, shape), numbers(3, shape[-1:])

    def gradient(form):
        return jax.grad(lambda y, gain: jnp.sum(jnp.sin(form(jnp.cos(y), gain**2))), argnums=(0, 1))

    found, expected = (gradient(form)(y, gain) for form in (through, matmul.scale_rows))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), found, expected)
    # Forward over reverse, in y, in the gain, and in both.
    for moving in ((1, 1), (1, 0), (0, 1)):
        tangents = tuple(scale * direction for scale, direction in zip(moving, directions, strict=True))
        found, expected = (jax.jvp(gradient(form), (y, gain), tangents)[1] for form in (through, matmul.scale_rows))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11), found, expected)


def test_a_known_product_has_the_derivatives_of_the_one_that_it_is(x64):
    y, gain, y_tangent, gain_tangent = (numbers(seed, shape) for seed, shape in enumerate([(3, 7), (7,), (3, 7), (7,)]))
    value = matmul.scale_rows(y, gain)
    for point, tangents in (
        ((y, gain), (y_tangent, gain_tangent)),
        ((y, gain), (y_tangent, jnp.zeros_like(gain))),
        ((y, gain), (jnp.zeros_like(y), gain_tangent)),
    ):
        found = jax.jvp(lambda y, gain: row_gain.with_value(value, y, gain), point, tangents)
        expected = jax.jvp(matmul.scale_rows, point, tangents)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)
    held = jax.jvp(lambda y: row_gain.with_value(value, y, gain), (y,), (y_tangent,))[1]
    np.testing.assert_allclose(held, matmul.scale_rows(y_tangent, gain), rtol=1e-12)
    second = jax.jvp(
        lambda g: jax.jvp(lambda g: row_gain.with_value(value, y, g), (g,), (gain_tangent,))[1],
        (gain,),
        (gain_tangent,),
    )
    np.testing.assert_allclose(second[1], jnp.zeros_like(y), atol=1e-12)  # it is linear in the gain


def test_adapters_side_by_side_have_their_own_gains(x64):
    y, gain = numbers(0, (2, 3, 5, 7)), numbers(1, (2, 7))
    whole = jax.grad(lambda y, gain: jnp.sum(jnp.sin(through(y, gain))), argnums=(0, 1))(y, gain)
    for member in range(2):
        one = jax.grad(lambda y, gain: jnp.sum(jnp.sin(through(y, gain))), argnums=(0, 1))(y[member], gain[member])
        jax.tree.map(lambda a, b, m=member: np.testing.assert_allclose(a[m], b, rtol=1e-12), whole, one)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_row_of_gain_zero_keeps_its_derivative(dtype):
    y, gain = numbers(0, (64, 3)).astype(jnp.float32), jnp.asarray([0.0, -0.0, 1.5], jnp.float32)

    def row(gain):
        away = row_gain.away_from_zero(gain, dtype)
        z = row_gain.save_scaled(y, away, jnp.dtype(dtype)).astype(dtype)
        return row_gain.scaled(y, away, z).astype(jnp.float32)

    found = jax.grad(lambda gain: jnp.sum(row(gain)))(gain)
    np.testing.assert_allclose(found, jnp.sum(y, axis=0), rtol=0.02 if dtype == jnp.bfloat16 else 1e-5, atol=0.1)
    assert 0 < jnp.abs(row(gain)[:, :2]).max() < 2 * float(jnp.finfo(dtype).eps) ** 2 * jnp.abs(y).max()
