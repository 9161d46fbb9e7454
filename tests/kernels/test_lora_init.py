"""Starts of the factors: what each takes of the weight, and the change since then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels import lora_init
from bidora_jax.kernels.dora import Direction

W0 = np.random.default_rng(0).normal(size=(13, 7)).astype(np.float32) @ np.diag(0.5 ** np.arange(7)).astype(np.float32)
W0 = W0 @ np.linalg.qr(np.random.default_rng(1).normal(size=(7, 7)))[0].astype(np.float32)


def best(rank):
    """The best approximation of W0 of that rank (Eckart and Young)."""
    u, s, vt = np.linalg.svd(W0.astype(np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


@pytest.mark.parametrize("transposed", [False, True])
def test_pissa_is_the_best_approximation_shared_evenly(transposed):
    w0 = W0.T if transposed else W0
    a, b = lora_init.pissa(jnp.asarray(w0), rank=3, scale=1.7)
    expected = best(3).T if transposed else best(3)
    np.testing.assert_allclose(1.7 * b @ a, expected, atol=1e-5)
    np.testing.assert_allclose(a @ a.T, b.T @ b, atol=1e-5)  # diag(S/s) both


@pytest.mark.parametrize(("iterations", "tolerance"), [(0, 1.0), (1, 0.3), (16, 1e-4)])
def test_the_randomised_form_comes_nearer_with_its_iterations(iterations, tolerance):
    pair = lora_init.randomised_pissa(jax.random.key(3), jnp.asarray(W0), rank=3, scale=1.7, iterations=iterations)
    assert (pair.A.shape, pair.B.shape) == ((3, 7), (13, 3))
    distance = np.linalg.norm(1.7 * pair.B @ pair.A - best(3)) / np.linalg.norm(best(3))
    assert distance < tolerance
    residual = W0 - 1.7 * pair.B @ pair.A  # a projection: what is left is orthogonal to what was taken
    np.testing.assert_allclose(pair.B.T @ residual, 0, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_olora_is_the_beginning_of_a_qr(transposed):
    w0 = W0.T if transposed else W0
    a, b = lora_init.olora(jnp.asarray(w0), rank=3)
    np.testing.assert_allclose(b.T @ b, np.eye(3), atol=1e-6)
    np.testing.assert_allclose((b @ a)[:, :3], w0[:, :3], atol=1e-5)  # R is upper triangular
    full = lora_init.olora(jnp.asarray(w0), rank=7)
    np.testing.assert_allclose(full.B @ full.A, w0, atol=1e-5)


def test_since_is_the_difference_of_the_products():
    random = np.random.default_rng(2)

    def pair(*layers):
        return Direction(*(jnp.asarray(random.normal(size=(*layers, *s)), jnp.float32) for s in ((3, 7), (13, 3))))

    for layers in ((), (2,)):
        now, start = pair(*layers), pair(*layers)
        a, b = lora_init.change_since(now, start)
        assert (a.shape, b.shape) == ((*layers, 6, 7), (*layers, 13, 6))
        np.testing.assert_allclose(b @ a, now.B @ now.A - start.B @ start.A, atol=1e-5)
