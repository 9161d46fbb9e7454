"""kernels/swiglu.py against the formula as transformers computes it."""

import jax
import jax.numpy as jnp
import numpy as np

from bidora_jax.kernels.swiglu import swiglu


def plain(gate, up):
    wide = jnp.promote_types(gate.dtype, jnp.float32)
    return jax.nn.silu(gate.astype(wide)).astype(up.dtype) * up


def numbers(seed: int, dtype=jnp.float64):
    return jnp.asarray(3 * np.random.default_rng(seed).normal(size=(5, 64)), dtype)


def test_derivatives_are_those_of_the_formula(x64):
    gate, up, *directions = (numbers(seed) for seed in range(4))

    def gradient(form):
        return jax.grad(lambda gate, up: jnp.sum(jnp.sin(form(gate, up))), argnums=(0, 1))

    np.testing.assert_allclose(swiglu(gate, up), plain(gate, up), rtol=1e-14)
    # The gradient, and forward over it.
    found, expected = (jax.jvp(gradient(form), (gate, up), tuple(directions)) for form in (swiglu, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), found, expected)


def test_bfloat16_is_rounded_where_the_formula_rounds_it():
    gate, up, g = (numbers(seed, jnp.bfloat16) for seed in range(3))
    (found, back), (expected, plain_back) = (jax.vjp(form, gate, up) for form in (swiglu, plain))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(expected, np.float32))
    for one, other in zip(back(g), plain_back(g), strict=True):
        assert one.dtype == jnp.bfloat16
        one, other = (np.asarray(leaf, np.float32) for leaf in (one, other))
        np.testing.assert_allclose(one, other, rtol=2**-7, atol=2**-8)
