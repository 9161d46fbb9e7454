"""kernels/xla_cpu/reductions.py: against sums in float64, cut into parts and whole, and their derivatives of two kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels.xla_cpu.reductions import row_dots, row_sums, token_dots

WIDTHS = [(1, 1), (31, 1), (32, 2), (48, 2), (64, 4), (255, 1), (256, 8), (576, 8)]
"""A width, and the parts that it is cut into on a CPU."""


def numbers(seed: int, shape, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize(("width", "parts"), WIDTHS)
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_rows(x64, dtype, width, parts):
    a, b = (numbers(seed, (2, 3, width), dtype) for seed in (0, 1))
    wide = np.asarray(a, np.float64), np.asarray(b, np.float64)
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == jnp.float64 else {"rtol": 1e-5, "atol": 1e-4}
    for found, expected in ((row_sums(a), wide[0]), (row_dots(a, b), wide[0] * wide[1])):
        assert found.dtype == jnp.promote_types(dtype, jnp.float32)
        np.testing.assert_allclose(found, expected.sum(-1, keepdims=True), **close)
    # What is added up elementwise is narrower, and goes into a product.
    assert str(jax.make_jaxpr(row_dots)(a, b)).count("dot_general") == (parts > 1)
    assert str(jax.make_jaxpr(row_dots)(a, b)).count(" mul ") == parts


@pytest.mark.parametrize("tokens", [1, 31, 32, 64, 256])
@pytest.mark.parametrize("members", [0, 1])
def test_tokens(x64, tokens, members):
    a, b = (numbers(seed, (2, tokens, 5)) for seed in (0, 1))
    expected = np.sum(a * b, axis=1 if members else (0, 1))
    np.testing.assert_allclose(token_dots(a, b, members), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [31, 64])
def test_derivatives(x64, length):
    """Forward, and forward over reverse, as of the plain sums."""
    a, b, v = (numbers(seed, (2, length, length)) for seed in (0, 1, 2))
    for cut, plain in (
        (row_sums, lambda a: jnp.sum(a, -1, keepdims=True)),
        (lambda a: row_dots(jnp.sin(a), b), lambda a: jnp.sum(jnp.sin(a) * b, -1, keepdims=True)),
        (lambda a: row_dots(a, a), lambda a: jnp.sum(a * a, -1, keepdims=True)),
        (lambda a: token_dots(a, jnp.sin(a)), lambda a: jnp.sum(a * jnp.sin(a), (0, 1))),
    ):
        np.testing.assert_allclose(jax.jvp(cut, (a,), (v,))[1], jax.jvp(plain, (a,), (v,))[1], rtol=1e-11, atol=1e-11)
        mixed = [jax.jvp(jax.grad(lambda a, f=f: jnp.sum(jnp.cos(f(a)))), (a,), (v,))[1] for f in (cut, plain)]
        np.testing.assert_allclose(*mixed, rtol=1e-9, atol=1e-9)
