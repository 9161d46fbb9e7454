"""The phases of a method, as the loop runs them.

    bidora   search: direction on train, magnitude on val     then   retrain: magnitude fixed, direction on train + val
    lora     search: direction on train                       dora   search: direction and magnitude on train

In a bidora search step, `lower_steps − 1` steps move the direction alone and the last one is the bilevel step.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bidora_jax.data import batches as batching
from bidora_jax.data.bilevel_rows import bilevel_rows
from bidora_jax.kernels import hypergrad
from bidora_jax.models.compute import Compute
from bidora_jax.training import bilevel, objective, optim, state, step
from bidora_jax.training.compiled_steps import CompiledStep, StepShape
from bidora_jax.training.loop import Phase, PhaseState, StepInputs
from bidora_jax.training.problem import (
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
    everything = [*problem.train, *problem.val]
    train, val = ([len(example.tokens) for example in split] for split in (problem.train, problem.val))
    rows = bilevel_rows(search.splits, train, val, problem.step_size, search.lower_steps, problem.seed)
    steps_per_epoch = -(-len(train) // problem.step_size)
    steps = search.steps or _steps(search.epochs, steps_per_epoch, search.lower_steps)
    schedules = optim.schedule_params(inner, steps * search.lower_steps), optim.schedule_params(outer, steps)
    buckets, blank = problem.buckets, problem.blank
    losses, inner_loss = level_losses(problem, search), _once(problem, search.gram_penalty)
    hypergradient = HYPERGRADIENTS[search.hypergradient]

    def upper_step(current, frozen, train_batch, val_batch):
        base, (inner_schedule, outer_schedule) = frozen
        inner_tx, outer_tx = optim.transformation(inner, inner_schedule), optim.transformation(outer, outer_schedule)
        return bilevel.bilevel_step(
            current, base, train_batch, val_batch, **losses, inner_tx=inner_tx, outer_tx=outer_tx,
            hypergradient=hypergradient,
        )  # fmt: skip

    def lower_step(current, frozen, batch):
        base, (inner_schedule, _) = frozen
        inner_tx = optim.transformation(inner, inner_schedule)
        return bilevel.lower_step(current, base, batch, inner_loss=inner_loss, inner_tx=inner_tx)

    frozen = problem.base, _arrays(problem, schedules)
    on = _shared(problem, search, inner, outer), problem.spread
    upper = CompiledStep("", upper_step, frozen, lambda length: [blank(length)] * 2, buckets, *on)
    lower = CompiledStep("lower steps", lower_step, frozen, lambda length: [blank(length)], buckets, *on)

    def advance(current, batches):
        lower_batches, train_batch, val_batch = batches
        for batch in lower_batches:
            current, _ = lower(current, batch)
        return upper(current, train_batch, val_batch)

    def step_shapes(number: int) -> list[StepShape]:
        (*lower_rows, train_rows), val_rows = rows(number)
        alone = [(lower, padded_length(everything, buckets, some)) for some in lower_rows]
        return [*alone, (upper, padded_length(everything, buckets, [*train_rows, *val_rows]))]

    def inputs(number: int) -> StepInputs:
        (*lower_rows, train_rows), val_rows = rows(number)
        lower_batches = [make_batch(problem, buckets, pick(everything, some)) for some in lower_rows]
        train_examples, val_examples = pick(everything, train_rows), pick(everything, val_rows)
        joint = batching.joint(train_examples, val_examples, buckets, problem.form)
        tokens = count_tokens(everything, *lower_rows, train_rows, val_rows)
        return StepInputs((lower_batches, *joint), tokens, places_of(problem, everything, train_rows))

    inner_rate, outer_rate = optim.schedule(inner, schedules[0]), optim.schedule(outer, schedules[1])
    rates = {
        "inner_learning_rate": lambda number: inner_rate((number + 1) * search.lower_steps - 1),
        "outer_learning_rate": outer_rate,
    }
    direction, magnitude = problem.fresh_adapter()
    levels = optim.transformation(inner, schedules[0]), optim.transformation(outer, schedules[1])
    start = made(lambda d, m: state.init_state(d, m, *levels, problem.key(1)), direction, magnitude)
    start = problem.copies(start)
    phase = Phase(
        name="search",
        steps=steps,
        epoch=steps_per_epoch / search.lower_steps,
        steps_before=0,
        inputs=inputs,
        advance=advance,
        adapter_of=lambda s: (s.direction, s.magnitude),
        rates=_rates(rates),
        selects=search.splits == "fixed",
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

    def loss(params, frozen, batch, key):
        (direction, magnitude), (base, _) = params, frozen
        return level(direction, magnitude, base, batch, key)

    stream = problem.stream(problem.train, batching.TRAIN)
    steps = search.steps or _steps(search.epochs, stream.steps_per_epoch, 1)
    phase, start = _train_phase(
        problem, "search", problem.train, stream, steps, 0, loss, None, problem.fresh_adapter(), inner, search
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
    stream = problem.stream(everything, batching.BOTH)
    steps = settings.steps or _steps(settings.epochs, stream.steps_per_epoch, 1)
    if settings.start == "scratch":
        direction = problem.fresh_adapter(2)[0]
    optimizer = replace(inner, learning_rate=settings.learning_rate or inner.learning_rate)
    phase, start = _train_phase(
        problem, "retrain", everything, stream, steps, steps_before, loss, magnitude,
        jax.tree.map(jnp.copy, direction), optimizer,
    )  # fmt: skip
    phase = replace(phase, adapter_of=lambda s: (s.params, magnitude))
    return phase, PhaseState(start, found)


def _train_phase(
    problem, name, examples, stream, steps, steps_before, loss, fixed, params, optimizer: OptimizerConfig, search=None
) -> tuple[Phase, Any]:
    """`loss` takes (the base, `fixed`) for what is frozen."""
    schedule, buckets = optim.schedule_params(optimizer, steps), problem.buckets

    def train_step(current, frozen, batch):
        base, (others, its_schedule) = frozen
        tx = optim.transformation(optimizer, its_schedule)
        return step.train_step(current, (base, others), batch, loss=loss, tx=tx)

    frozen = problem.base, (fixed, _arrays(problem, schedule))
    shared = _shared(problem, search, optimizer, None)
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
        rates=_rates({"inner_learning_rate": optim.schedule(optimizer, schedule)}),
        selects=False,
        patience=0,
        step_shapes=lambda number: [(program, padded_length(examples, buckets, stream.indices(number)))],
    )
    tx = optim.transformation(optimizer, schedule)
    return phase, problem.copies(made(lambda params: state.init_train_state(params, tx, problem.key(3)), params))


def _arrays(problem: Problem, schedules: PyTree) -> PyTree:
    """The numbers of schedules as a step takes them, or their shapes where the problem holds shapes."""
    kinds = {float: jnp.result_type(float), int: jnp.int32}
    as_arrays = jax.tree.map(lambda number: jnp.asarray(number, kinds[type(number)]), schedules)
    return problem.copies(made(lambda _: as_arrays, problem.base))


def _shared(problem: Problem, search: SearchConfig | None, inner: OptimizerConfig, outer: OptimizerConfig | None):
    """Where the programs of other runs are, and what the steps of this phase are made of."""
    if problem.programs is None:
        return None
    levels = [level and optim.compiled_settings(level) for level in (inner, outer)]
    return problem.programs, problem.made_of(search and (search.hypergradient, search.gram_penalty), *levels)


def _steps(epochs: float, steps_per_epoch: int, lower_steps: int) -> int:
    return max(round(epochs * steps_per_epoch / lower_steps), 1) if epochs else 0


def _rates(schedules: dict[str, Any]):
    return lambda number: {name: float(schedule(number)) for name, schedule in schedules.items()}
