"""train --dry-run: what a run will take, before it is paid for. Nothing is written.

All that a run does is done once, in its order: the steps of every phase are compiled ahead of time, two of them run on the real
batches, the validation loss is taken of one batch, the result's logits as they are for the proof of what is written. Memory is
the compiler's count (training/footprint.py). Time is that of the second step, by padded tokens, over the real order of the data:

    run = starting + Σ_phases ( compiling + Σ_steps padded tokens · s/token + evaluations · s ) + ending

Resident memory (a CPU's) is what the process holds before a step, measured, with the compiler's count of the step on top; or
what compiling took here, where that is more.
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
    held: int | None
    """Resident before the first step; None where the system does not tell."""

    @property
    def resident(self) -> int | None:
        """Resident at the peak of the largest step."""
        parts = self.footprint
        return None if self.held is None else self.held + parts.temporaries + parts.results + parts.batch


class Cost(NamedTuple):
    """What a run takes. Seconds and bytes."""

    phases: tuple[PhaseCost, ...]
    evaluation: float
    """One pass over the validation split."""
    compiling_evaluation: float
    ending: float
    """Proving the adapter, and loading what writes checkpoints and the report."""
    held: int | None
    """Resident at most while all this was done; None where the system does not tell."""
    starting: float = 0.0
    settling: float = 0.0

    @property
    def compiling(self) -> float:
        return self.settling + self.compiling_evaluation + sum(phase.compile_seconds for phase in self.phases)

    @property
    def stepping(self) -> float:
        return sum(phase.steps * phase.step_seconds for phase in self.phases)

    @property
    def evaluations(self) -> int:
        return (1 + sum(phase.evaluations for phase in self.phases)) if self.evaluation else 0

    @property
    def seconds(self) -> float:
        return self.starting + self.compiling + self.stepping + self.evaluations * self.evaluation + self.ending

    @property
    def resident(self) -> int | None:
        """The peak of the process on a CPU."""
        counted = [phase.resident for phase in self.phases if phase.resident is not None]
        return max([self.held, *counted]) if self.held is not None else None


def main(
    config: Config, parts: "Assembled", first: "Settled", memory: "Memory", *, loading: float, settling: float
) -> None:
    """Measures and prints. `loading` is the time from the start of the process until data and model were read, `settling`
    that of the choice of forms."""
    cost = measured(config, parts, first)._replace(starting=loading, settling=settling)
    print("\n".join(["", *report(cost, memory)]))


def measured(config: Config, parts: "Assembled", first: "Settled") -> Cost:
    """The cost of the run, by doing a little of all its parts."""
    from bidora_jax.training import phases
    from bidora_jax.training.memory import resident

    problem = parts.problem
    cost, adapter = _phase_cost(config, problem, first.phase, first.standing)
    costs = [cost]
    compiling, evaluation = _evaluation(problem, adapter) if problem.val else (0.0, 0.0)
    if config.adapter.method == "bidora" and (config.retrain.epochs or config.retrain.steps):
        phase, standing = phases.retrain(problem, config.retrain, config.inner, adapter, first.phase.steps)
        cost, adapter = _phase_cost(config, problem, phase, standing)
        costs.append(cost)
    ending = _ending(config, problem, adapter)
    return Cost(tuple(costs), evaluation, compiling, ending, resident("VmHWM"))


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
        lines += [f"resident: {gigabytes(cost.resident)} at its peak; this dry run took {gigabytes(cost.held or 0)}"]
    lines += [
        f"time: {_spoken(cost.seconds)} = starting {cost.starting:.0f} s, compiling {cost.compiling:.0f} s, steps "
        f"{cost.stepping:.0f} s, {cost.evaluations} evaluations {cost.evaluations * cost.evaluation:.0f} s, ending "
        f"{cost.ending:.0f} s",
        "dry run: nothing was written",
    ]
    return lines


def _phase_cost(config: Config, problem: "Problem", phase: "Phase", standing: "Standing"):
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
    held = resident()
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
    cost = PhaseCost(phase.name, phase.steps, parts, lengths, mean, compiling, evaluations, held)
    return cost, phase.adapter_of(state)


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


def _ending(config: Config, problem: "Problem", adapter) -> float:
    """Seconds of what a run does once, after its steps."""
    import importlib

    from bidora_jax.models import parity

    began = time.monotonic()
    for name in ("orbax.checkpoint", *(["matplotlib.figure"] if config.report else [])):
        importlib.import_module(name)
    direction, magnitude = adapter
    for _ in range(2):  # of the model that was trained, and of the adapter that is read back
        parity.probe_logits(problem.config, problem.adapter, problem.base, direction, magnitude)
    return time.monotonic() - began


def _spoken(seconds: float) -> str:
    """45 s, 12 min, 3.4 h"""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
