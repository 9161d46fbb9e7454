"""kernels/class_losses.py: values, gradients and mixed products against torch's losses, and their sums over micro-batches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels import class_losses

N, C, B, T = 11, 5, 3, 7
random = np.random.default_rng(0)
LOGITS, ALONG = random.normal(size=(2, N, C)) * 3
LABELS = random.integers(C, size=N)
HARD = np.eye(C)[LABELS]
SOFT = random.dirichlet(np.ones(C), size=N)
SEVERAL = (random.random((N, C)) < 0.4) * 1.0
VALUES = random.normal(size=(N, C))
WEIGHTS = random.uniform(0.2, 3.0, size=C)


def mean(loss, *rest):
    """The mean of a loss as a function of its first argument, as a caller makes it."""

    def of(x):
        losses, weights = loss(x, *rest)
        return jnp.sum(losses) / jnp.sum(weights)

    return of


def ours(function, x):
    """Value, gradient, and the gradient's derivative along ALONG, forward over reverse."""
    gradient, mixed = jax.jvp(jax.grad(function), (jnp.asarray(x),), (jnp.asarray(ALONG.reshape(x.shape)),))
    return function(jnp.asarray(x)), gradient, mixed


def theirs(function, x):
    """The same of torch, reverse over reverse."""
    import torch

    at = torch.tensor(x, requires_grad=True)
    value = function(at)
    (gradient,) = torch.autograd.grad(value, at, create_graph=True)
    (mixed,) = torch.autograd.grad((gradient * torch.tensor(ALONG.reshape(x.shape))).sum(), at)
    return tuple(found.detach().numpy() for found in (value, gradient, mixed))


def same(found, expected, rtol=1e-12):
    for one, other in zip(found, expected, strict=True):
        assert np.abs(other).max() > 1e-3
        np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-13)


@pytest.mark.torch
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_cross_entropy_of_hard_labels_is_torchs(x64, weights, smoothing):
    import torch

    w = None if weights is None else torch.tensor(weights)
    oracle = torch.nn.CrossEntropyLoss(weight=w, label_smoothing=smoothing)
    loss = mean(class_losses.cross_entropy, jnp.asarray(HARD), _array(weights), smoothing)
    same(ours(loss, LOGITS), theirs(lambda x: oracle(x, torch.tensor(LABELS)), LOGITS))


@pytest.mark.torch
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_soft_labels_is_torchs(x64, smoothing):
    import torch

    oracle = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    loss = mean(class_losses.cross_entropy, jnp.asarray(SOFT), None, smoothing)
    same(ours(loss, LOGITS), theirs(lambda x: oracle(x, torch.tensor(SOFT)), LOGITS))


@pytest.mark.torch
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_tokens_that_are_labelled_are_torchs_and_the_others_are_left_out(x64, weights, smoothing):
    import torch

    x = np.random.default_rng(1).normal(size=(B, T, C))
    labels = np.random.default_rng(2).integers(-1, C, size=(B, T)).astype(np.int32)
    assert 0 < (labels < 0).sum() < labels.size

    def mixed(function):
        along = jnp.cos(jnp.asarray(x))
        return function(jnp.asarray(x)), *jax.jvp(jax.grad(function), (jnp.asarray(x),), (along,))

    w = None if weights is None else torch.tensor(weights)
    oracle = torch.nn.CrossEntropyLoss(weight=w, label_smoothing=smoothing, ignore_index=-1)
    at = torch.tensor(x, requires_grad=True)
    value = oracle(at.reshape(-1, C), torch.tensor(labels).reshape(-1).long())
    (gradient,) = torch.autograd.grad(value, at, create_graph=True)
    (second,) = torch.autograd.grad((gradient * torch.cos(torch.tensor(x))).sum(), at)
    found = mixed(mean(class_losses.token_cross_entropy, jnp.asarray(labels), _array(weights), smoothing))
    same(found, [one.detach().numpy() for one in (value, gradient, second)])
    assert not np.any(np.asarray(found[1])[labels < 0])


@pytest.mark.torch
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("targets", [SEVERAL, SOFT], ids=["hard", "soft"])
def test_binary_cross_entropy_is_torchs(x64, targets, weights):
    import torch

    oracle = torch.nn.BCEWithLogitsLoss(pos_weight=None if weights is None else torch.tensor(weights))
    loss = mean(class_losses.binary_cross_entropy, jnp.asarray(targets), _array(weights))
    same(ours(loss, LOGITS), theirs(lambda x: oracle(x, torch.tensor(targets)), LOGITS))


@pytest.mark.torch
def test_mean_square_is_torchs(x64):
    import torch

    loss = mean(class_losses.mean_square, jnp.asarray(VALUES))
    same(ours(loss, LOGITS), theirs(lambda x: torch.nn.MSELoss()(x, torch.tensor(VALUES)), LOGITS))


CASES = {
    "cross entropy": partial(
        class_losses.cross_entropy, class_weights=jnp.asarray(WEIGHTS, jnp.float32), smoothing=0.1
    ),
    "binary": partial(class_losses.binary_cross_entropy, pos_weight=jnp.asarray(WEIGHTS, jnp.float32)),
    "square": class_losses.mean_square,
}


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_add_up_to_the_whole_batch(name):
    x, targets = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(HARD, jnp.float32)

    def sums(part):
        return tuple(float(jnp.sum(one)) for one in CASES[name](x[part], targets[part]))

    whole, parts = sums(slice(None)), [sums(part) for part in (slice(0, 2), slice(2, 9), slice(9, N))]
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-6)  # float32 sums in another order
    means = [loss / weight for loss, weight in parts]
    assert abs(np.mean(means) - whole[0] / whole[1]) > 0.01, "the mean of means would do"


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_an_empty_slot_has_no_loss_and_no_weight_under_cross_entropy(smoothing):
    target = jnp.asarray(HARD, jnp.float32).at[4].set(0.0)
    losses, weights = class_losses.cross_entropy(jnp.asarray(LOGITS, jnp.float32), target, None, smoothing)
    assert losses[4] == 0 and weights[4] == 0
    assert np.all(np.delete(losses, 4) > 0) and np.all(np.delete(weights, 4) == 1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", CASES)
def test_losses_are_float32_and_stand_large_logits(name, dtype):
    x = jnp.asarray([[300.0, -300.0, 0.0, 1.0, 2.0]], dtype)
    targets = jnp.asarray([[0.0, 1.0, 0.0, 0.0, 0.0]], dtype)
    losses, weights = CASES[name](x, targets)
    gradient = jax.grad(lambda x: jnp.sum(CASES[name](x, targets)[0]))(x)
    assert losses.dtype == weights.dtype == jnp.float32
    assert np.isfinite(losses).all() and np.isfinite(np.asarray(gradient, np.float32)).all()
    if name == "cross entropy":
        soft = 0.1 / 5 * (WEIGHTS * (300 - np.array([300, -300, 0, 1, 2]))).sum()
        np.testing.assert_allclose(losses, 0.9 * WEIGHTS[1] * 600 + soft, rtol=1e-6)


def _array(weights):
    return None if weights is None else jnp.asarray(weights)
