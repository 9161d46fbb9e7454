"""The phases of a method, as the loop runs them.

    bidora   search: direction on train, magnitude on val     then   retrain: magnitude fixed, direction on train + val
    lora     search: direction on train                       dora   search: direction and magnitude on train

In a bidora search step, `lower_steps − 1` steps move the direction alone and the last one is the bilevel step.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bidora_jax.data import batches as batching
from bidora_jax.kernels import hypergrad
from bidora_jax.models.compute import Compute
from bidora_jax.training import bilevel, objective, optim, state, step
from bidora_jax.training.compiled_steps import CompiledStep, StepShape
from bidora_jax.training.loop import Phase, PhaseState, StepInputs
from bidora_jax.training.problem import (
    BOTH,
    TRAIN,
    VAL,
    Problem,
    count_tokens,
    made,
    make_batch,
    padded_length,
    pick,
    places_of,
)
from bidora_jax.training.settings import OptimizerConfig, RetrainConfig, SearchConfig

HYPERGRADIENTS = {
    "exact": hypergrad.exact,
    "reverse": hypergrad.reverse,
    "finite-difference": hypergrad.finite_difference,
    "direct": hypergrad.direct,
}


def first_phase(
    method: str, problem: Problem, search: SearchConfig, inner: OptimizerConfig, outer: OptimizerConfig
) -> tuple[Phase, PhaseState]:
    """The phase that a method begins with, and where it starts."""
    return bidora_search(problem, search, inner, outer) if method == "bidora" else one_level(problem, search, inner)


def bidora_search(
    problem: Problem, search: SearchConfig, inner: OptimizerConfig, outer: OptimizerConfig
) -> tuple[Phase, PhaseState]:
    """Direction on train, magnitude on val."""
    train, val = problem.stream(problem.train, TRAIN), problem.stream(problem.val, VAL)
    steps = search.steps or _steps(search.epochs, train.steps_per_epoch, search.lower_steps)
    inner_tx, outer_tx = optim.transformation(inner, steps * search.lower_steps), optim.transformation(outer, steps)
    buckets, blank = problem.buckets, problem.blank
    upper_step = partial(
        bilevel.bilevel_step, **level_losses(problem, search), inner_tx=inner_tx, outer_tx=outer_tx,
        hypergradient=HYPERGRADIENTS[search.hypergradient],
    )  # fmt: skip
    shared = _shared(problem, search, inner, outer, steps)
    on = shared, problem.spread
    upper = CompiledStep("", upper_step, problem.base, lambda length: [blank(length)] * 2, buckets, *on)
    inner_loss = _once(problem, search.gram_penalty)
    lower_step = partial(bilevel.lower_step, inner_loss=inner_loss, inner_tx=inner_tx)
    lower = CompiledStep("lower steps", lower_step, problem.base, lambda length: [blank(length)], buckets, *on)

    def advance(current, batches):
        lower_batches, train_batch, val_batch = batches
        for batch in lower_batches:
            current, _ = lower(current, batch)
        return upper(current, train_batch, val_batch)

    def rows(number: int) -> tuple[list[list[int]], list[int], list[int]]:
        first = number * search.lower_steps
        *lower_rows, train_rows = (train.indices(first + i) for i in range(search.lower_steps))
        return lower_rows, train_rows, val.indices(number)

    def step_shapes(number: int) -> list[StepShape]:
        lower_rows, train_rows, val_rows = rows(number)
        alone = [(lower, padded_length(problem.train, buckets, some)) for some in lower_rows]
        return [
            *alone,
            (
                upper,
                max(padded_length(problem.train, buckets, train_rows), padded_length(problem.val, buckets, val_rows)),
            ),
        ]

    def inputs(number: int) -> StepInputs:
        lower_rows, train_rows, val_rows = rows(number)
        lower_batches = [make_batch(problem, buckets, pick(problem.train, rows)) for rows in lower_rows]
        train_examples, val_examples = pick(problem.train, train_rows), pick(problem.val, val_rows)
        joint = batching.joint(train_examples, val_examples, buckets, problem.form)
        tokens = count_tokens(problem.train, *lower_rows, train_rows) + count_tokens(problem.val, val_rows)
        return StepInputs((lower_batches, *joint), tokens, places_of(problem, problem.train, train_rows))

    rates = {
        "inner_learning_rate": lambda number: optim.schedule(inner, steps * search.lower_steps)(
            (number + 1) * search.lower_steps - 1
        ),
        "outer_learning_rate": optim.schedule(outer, steps),
    }
    direction, magnitude = problem.fresh_adapter()
    start = made(lambda d, m: state.init_state(d, m, inner_tx, outer_tx, problem.key(1)), direction, magnitude)
    start = problem.copies(start)
    phase = Phase(
        name="search",
        steps=steps,
        epoch=train.steps_per_epoch / search.lower_steps,
        steps_before=0,
        inputs=inputs,
        advance=advance,
        adapter_of=lambda s: (s.direction, s.magnitude),
        rates=_rates(rates),
        selects=True,
        patience=search.patience,
        step_shapes=step_shapes,
    )
    return phase, PhaseState(start, problem.fresh_adapter())


def level_losses(problem: Problem, search: SearchConfig) -> dict[str, Any]:
    """The losses of a bilevel step. A loss that is differentiated twice takes no fused attention, which has one derivative
    (planning/attention_backend.py)."""
    sizes, how = (problem.config, problem.adapter), {"task": problem.task}
    lower: dict[str, Any] = {**how, "gram_weight": search.gram_penalty}
    once = _compute(problem, reverse_differentiable=search.hypergradient == "reverse")
    twice = replace(once, attention="chunked")
    if search.hypergradient == "exact":
        inner = objective.inner_two_pass(*sizes, once, twice, **lower)
    else:
        inner = objective.inner_loss(*sizes, twice if search.hypergradient == "reverse" else once, **lower)
    return {
        "inner_loss": _spread(problem, inner),
        "outer_loss": _spread(problem, objective.outer_loss(*sizes, once, **how)),
    }


def _once(problem: Problem, gram_weight: float = 0.0) -> objective.LevelLoss:
    """The loss on train where its gradient is all that is taken."""
    compute = _compute(problem, reverse_differentiable=False)
    loss = objective.inner_loss(problem.config, problem.adapter, compute, gram_weight=gram_weight, task=problem.task)
    return _spread(problem, loss)


def _compute(problem: Problem, *, reverse_differentiable: bool) -> Compute:
    compute = Compute.of(problem.model, reverse_differentiable=reverse_differentiable)
    return compute if problem.spread is None else problem.spread.share(compute)


def _spread(problem: Problem, loss: Any) -> Any:
    """A loss, or the two passes of one, over the devices of the run."""
    return loss if problem.spread is None else problem.spread.across(loss, problem.task.weight)


def one_level(problem: Problem, search: SearchConfig, inner: OptimizerConfig) -> tuple[Phase, PhaseState]:
    """LoRA and DoRA: the direction, and the magnitude if there is one, on train."""
    level = _once(problem, search.gram_penalty)

    def loss(params, base, batch, key):
        direction, magnitude = params
        return level(direction, magnitude, base, batch, key)

    stream = problem.stream(problem.train, TRAIN)
    steps = search.steps or _steps(search.epochs, stream.steps_per_epoch, 1)
    phase, start = _train_phase(
        problem, "search", problem.train, stream, steps, 0, loss, problem.base, problem.fresh_adapter(), inner, search
    )
    phase = replace(phase, adapter_of=lambda s: s.params, selects=bool(problem.val), patience=search.patience)
    return phase, PhaseState(start, problem.fresh_adapter())


def retrain(
    problem: Problem,
    settings: RetrainConfig,
    inner: OptimizerConfig,
    found: tuple[PyTree, PyTree],
    steps_before: int,
) -> tuple[Phase, PhaseState]:
    """The direction on train and val together, at the magnitude that the search found.

    The validation split is trained on here, so its loss chooses nothing: the last step is kept.
    """
    direction, magnitude = found
    level = _once(problem)

    def loss(params, frozen, batch, key):
        base, m = frozen
        return level(params, m, base, batch, key)

    everything = [*problem.train, *problem.val]
    stream = problem.stream(everything, BOTH)
    steps = settings.steps or _steps(settings.epochs, stream.steps_per_epoch, 1)
    if settings.start == "scratch":
        direction = problem.fresh_adapter(2)[0]
    optimizer = replace(inner, learning_rate=settings.learning_rate or inner.learning_rate)
    phase, start = _train_phase(
        problem, "retrain", everything, stream, steps, steps_before, loss, (problem.base, magnitude),
        jax.tree.map(jnp.copy, direction), optimizer,
    )  # fmt: skip
    phase = replace(phase, adapter_of=lambda s: (s.params, magnitude))
    return phase, PhaseState(start, found)


def _train_phase(
    problem, name, examples, stream, steps, steps_before, loss, frozen, params, optimizer: OptimizerConfig, search=None
) -> tuple[Phase, Any]:
    tx = optim.transformation(optimizer, steps)
    buckets = problem.buckets
    train_step = partial(step.train_step, loss=loss, tx=tx)
    shared = _shared(problem, search, optimizer, None, steps)
    program = CompiledStep(
        "", train_step, frozen, lambda length: [problem.blank(length)], buckets, shared, problem.spread
    )

    def inputs(number: int) -> StepInputs:
        rows = stream.indices(number)
        batch = make_batch(problem, buckets, pick(examples, rows))
        return StepInputs(batch, count_tokens(examples, rows), places_of(problem, examples, rows))

    phase = Phase(
        name=name,
        steps=steps,
        epoch=stream.steps_per_epoch,
        steps_before=steps_before,
        inputs=inputs,
        advance=program,
        adapter_of=lambda s: s.params,
        rates=_rates({"inner_learning_rate": optim.schedule(optimizer, steps)}),
        selects=False,
        patience=0,
        step_shapes=lambda number: [(program, padded_length(examples, buckets, stream.indices(number)))],
    )
    return phase, problem.copies(made(lambda params: state.init_train_state(params, tx, problem.key(3)), params))


def _shared(problem: Problem, search: SearchConfig | None, inner: OptimizerConfig, outer, steps: int):
    """Where the programs of other runs are, and what the steps of this phase are made of."""
    return None if problem.programs is None else (problem.programs, problem.made_of(search, inner, outer, steps))


def _steps(epochs: float, steps_per_epoch: int, lower_steps: int) -> int:
    return max(round(epochs * steps_per_epoch / lower_steps), 1) if epochs else 0


def _rates(schedules: dict[str, Any]):
    return lambda number: {name: float(schedule(number)) for name, schedule in schedules.items()}
