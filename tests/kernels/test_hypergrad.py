"""Hypergradients on problems with a closed form, where every term can be written down.

Inner L = ½‖d − T·m‖², one SGD step of rate η from d0: d' = d0 − η(d0 − T·m), so ∂d'/∂m = η·T.
Outer F = ½‖d' − y‖² + ½‖m‖²:   h = m + η·Tᵀ(d' − y).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bidora_jax.kernels import hypergrad
from bidora_jax.training.bilevel import bilevel_step
from bidora_jax.training.state import init_state

D, M, RATE = 7, 5, 0.3


@pytest.fixture
def ridge(x64):
    random = np.random.default_rng(0)
    t, d0, m, y = (jnp.asarray(random.normal(size=shape)) for shape in ((D, M), (D,), (M,), (D,)))

    def inner(d, m):
        return 0.5 * jnp.sum((d - t @ m) ** 2)

    def outer(d, m):
        return 0.5 * jnp.sum((d - y) ** 2) + 0.5 * jnp.sum(m**2)

    def update(d, g):
        return d - RATE * g, None

    updated = d0 - RATE * (d0 - t @ m)
    closed = {"exact": m + RATE * t.T @ (updated - y), "direct": m}
    # Betty's form has no learning rate, and its direction is perturbed after the update: ∂_m∂_d L = −Tᵀ everywhere.
    closed |= {"reverse": closed["exact"], "finite_difference": m + t.T @ (updated - y)}
    return inner, outer, update, d0, m, updated, closed


@pytest.mark.parametrize("form", ["exact", "reverse", "direct", "finite_difference"])
def test_every_form_is_its_closed_form(ridge, form):
    inner, outer, update, d0, m, updated, closed = ridge
    out = getattr(hypergrad, form)(inner, outer, update, d0, m)
    np.testing.assert_allclose(out.hypergradient, closed[form], atol=1e-10, rtol=1e-10)
    np.testing.assert_allclose(out.direction, updated, rtol=1e-14)
    np.testing.assert_allclose(out.inner_loss, inner(d0, m), rtol=1e-14)
    np.testing.assert_allclose(out.outer_loss, outer(updated, m), rtol=1e-14)


def test_the_mixed_product_is_of_the_loss_that_is_given_for_it_and_sees_the_tape(ridge):
    inner, outer, update, d0, m, updated, closed = ridge

    def gradient(d, m):
        return *jax.value_and_grad(inner)(d, m), {"factor": 3.0 * jnp.ones(())}

    two_pass = hypergrad.TwoPass(gradient, lambda d, m, tape: tape["factor"] * inner(d, m))
    out = hypergrad.exact(two_pass, outer, update, d0, m)
    np.testing.assert_allclose(out.hypergradient, m + 3 * (closed["exact"] - m), rtol=1e-10)
    np.testing.assert_allclose(out.direction, updated, rtol=1e-14)


def test_bilevel_step_gives_the_closed_form_through_its_public_contract(ridge):
    inner, outer, _, d0, m, updated, closed = ridge
    inner_tx, outer_tx = optax.sgd(RATE), optax.sgd(1.0)
    state = init_state(d0, m, inner_tx, outer_tx, jax.random.key(0))
    losses = {
        "inner_loss": lambda d, m, base, batch, key: batch * inner(d, m),
        "outer_loss": lambda d, m, base, batch, key: batch * outer(d, m),
    }
    after, metrics = bilevel_step(state, None, 1.0, 1.0, **losses, inner_tx=inner_tx, outer_tx=outer_tx)
    np.testing.assert_allclose(state.magnitude - after.magnitude, closed["exact"], atol=1e-10)
    np.testing.assert_allclose(after.direction, updated, rtol=1e-14)
    assert set(metrics) == {"train_loss", "val_loss", "direction_grad_norm", "hypergrad_norm"}
    assert after.step == 1


def test_momentum_of_the_inner_optimiser_takes_part(ridge):
    inner, outer, _, d0, m, _, _ = ridge
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1, eps_root=1e-16))
    opt = tx.init(d0)
    _, opt = tx.update(jnp.arange(1.0, D + 1), opt, d0)

    def update(d, g):
        updates, new = tx.update(g, opt, d)
        return d + updates, new

    def whole_map(m):
        return outer(update(d0, jax.grad(inner)(d0, m))[0], m)

    out = hypergrad.exact(inner, outer, update, d0, m)
    step = 1e-6
    central = [(whole_map(m + step * e) - whole_map(m - step * e)) / (2 * step) for e in jnp.eye(M)]
    np.testing.assert_allclose(out.hypergradient, jnp.stack(central), rtol=1e-7, atol=1e-8)
