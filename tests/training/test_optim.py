"""training/optim.py: the optimisers against their formulas, written out in NumPy for the first steps."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bidora_jax.errors import InputError
from bidora_jax.training import optim
from bidora_jax.training.settings import OptimizerConfig, OuterConfig

PARAMS = {"A": np.array([[0.5, -2.0, 3.0], [1.5, 0.25, -0.75]]), "m": np.array([2.0, -1.0, 4.0, 0.125, 7.0])}
GRADS = {"A": np.array([[0.3, -0.1, 0.0], [2.0, -0.5, 0.7]]), "m": np.array([-1.0, 0.2, 0.4, 3.0, -0.6])}
SECOND = {"A": -0.5 * GRADS["A"] + 0.1, "m": 0.3 * GRADS["m"] - 0.2}
STEPS = 11


def plain(**settings) -> OptimizerConfig:
    """A constant rate without warmup or clipping, so that one term at a time shows."""
    return OptimizerConfig(**{"learning_rate": 0.01, "schedule": "constant", "warmup": 0.0, "clip": 0.0} | settings)


def updates(settings: OptimizerConfig, *gradients) -> dict:
    """The update of the last of `gradients`, given one after the other at PARAMS."""
    tx = optim.transformation(settings, STEPS)
    params = jax.tree.map(jnp.asarray, PARAMS)
    opt, update = tx.init(params), None
    for gradient in gradients:
        update, opt = tx.update(jax.tree.map(jnp.asarray, gradient), opt, params)
    return update


def assert_close(found, wanted, rtol=1e-12):  # a handful of float64 operations
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(np.asarray(found[name]), wanted[name], rtol=rtol, atol=1e-15)


# Schedules


def rates(settings: OptimizerConfig, steps: int) -> list[float]:
    schedule = optim.schedule(settings, optim.schedule_params(settings, steps))
    return [float(schedule(step)) for step in range(steps + 1)]


def test_a_constant_rate_is_constant():
    np.testing.assert_allclose(rates(plain(learning_rate=0.3), 7), [0.3] * 8, rtol=1e-6)


def test_a_linear_rate_falls_to_zero_at_the_end():
    found = rates(plain(learning_rate=0.8, schedule="linear"), 4)
    np.testing.assert_allclose(found, [0.8, 0.6, 0.4, 0.2, 0.0], rtol=1e-6, atol=1e-8)


def test_a_cosine_rate_is_half_way_down_in_the_middle():
    found = rates(plain(learning_rate=0.8, schedule="cosine"), 6)
    np.testing.assert_allclose(found, [0.4 * (1 + np.cos(np.pi * t / 6)) for t in range(7)], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_warmup_starts_one_increment_up_and_reaches_the_peak_when_it_ends(schedule):
    """A share of 0.3 of 10 steps is 3 steps: a third, two thirds, the peak; then the decay begins at the peak."""
    found = rates(plain(learning_rate=0.6, schedule=schedule, warmup=0.3), 10)
    np.testing.assert_allclose(found[:4], [0.2, 0.4, 0.6, 0.6], rtol=1e-6)
    last = {"constant": 0.6, "linear": 0.6 / 7, "cosine": 0.3 * (1 + np.cos(np.pi * 6 / 7))}[schedule]
    np.testing.assert_allclose(found[9], last, rtol=1e-5)


def test_a_warmup_of_one_step_starts_at_the_peak():
    assert rates(plain(learning_rate=0.5, schedule="linear", warmup=0.1), 5)[:2] == pytest.approx([0.5, 0.4])
    np.testing.assert_allclose(rates(plain(learning_rate=0.5, warmup=0.2), 5)[:2], [0.5, 0.5], rtol=1e-6)


def test_a_run_that_is_all_warmup_ends_at_the_peak():
    np.testing.assert_allclose(rates(plain(learning_rate=0.5, warmup=1.0), 5)[:5], [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)


# Updates


def adam(gradients: list[np.ndarray], b1=0.9, b2=0.999, eps=1e-8, eps_root=1e-16) -> np.ndarray:
    """Adam's direction after `gradients`, bias corrected (arXiv:1412.6980), with optax's eps_root."""
    m, v, t = 0.0, 0.0, len(gradients)
    for g in gradients:
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t) + eps_root) + eps)


@pytest.mark.usefixtures("x64")
def test_adamw_by_hand_for_two_steps():
    settings = plain(b1=0.8, b2=0.95, eps=1e-3, eps_root=1e-4)
    for gradients in ([GRADS], [GRADS, SECOND]):
        wanted = {
            name: -0.01 * adam([g[name] for g in gradients], b1=0.8, b2=0.95, eps=1e-3, eps_root=1e-4)
            for name in PARAMS
        }
        assert_close(updates(settings, *gradients), wanted)


def test_adamw_8bit_is_adamw_with_the_large_moments_in_8_bits():
    settings = plain(optimizer="adamw_8bit", b1=0.8, b2=0.95, eps=1e-3, eps_root=1e-4)
    for gradients in ([GRADS], [GRADS, SECOND]):
        assert_close(updates(settings, *gradients), updates(replace(settings, optimizer="adamw"), *gradients))
    state = optim.transformation(settings, STEPS).init({"A": jnp.zeros((13, 331)), "m": jnp.zeros(5)})
    assert [str(leaf.dtype) for leaf in jax.tree.leaves(state)].count("uint8") == 2


@pytest.mark.usefixtures("x64")
def test_sgd_by_hand_with_and_without_momentum():
    assert_close(updates(plain(optimizer="sgd", b1=0.0), GRADS), {name: -0.01 * g for name, g in GRADS.items()})
    wanted = {name: -0.01 * (SECOND[name] + 0.7 * GRADS[name]) for name in PARAMS}
    assert_close(updates(plain(optimizer="sgd", b1=0.7), GRADS, SECOND), wanted)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("limit", "clipped"), [(0.5, True), (100.0, False), (0.0, False)])
def test_clipping_is_of_the_global_norm_and_zero_switches_it_off(limit, clipped):
    norm = np.sqrt(sum((g**2).sum() for g in GRADS.values()))
    factor = limit / norm if clipped else 1.0
    wanted = {name: -0.01 * factor * g for name, g in GRADS.items()}
    assert_close(updates(plain(optimizer="sgd", b1=0.0, clip=limit), GRADS), wanted)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "sgd"])
def test_weight_decay_is_decoupled(optimizer):
    """It adds −η λ p to the update; in the gradient it would pass through the preconditioner and the clipping."""
    settings = {"optimizer": optimizer, "clip": 0.5}
    without, with_decay = updates(plain(**settings), GRADS), updates(plain(**settings, weight_decay=0.3), GRADS)
    assert_close(with_decay, {name: np.asarray(without[name]) - 0.01 * 0.3 * PARAMS[name] for name in PARAMS})


@pytest.mark.usefixtures("x64")
def test_the_rate_of_a_step_is_that_of_the_schedule():
    settings = plain(optimizer="sgd", b1=0.0, schedule="linear")
    wanted = {name: -0.01 * (1 - 2 / STEPS) * g for name, g in GRADS.items()}
    assert_close(updates(settings, GRADS, GRADS, GRADS), wanted, rtol=1e-7)  # optax computes schedules in float32


def slope(settings: OptimizerConfig):
    """d update / d gradient at a gradient of exactly zero, as at B = 0."""
    tx = optim.transformation(settings, STEPS)
    params = jnp.zeros(3)
    return jax.jacobian(lambda g: tx.update(g, tx.init(params), params)[0])(jnp.zeros(3))


def test_eps_root_keeps_the_derivative_finite_at_a_gradient_of_zero():
    assert np.isfinite(np.asarray(slope(OptimizerConfig(learning_rate=0.01, clip=0.0)))).all()
    assert not np.isfinite(np.asarray(slope(OptimizerConfig(learning_rate=0.01, clip=0.0, eps_root=0.0)))).all()


def test_the_defaults_step_against_the_gradient():
    tx = optim.transformation(OptimizerConfig(), STEPS)
    params = jnp.array([1.0, -2.0, 3.0])
    update, _ = tx.update(params, tx.init(params), params)
    moved = optax.apply_updates(params, update)
    assert (np.abs(np.asarray(moved)) < np.abs(np.asarray(params))).all()


# Values that no optimiser can mean


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", -1e-4), ("warmup", 1.5), ("warmup", -0.1), ("weight_decay", -1.0), ("clip", -1.0),
     ("b1", 1.1), ("b2", -0.1), ("eps", -1e-8), ("eps_root", -1e-8), ("learning_rate", float("nan"))],
)  # fmt: skip
def test_a_value_out_of_bounds_is_named_with_its_bounds(name, value):
    with pytest.raises(InputError, match=rf"^outer\.{name} must be (at least 0|between 0 and 1), found {value}"):
        optim.check_optimizer("outer", OuterConfig(**{name: value}))


def test_the_defaults_are_within_bounds():
    optim.check_optimizer("inner", OptimizerConfig())
    optim.check_optimizer("outer", OuterConfig())
