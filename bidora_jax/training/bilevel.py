"""The bilevel step of BiDoRA (arXiv:2410.09758, Algorithm 1) as a pure function.

    d' = U(d, ∇_d L_inner(d, m; train batch))          lower level: the direction, by the inner optimiser
    m' = V(m, d/dm L_outer(d'(m), m; val batch))       upper level: the magnitude, by the outer optimiser

U and V are optax transformations; momentum, Adam moments, clipping, schedules and weight decay all take part in the
hypergradient. No model is known here: losses are functions `loss(direction, magnitude, base, batch, key) -> scalar`.
jit, donate and shard the step yourself. Adam needs eps_root > 0: √v has an infinite slope at v = 0, and B = 0 makes
exactly that happen at the first step.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, PyTree

from bidora_jax.kernels import hypergrad
from bidora_jax.training.state import BilevelState

Loss = Callable[[PyTree, PyTree, PyTree, Any, Array], Float[Array, ""]]
"""(direction, magnitude, base, batch, key) to the mean loss of the batch."""
Metrics = dict[str, Float[Array, ""]]


def bilevel_step(
    state: BilevelState,
    base: PyTree,
    train_batch: Any,
    val_batch: Any,
    *,
    inner_loss: Loss | hypergrad.TwoPass,
    outer_loss: Loss,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    hypergradient: Callable[..., hypergrad.Unrolled] = hypergrad.exact,
) -> tuple[BilevelState, Metrics]:
    """One step of both levels: the direction on the train batch, then the magnitude on the val batch.

    The hypergradient is taken at the old (direction, magnitude) through the update that gives the new direction; with
    `outer_tx = optax.sgd(1.0)` it is the old magnitude minus the new one. `base` is never differentiated. Every
    evaluation of a batch's loss inside the step sees the same key. With `hypergrad.exact`, `inner_loss` may be a
    `hypergrad.TwoPass`, whose second pass computes less, or by other kernels. Metrics: train_loss and val_loss before and
    after the direction's update, direction_grad_norm, hypergrad_norm.
    """
    train_key, val_key = _keys(state)

    def on_train(loss):
        return lambda direction, magnitude, *tape: loss(direction, magnitude, base, train_batch, train_key, *tape)

    def outer(direction, magnitude):
        return outer_loss(direction, magnitude, base, val_batch, val_key)

    def update(direction, gradient):
        return _update(inner_tx, gradient, state.inner_opt, direction)

    two_passes = isinstance(inner_loss, hypergrad.TwoPass)
    inner = hypergrad.TwoPass(*map(on_train, inner_loss)) if two_passes else on_train(inner_loss)
    out = hypergradient(inner, outer, update, state.direction, state.magnitude)
    magnitude, outer_opt = _update(outer_tx, out.hypergradient, state.outer_opt, state.magnitude)
    metrics = {
        "train_loss": out.inner_loss,
        "val_loss": out.outer_loss,
        "direction_grad_norm": hypergrad.global_norm(out.direction_gradient),
        "hypergrad_norm": hypergrad.global_norm(out.hypergradient),
    }
    return BilevelState(state.step + 1, out.direction, magnitude, out.opt, outer_opt, state.key), metrics


def lower_step(
    state: BilevelState, base: PyTree, train_batch: Any, *, inner_loss: Loss, inner_tx: optax.GradientTransformation
) -> tuple[BilevelState, Metrics]:
    """One step of the lower level alone: the direction moves, the magnitude stays.

    With several lower steps for each upper one, all but the last are this function and the last is `bilevel_step`, so
    the hypergradient is truncated to one unrolled step.
    """
    train_key, _ = _keys(state)
    loss, gradient = jax.value_and_grad(inner_loss)(state.direction, state.magnitude, base, train_batch, train_key)
    direction, inner_opt = _update(inner_tx, gradient, state.inner_opt, state.direction)
    metrics = {"train_loss": loss, "direction_grad_norm": hypergrad.global_norm(gradient)}
    return state._replace(step=state.step + 1, direction=direction, inner_opt=inner_opt), metrics


def _keys(state: BilevelState) -> tuple[Array, Array]:
    key = jax.random.fold_in(state.key, state.step)
    return jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)


def _update(tx: optax.GradientTransformation, gradient: PyTree, opt: optax.OptState, params: PyTree):
    updates, opt = tx.update(gradient, opt, params)
    return optax.apply_updates(params, updates), opt
