"""How many padded lengths a run has (`data.buckets auto`): as many as make compiling plus training shortest.

    cost(k) = Σ programs:  lengths that it meets · compiling one  +  Σ steps: padded length · work of one token of length

Both are counted in floating-point operations. A padded length costs each program of the run one more compilation, and it saves
the steps padding. The padded length of a step is read off the real order of the data, over its first STEPS steps. So the number
follows from the configuration, the data and the kind of device alone, and a resumed run has what its config.json holds.

Not counted: what the cache of compiled programs saves the next run.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import jax
import numpy as np

from bidora_jax.data.batches import bucket_lengths, full_pass
from bidora_jax.errors import InputError
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.planning import plans
from bidora_jax.planning.attention_backend import AUTO
from bidora_jax.planning.plans import Plan
from bidora_jax.planning.remat_choice import MethodSettings
from bidora_jax.training.compiled_steps import CompiledStep, shapes
from bidora_jax.training.phases import first_phase, one_level
from bidora_jax.training.problem import Problem
from bidora_jax.training.settings import RetrainConfig, SearchConfig

MOST = 8
"""Padded lengths that auto takes at most."""
STEPS = 1000


class Compiling(NamedTuple):
    """What compiling a step costs, in operations that the steps could do in that time."""

    gradient: float
    bilevel: float


COMPILING = {"cpu": Compiling(1.5e12, 4e12), "gpu": Compiling(6e15, 30e15)}
"""It does not follow the size of the model, as layers are scanned. CPU, two of 2 cores (benchmarks/LOG.md): 5 and 14 s beside
500 GFLOP/s (2026-11-28, Xeon with AMX), about 8 and 25 s beside 100 GFLOP/s (2026-11-29, EPYC); the values are between the two.
GPU: 16 and 75 s, compiled for an H100 at half of whose rate a step is bound (2026-11-28); none has run."""


FORWARD = 0.3
"""Compiling an evaluation, over compiling a gradient."""


class Program(NamedTuple):
    """A program of the run, over the steps or the batches that were looked at."""

    lengths: np.ndarray
    """The longest row of each, rounded up."""
    weight: float
    """How often the run does each that was looked at, times the work of one token of length."""
    compiling: float
    """The work of compiling it once."""

    def cost(self, buckets: tuple[int, ...]) -> tuple[float, float]:
        """Work of the compilations and of the steps, at these padded lengths."""
        padded = np.asarray(buckets)[np.searchsorted(buckets, self.lengths)]
        return len(np.unique(padded)) * self.compiling, float(padded.sum()) * self.weight


def settle(
    problem: Problem, levels: MethodSettings, retrain: RetrainConfig, *, eval_every: float
) -> tuple[Problem, str]:
    """The problem with its number of padded lengths, and one line on the choice; empty where it was set."""
    lengths = [len(row.tokens) for row in [*problem.train, *problem.val]]
    if (given := problem.data.padded_lengths) and max(lengths) > given[-1]:
        raise InputError(
            f"data.padded_lengths end with {given[-1]}, and a record has {max(lengths)} tokens: add a length of {max(lengths)} or "
            "more, or lower data.max_length"
        )
    if given or problem.data.buckets != AUTO:
        return problem, ""
    most = len(bucket_lengths(lengths, len(lengths)))
    fine = replace(problem, base=shapes(problem.base), data=replace(problem.data, buckets=most))
    programs = list(_programs(fine, levels, retrain, eval_every))
    costs = []
    for count in range(1, min(MOST, most) + 1):
        parts = np.array([program.cost(bucket_lengths(lengths, count)) for program in programs])
        costs.append(parts.sum(axis=0))
    totals = [float(sum(parts)) for parts in costs]
    count = totals.index(min(totals)) + 1
    settled = replace(problem, data=replace(problem.data, buckets=count))
    return settled, _reason(count, costs)


def _reason(count: int, costs: list[np.ndarray]) -> str:
    """Why there are so many, by what one more would cost and save."""
    line = f"data.buckets auto: {count} padded length{'s' * (count > 1)}"
    if count == len(costs):
        return f"{line}, {'the most that auto takes' if count == MOST else 'one for each length that there is'}"
    (compiling, running), (more, less) = costs[count - 1], costs[count]
    if less >= running:
        return f"{line}; one more would save no padding"
    ratio = (more - compiling) / (running - less)
    return f"{line}; one more would compile for {ratio:,.1f} times as long as its shorter steps save"


def _programs(problem: Problem, levels: MethodSettings, retrain: RetrainConfig, eval_every: float) -> Iterator[Program]:
    """The programs of all phases and of the evaluation. Nothing is compiled: the phases are made from shapes, with all lengths
    there are. `auto` of other settings, which is not settled yet, stands for the fastest form."""
    model, search = problem.model, levels.search
    model = replace(model, remat="dots" if model.remat == AUTO else model.remat)
    search = replace(search, hypergradient="exact" if search.hypergradient == AUTO else search.hypergradient)
    fine = replace(problem, model=model)
    phases = [first_phase(levels.method, fine, search, levels.inner, levels.outer)[0]]
    if levels.method == "bidora" and (retrain.epochs or retrain.steps):  # one level, on both splits
        both = replace(fine, train=[*fine.train, *fine.val], val=[])
        phases.append(one_level(both, SearchConfig(epochs=retrain.epochs, steps=retrain.steps), levels.inner)[0])
    known = COMPILING["cpu" if jax.default_backend() == "cpu" else "gpu"]
    gradient = Plan(model, AdapterConfig(method="dora"), replace(fine.data, max_length=1), search=search)
    for phase in phases:
        met: dict[CompiledStep, list[int]] = {}
        looked_at = min(phase.steps, STEPS)
        for program, length in chain.from_iterable(map(phase.step_shapes, range(looked_at))):
            met.setdefault(program, []).append(length)
        for program, lengths in met.items():
            two = len(program.like(lengths[0])) == 2
            plan = replace(gradient, adapter=AdapterConfig(method="bidora" if two else "dora"))
            work = plans.arithmetic(problem.config, plan) * phase.steps / looked_at
            yield Program(np.asarray(lengths), work, known.bilevel if two else known.gradient)
    if problem.val:
        intervals = [(phase.steps, phase.interval(eval_every)) for phase in phases]
        passes = 2 + sum(1 + (steps // interval if interval else 0) for steps, interval in intervals)
        batches = full_pass(problem.val, problem.buckets, problem.form)
        lengths = np.array([batch["tokens"].shape[-1] for batch in batches])
        forward = plans.arithmetic(problem.config, gradient) / 2 / problem.data.accumulation
        yield Program(lengths, passes * forward, FORWARD * known.gradient)
