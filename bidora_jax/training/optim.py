"""Optimisers of the two levels, as optax chains that can be differentiated through: clip, precondition, decay, step.

u = −η_t · (P(clip(g)) + λ·p)          P: Adam's m̂ / (√(v̂ + eps_root) + eps), or momentum; λ: decoupled weight decay

adamw keeps m and v in the parameter's dtype, adamw_8bit in 8 bits between the steps.
"""

from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from bidora_jax.errors import InputError
from bidora_jax.training.adam8bit import scale_by_adam_8bit
from bidora_jax.training.settings import OptimizerConfig, OuterConfig


class ScheduleParams(NamedTuple):
    """The numbers of a schedule, or arrays of them. A compiled step takes arrays, and so serves every rate and number of steps."""

    peak: float | Float[Array, ""]
    """The highest rate."""
    warmup_steps: int | Int[Array, ""]
    decay_steps: int | Int[Array, ""]
    """Those after the warmup, at least 1."""


def schedule_params(settings: OptimizerConfig, steps: int) -> ScheduleParams:
    """The numbers of a schedule over `steps` optimiser steps."""
    warmup_steps = round(settings.warmup * steps)
    return ScheduleParams(float(settings.learning_rate), warmup_steps, max(steps - warmup_steps, 1))


def schedule(settings: OptimizerConfig, params: ScheduleParams) -> optax.Schedule:
    """Learning rate by step: linear warmup from zero over `warmup` of the steps, then constant, linear or cosine decay to zero."""
    peak, warmup_steps, decay_steps = params

    def rate(count):
        count = jnp.asarray(count, jnp.result_type(float))
        done = jnp.clip((count - warmup_steps) / decay_steps, 0.0, 1.0)
        decay = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + jnp.cos(jnp.pi * done))}
        # The first step of a warmup from zero would do nothing; it starts one increment up instead.
        warmup = (count + 1) / jnp.maximum(warmup_steps, 1)
        return peak * jnp.where(count < warmup_steps, warmup, decay[settings.schedule])

    return rate


def transformation(settings: OptimizerConfig, steps: int | ScheduleParams) -> optax.GradientTransformation:
    """The optax chain of one level over a phase of `steps` optimiser steps, or with the numbers of its schedule."""
    params = schedule_params(settings, steps) if isinstance(steps, int) else steps
    clip = optax.clip_by_global_norm(settings.clip) if settings.clip else optax.identity()
    moments = (settings.b1, settings.b2, settings.eps, settings.eps_root)
    precondition = {
        "adamw": optax.scale_by_adam(*moments),
        "adamw_8bit": scale_by_adam_8bit(*moments),
        "sgd": optax.trace(settings.b1) if settings.b1 else optax.identity(),
    }[settings.optimizer]
    decay = [optax.add_decayed_weights(settings.weight_decay)] if settings.weight_decay else []
    return optax.chain(clip, precondition, *decay, optax.scale_by_learning_rate(schedule(settings, params)))


def compiled_settings(settings: OptimizerConfig) -> OptimizerConfig:
    """The settings that are constants of a compiled step; what makes the numbers of its schedule is zero."""
    rates = {"learning_rate": 0.0, "warmup": 0.0} | ({"multiplier": 0.0} if isinstance(settings, OuterConfig) else {})
    return replace(settings, **rates)


def check_optimizer(section: str, settings: OptimizerConfig) -> None:
    """Raises InputError for a value that is out of bounds."""
    bounds = {
        "learning_rate": (0.0, None), "warmup": (0.0, 1.0), "weight_decay": (0.0, None), "clip": (0.0, None),
        "b1": (0.0, 1.0), "b2": (0.0, 1.0), "eps": (0.0, None), "eps_root": (0.0, None),
    }  # fmt: skip
    for name, (low, high) in bounds.items():
        value = getattr(settings, name)
        if not (low <= value and (high is None or value <= high)):
            expected = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise InputError(f"{section}.{name} must be {expected}, found {value}")
