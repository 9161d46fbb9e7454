"""What a training step takes in and gives back. Keys are folded from `step`, so a state says everything about the next step."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree


class BilevelState(NamedTuple):
    """The two levels: the direction with its inner optimiser, the magnitude with its outer one."""

    step: Int[Array, ""]
    direction: PyTree
    magnitude: PyTree
    inner_opt: optax.OptState
    outer_opt: optax.OptState
    key: Array


class TrainState(NamedTuple):
    """One level: any tree of parameters with its optimiser."""

    step: Int[Array, ""]
    params: PyTree
    opt: optax.OptState
    key: Array


def init_state(
    direction: PyTree,
    magnitude: PyTree,
    inner_tx: optax.GradientTransformation,
    outer_tx: optax.GradientTransformation,
    key: Array,
) -> BilevelState:
    """The state before the first bilevel step."""
    step = jnp.zeros((), jnp.int32)
    return BilevelState(step, direction, magnitude, inner_tx.init(direction), outer_tx.init(magnitude), key)


def init_train_state(params: PyTree, tx: optax.GradientTransformation, key: Array) -> TrainState:
    """The state before the first step of one-level training."""
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), key)
