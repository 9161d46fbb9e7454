"""train --dry-run: what a run will take, before it is paid for. Nothing is written.

The steps of every phase are compiled ahead of time; two of them run on the real batches. Memory is the compiler's count
(training/footprint.py). Time is that of the second step, by padded tokens, over the steps of the data's real order:

    run = loading + Σ_phases ( compiling + Σ_steps padded tokens · s/token + evaluations · s )

Resident memory (a CPU's) is what the process holds before the first step, measured, interpreter and compiled programs
included, and what the compiler counts for the rest.
"""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from bidora_jax.config import Config
from bidora_jax.training.footprint import Footprint, gigabytes

if TYPE_CHECKING:
    from bidora_jax.train import Assembled
    from bidora_jax.training.fitting import Settled
    from bidora_jax.training.loop import Phase, Standing
    from bidora_jax.training.memory import Memory
    from bidora_jax.training.phases import Problem

STEPS = 2


class PhaseCost(NamedTuple):
    """What a phase takes."""

    name: str
    steps: int
    footprint: Footprint
    lengths: tuple[int, ...]
    step_seconds: float
    """The mean over the steps of the phase."""
    compile_seconds: float
    evaluations: int


class Cost(NamedTuple):
    """What a run takes. Seconds."""

    phases: tuple[PhaseCost, ...]
    evaluation: float
    """One pass over the validation split."""
    compiling_evaluation: float
    held: int | None
    """Resident before the first step of the largest phase; None where the system does not tell."""
    loading: float = 0.0
    settling: float = 0.0

    @property
    def compiling(self) -> float:
        return self.settling + self.compiling_evaluation + sum(phase.compile_seconds for phase in self.phases)

    @property
    def stepping(self) -> float:
        return sum(phase.steps * phase.step_seconds for phase in self.phases)

    @property
    def evaluating(self) -> float:
        return self.evaluation * (1 + sum(phase.evaluations for phase in self.phases))

    @property
    def seconds(self) -> float:
        return self.loading + self.compiling + self.stepping + self.evaluating

    @property
    def resident(self) -> int | None:
        """The peak of the process on a CPU."""
        if self.held is None:
            return None
        largest = max((phase.footprint for phase in self.phases), key=lambda parts: parts.temporaries)
        return self.held + largest.temporaries + largest.results + largest.batch


def main(
    config: Config, parts: "Assembled", first: "Settled", memory: "Memory", *, loading: float, settling: float
) -> None:
    """Measures and prints. `loading` is the time that reading data and model took, `settling` that of the choice of forms."""
    cost = measured(config, parts, first)._replace(loading=loading, settling=settling)
    print("\n".join(["", *report(cost, memory)]))


def measured(config: Config, parts: "Assembled", first: "Settled") -> Cost:
    """The cost of the run: two real steps of each phase, and a pass over a part of the validation split."""
    from bidora_jax.training import phases
    from bidora_jax.training.memory import resident

    problem, held = parts.problem, []
    costs, standing = [], first.standing
    cost, adapter = _phase_cost(config, problem, first.phase, standing, held)
    costs.append(cost)
    if config.adapter.method == "bidora" and (config.retrain.epochs or config.retrain.steps):
        phase, standing = phases.retrain(problem, config.retrain, config.inner, adapter, first.phase.steps)
        cost, adapter = _phase_cost(config, problem, phase, standing, held)
        costs.append(cost)
    compiling, evaluation = _evaluation(problem, adapter) if problem.val else (0.0, 0.0)
    return Cost(tuple(costs), evaluation, compiling, held[0] if resident() else None)


def report(cost: Cost, memory: "Memory") -> list[str]:
    """The lines that are printed."""
    lines = []
    for phase in cost.phases:
        padded = ", ".join(map(str, phase.lengths))
        lines += [f"{phase.name}: {phase.steps} steps of {phase.step_seconds:.2f} s, padded to {padded}"]
        lines += [f"  {line}" for line in phase.footprint.lines()]
    largest = max(phase.footprint.peak for phase in cost.phases)
    lines += [
        f"memory: {gigabytes(largest)} at the peak of the largest step, of {gigabytes(memory.bytes)}, {memory.said}"
    ]
    if cost.resident is not None:
        lines += [
            f"resident: {gigabytes(cost.resident)} at its peak, of which {gigabytes(cost.held or 0)} are held now"
        ]
    evaluations = 1 + sum(phase.evaluations for phase in cost.phases)
    lines += [
        f"time: {_spoken(cost.seconds)} = loading {cost.loading:.0f} s, compiling {cost.compiling:.0f} s, steps "
        f"{cost.stepping:.0f} s, {evaluations} evaluations {cost.evaluating:.0f} s",
        "dry run: nothing was written",
    ]
    return lines


def _phase_cost(config: Config, problem: "Problem", phase: "Phase", standing: "Standing", held: list):
    """(the cost of a phase, the adapter after two steps)"""
    import jax

    from bidora_jax.training import footprint
    from bidora_jax.training.fitting import largest
    from bidora_jax.training.memory import release_freed_memory, resident
    from bidora_jax.training.programs import ahead

    meetings = ahead(phase.meetings, 0, phase.steps)
    began = time.monotonic()
    for program, length in meetings:
        print(f"{phase.name}: compiling T = {length}")
        program.compile(standing.state, length)
    compiling = time.monotonic() - began
    parts = footprint.of(problem, phase, standing.state, largest(phase))
    release_freed_memory()
    held.append(resident())
    state, seconds, number = standing.state, 0.0, 0
    for number in range(min(STEPS, phase.steps)):
        batches = phase.work(number).batches
        began = time.monotonic()
        state, _ = jax.block_until_ready(phase.advance(state, batches))
        seconds = time.monotonic() - began
    per_token = seconds / _padded(phase, number)
    mean = per_token * sum(_padded(phase, step) for step in range(phase.steps)) / phase.steps
    every = config.eval_every
    evaluations = phase.steps // every + bool(phase.steps % every) if every else 1
    lengths = tuple(sorted({length for _, length in meetings}))
    return PhaseCost(phase.name, phase.steps, parts, lengths, mean, compiling, evaluations), phase.adapter_of(state)


def _padded(phase: "Phase", number: int) -> int:
    """What the time of a step follows: its padded lengths, those of its lower steps too."""
    return sum(length for _, length in phase.meetings(number))


def _evaluation(problem: "Problem", adapter) -> tuple[float, float]:
    """(seconds of compiling, seconds of a pass over the validation split), from its longest batch."""
    from bidora_jax.training import evaluation
    from bidora_jax.training.data import full_pass

    evaluate = evaluation.evaluator(problem.config, replace(problem.adapter, dropout=0.0), problem.model)
    batches = list(full_pass(problem.val, problem.buckets, problem.data.batch_size, problem.pad_id))
    seconds = []
    direction, magnitude = adapter
    for _ in range(2):
        began = time.monotonic()
        evaluate(problem.base, direction, magnitude, batches[-1:])
        seconds.append(time.monotonic() - began)
    length = [batch["tokens"].shape[-1] for batch in batches]
    compiling = max(seconds[0] - seconds[1], 0.0) * len(set(length))
    return compiling, seconds[1] * sum(length) / length[-1]


def _spoken(seconds: float) -> str:
    """45 s, 12 min, 3.4 h"""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
