"""One-level training: LoRA, rsLoRA, DoRA, and BiDoRA's retraining of the direction at a fixed magnitude.

`state.params` is trained, `frozen` is not. The loss decides which tree goes where.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, PyTree

from bidora_jax.kernels.hypergrad import global_norm
from bidora_jax.training.state import TrainState

Loss = Callable[[PyTree, PyTree, Any, Array], Float[Array, ""]]
"""(params, frozen, batch, key) to the mean loss of the batch."""


def train_step(
    state: TrainState, frozen: PyTree, batch: Any, *, loss: Loss, tx: optax.GradientTransformation
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimiser step. Metrics: train_loss before the step, grad_norm before clipping."""
    key = jax.random.fold_in(state.key, state.step)
    value, gradient = jax.value_and_grad(loss)(state.params, frozen, batch, key)
    updates, opt = tx.update(gradient, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt, state.key), {"train_loss": value, "grad_norm": global_norm(gradient)}
