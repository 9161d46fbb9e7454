"""Losses of a task in the form that the steps take.

A batch holds M micro-batches, as arrays with a leading axis M (data/batches.py). The loss is the weighted mean over all of them
(Σ w·l / Σ w; of a language model, over all trained tokens), made by a scan that takes each micro-batch's gradient as it passes:
gradient accumulation inside the loss, so that gradients and hypergradients of M micro-batches are exactly those of one large
batch, in the memory of one.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bidora_jax.kernels import dora, hypergrad, losses, quantized
from bidora_jax.kernels.varying import copies_of
from bidora_jax.models.adapters.adapter import Adapter, get, over_layers, update_factors
from bidora_jax.models.architectures.architecture import Architecture
from bidora_jax.models.compute import Compute
from bidora_jax.models.spread import WEIGHT
from bidora_jax.models.tape import TapeValues
from bidora_jax.tasks.language_modeling import NEXT_TOKEN
from bidora_jax.tasks.task import Task
from bidora_jax.training.accumulation import accumulated

LevelLoss = Callable[..., Float[Array, ""]]
"""(direction, magnitude, base, batch, key) to the mean loss; of a lower level also (…, tape), see models/tape.py"""


def inner_loss(
    config: Architecture,
    adapter: Adapter,
    compute: Compute,
    *,
    gram_weight: float = 0.0,
    task: Task = NEXT_TOKEN,
) -> LevelLoss:
    """The lower level's loss(direction, magnitude, base, batch, key): with dropout, and γ times the Gram penalty."""
    model = config, adapter, compute

    def loss(direction, magnitude, base, batch, key, tape=None):
        key = key if adapter.dropout else None
        value = _mean_loss(task, model, base, (direction, magnitude), batch, key, tape)
        if gram_weight:
            share = gram_weight / copies_of(jax.tree.leaves(direction)[0])  # every device of a mesh adds it
            value = value + share * mean_gram_penalty(adapter, base, direction)
        return value

    return loss


def inner_two_pass(
    config: Architecture,
    adapter: Adapter,
    first: Compute,
    second: Compute,
    *,
    gram_weight: float = 0.0,
    task: Task = NEXT_TOKEN,
) -> hypergrad.TwoPass:
    """The lower level's loss in the two passes of an exact hypergradient: the gradient, and its derivative.

    The first pass hands on its tape: of the head and, with remat `dots`, of the layers. Of several micro-batches it hands on
    nothing.
    """
    once, twice = (
        inner_loss(config, adapter, compute, gram_weight=gram_weight, task=task) for compute in (first, second)
    )

    def gradient(direction, magnitude, base, batch, key):
        if batch["tokens"].shape[0] > 1:
            return *jax.value_and_grad(once)(direction, magnitude, base, batch, key), None
        empty = task.empty_tape(config, adapter, first, base, (direction, magnitude), _first(task, batch))

        def loss(direction, empty):
            return once(direction, magnitude, base, batch, key, empty)

        value, (g, values) = jax.value_and_grad(loss, argnums=(0, 1))(direction, empty)
        return value, g, TapeValues(*values)

    return hypergrad.TwoPass(gradient, twice)


def outer_loss(config: Architecture, adapter: Adapter, compute: Compute, *, task: Task = NEXT_TOKEN) -> LevelLoss:
    """The upper level's loss: the model as it will be used, without dropout, with the norm never held constant. It is
    differentiated once, whatever the hypergradient."""
    adapter = replace(adapter, constant_norm=False, dropout=0.0)
    compute = replace(compute, reverse_differentiable=False)

    def loss(direction, magnitude, base, batch, key):
        del key
        return _mean_loss(task, (config, adapter, compute), base, (direction, magnitude), batch)

    return loss


def mean_gram_penalty(adapter: Adapter, base: PyTree, direction: PyTree) -> Float[Array, ""]:
    """Mean over all adapted layers of ‖D·Dᵀ − I‖_F with D = V/‖V‖, one layer's dense D at a time."""
    total, count = 0.0, 0
    for site in adapter.sites:
        leaf = get(base["layers"], site.path)

        # A scale that is a number stays one.
        @partial(jax.checkpoint, static_argnums=() if site.scale is None else (2,))
        def penalty(weight, pair, scale, norm_sq):
            w0 = quantized.dense(weight)
            norm = dora.row_norm(w0, norm_sq, pair, scale=scale)
            unit = dora.gain(jnp.ones_like(norm), norm)[:, None] * dora.merge(w0, pair, scale=scale)
            return losses.gram_penalty(unit)

        penalties = over_layers(
            penalty, site, leaf["weight"], update_factors(adapter, site, base, direction), leaf["norm_sq"]
        )
        total = total + jnp.sum(penalties[np.array(site.layers)] if len(site.layers) < len(site.ranks) else penalties)
        count += len(site.layers)
    return jnp.asarray(total / count)


Model = tuple[Architecture, Adapter, Compute]


def _mean_loss(task: Task, model: Model, base, trained, batch, key=None, tape=None) -> Float[Array, ""]:
    """Σ w·l / Σ w. On a mesh the batch brings Σ w, since its rows are some of many (models/spread.py)."""

    def part(trained, base, index, micro):
        own_key = None if key is None else jax.random.fold_in(key, index)
        return task.loss_sum(*model, base, trained, micro, own_key, tape)

    if batch["tokens"].shape[0] == 1:
        total = part(trained, base, 0, _first(task, batch))
    else:
        total = accumulated(part, trained, base, _read(task, batch))
    return total / (batch[WEIGHT] if WEIGHT in batch else task.weight(batch))


def _first(task: Task, batch) -> PyTree:
    """The first micro-batch."""
    return jax.tree.map(lambda stack: stack[0], _read(task, batch))


def _read(task: Task, batch) -> PyTree:
    return {name: batch[name] for name in task.inputs if name in batch}
