"""train --dry-run: what a run will take, before it is paid for. Nothing is written.

The run is rehearsed by its own code in a temporary folder: the first steps of every phase, until one runs nothing for the first
time, on the real batches, a validation batch of each padded length, a batch of test answers, checkpoints, the adapter with its
proof, the report. Then

    run = rehearsal + Σ ( all steps, evaluations, checkpoints, looks and answers − those rehearsed ) − compiling + reading

where each of them takes what the last one rehearsed took; steps, evaluations by their padded tokens, over the real order of the
data. Compiled programs are kept, and the run that follows reads them instead of compiling: reading is tried.

Memory is the compiler's count (planning/footprint.py). Resident memory (a CPU's) is what the process holds before a step,
measured, with the compiler's count of the step on top; or what the rehearsal took, where that is more. The merged model, for
which a temporary folder may have no room, is not rehearsed.
"""

import contextlib
import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from bidora_jax.config import Config
from bidora_jax.data.batches import Batch
from bidora_jax.machine.allocator import release_freed_memory
from bidora_jax.machine.memory import Memory, process_seconds, resident
from bidora_jax.planning import footprint
from bidora_jax.planning.footprint import Footprint, gigabytes
from bidora_jax.planning.remat_choice import FirstPhase, largest
from bidora_jax.training.compiled_steps import StepShape, shapes, upcoming
from bidora_jax.training.loop import Loop, Phase, PhaseState, Watcher
from bidora_jax.training.problem import Problem
from bidora_jax.training.progress import Progress

if TYPE_CHECKING:
    from bidora_jax.runs.assembly import RunInputs


COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's event for a program that was compiled, or read from the persistent cache."""


class PhaseCost(NamedTuple):
    """What a phase takes. Seconds and bytes."""

    name: str
    steps: int
    lengths: tuple[int, ...]
    step_seconds: float
    """The mean over the steps of the phase."""
    footprint: Footprint
    held: int | None
    """Resident before the first step; None where the system does not tell."""

    @property
    def resident(self) -> int | None:
        """Resident at the peak of the largest step."""
        parts = self.footprint
        return None if self.held is None else self.held + parts.temporaries + parts.results + parts.batch


class Often(NamedTuple):
    """What a run does several times."""

    times: int
    seconds: float
    """Each."""
    rehearsed: float
    """Seconds that the rehearsal spent on it, of which compiling is no part."""

    @property
    def total(self) -> float:
        return self.times * self.seconds


class Cost(NamedTuple):
    """What a run takes. Seconds and bytes."""

    phases: tuple[PhaseCost, ...]
    often: dict[str, Often]
    rehearsal: float
    """The process from its start to the end of the rehearsal, less what only a dry run does."""
    compiling: float
    """Of it, what the compiler took."""
    reading: float | None
    """Seconds to read the compiled programs back; None where they are not kept."""
    held: int | None
    """Resident at most while all this was done; None where the system does not tell."""

    @property
    def once(self) -> float:
        """What a run does once: starting, ending and, where programs are kept, reading them."""
        return (
            self.rehearsal
            - self.compiling
            - sum(each.rehearsed for each in self.often.values())
            + (self.reading or 0.0)
        )

    @property
    def seconds(self) -> float:
        return (
            self.once
            + sum(each.total for each in self.often.values())
            + (self.compiling if self.reading is None else 0.0)
        )

    @property
    def resident(self) -> int | None:
        """The peak of the process on a CPU."""
        counted = [phase.resident for phase in self.phases if phase.resident is not None]
        return max([self.held, *counted]) if self.held is not None else None


class Clock:
    """Seconds that the process has been running, and that JAX's compiler has taken since this was made."""

    def __init__(self) -> None:
        self.compiling, self._made = 0.0, time.monotonic()
        jax.monitoring.register_event_duration_secs_listener(self._add)

    @property
    def running(self) -> float:
        """Where the system does not tell, since this was made: without the imports."""
        return process_seconds() or time.monotonic() - self._made

    def _add(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED:
            self.compiling += duration_secs


def main(config: Config, parts: "RunInputs", first: FirstPhase, memory: Memory, clock: Clock, *, kept: bool) -> None:
    """Rehearses the run and prints what it takes. `clock` was made before anything was compiled; `kept` says whether
    programs are."""
    print("rehearsing the first steps of each phase, in a temporary folder", flush=True)
    cost = rehearsed(config, parts, first, clock, kept=kept)
    print("\n".join(["", *report(cost, memory, merged=config.merged)]))


def rehearsed(config: Config, parts: "RunInputs", first: FirstPhase, clock: Clock, *, kept: bool) -> Cost:
    """The cost of the run, by doing a little of all its parts."""
    from bidora_jax.runs import execution

    batches = execution.validation_batches(parts.problem)
    some = list({_length(batch): batch for batch in batches}.values())
    losses = Timed(execution.validator(parts.problem, some)) if some else None
    loops: list[Rehearsal] = []

    def make_loop(*services: Any) -> Loop:
        loops.append(Rehearsal(parts.problem, *services))
        return loops[-1]

    # What a few steps come to, their losses above all, would only mislead.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        small = replace(config, output_dir=f"{folder}/run", merged=False, tensorboard=False, wandb="")
        execution.run(small, parts._replace(test=[]), first, losses=losses, make_loop=make_loop)
    (loop,) = loops
    often = loop.often()
    if losses is not None:
        whole, part = (sum(map(_length, passed)) for passed in (batches, some))
        count = 1 + sum(_due(phase.steps, config.eval_every) for phase in loop.whole)  # one more of the result
        often["evaluations"] = Often(count, losses.last * whole / part, losses.last * losses.calls)
    if parts.test:
        often["batches of test answers"] = _answers(config, parts)
    peak, total, compiling = resident("VmHWM"), clock.running - loop.apart, clock.compiling
    return Cost(tuple(loop.costs()), often, total, compiling, _read_back(loop.met, clock) if kept else None, peak)


class Timed:
    """A function that remembers how often it was called, and how long the last call took."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self.calls, self.last = function, 0, 0.0

    def __call__(self, *arguments: Any) -> Any:
        began = time.monotonic()
        out = jax.block_until_ready(self._function(*arguments))
        self.calls, self.last = self.calls + 1, time.monotonic() - began
        return out


class Rehearsal(Loop):
    """The loop, of which every phase ends after its first steps, and all that it does is timed."""

    def __init__(self, problem: Problem, *services: Any) -> None:
        super().__init__(*services)
        self.whole: list[Phase] = []
        self.met: list[tuple[StepShape, Any]] = []
        """Programs at their lengths, with the shapes of their states."""
        self.apart = 0.0
        """Seconds of what only a dry run does."""
        self._problem = problem
        self._advances: list[Timed] = []
        self._counts: list[tuple[Footprint, int | None, tuple[int, ...]]] = []
        self._save_timed = Timed(super()._save)
        self._looks = {watcher: Timed(watcher.look) for watcher in self.watchers}

    def run(self, phase: Phase, standing: PhaseState) -> PhaseState:
        self.whole.append(phase)
        self._advances.append(Timed(phase.advance))
        return super().run(replace(phase, steps=_enough(phase), advance=self._advances[-1]), standing)

    def _compile(self, phase: Phase, standing: PhaseState, progress: Progress) -> None:
        whole = self.whole[-1]
        super()._compile(whole, standing, progress)
        began = time.monotonic()
        step_shapes = upcoming(whole.step_shapes, standing.step, whole.steps)
        self.met += [(step_shape, shapes(standing.state)) for step_shape in step_shapes]
        parts = footprint.of(self._problem, whole, standing.state, largest(whole))
        release_freed_memory()
        self._counts.append((parts, resident(), tuple(sorted({length for _, length in step_shapes}))))
        self.apart += time.monotonic() - began

    def _save(self, phase: Phase, standing: PhaseState) -> None:
        self._save_timed(phase, standing)

    def _watch(self, watchers: Sequence[Watcher], phase: Phase, standing: PhaseState, progress: Progress) -> None:
        for watcher in watchers:
            self._looks[watcher](phase.name, standing.step, *phase.adapter_of(standing.state))

    def costs(self) -> Iterator[PhaseCost]:
        """What each phase takes."""
        for phase, advance, (parts, held, lengths) in zip(self.whole, self._advances, self._counts, strict=True):
            per_token = advance.last / _padded(phase, advance.calls - 1)
            mean = per_token * sum(_padded(phase, step) for step in range(phase.steps)) / phase.steps
            yield PhaseCost(phase.name, phase.steps, lengths, mean, parts, held)

    def often(self) -> dict[str, Often]:
        """What the loop does several times, by name."""
        steps = sum(phase.steps for phase in self.whole)
        each = sum(cost.steps * cost.step_seconds for cost in self.costs()) / steps
        found = {"steps": Often(steps, each, sum(advance.calls * advance.last for advance in self._advances))}
        saves = sum(_due(phase.steps, self.rhythm.save) for phase in self.whole)
        found["checkpoints"] = Often(saves, self._save_timed.last, self._save_timed.calls * self._save_timed.last)
        for watcher, look in self._looks.items():
            count = 1 + sum(_due(phase.steps, watcher.every) for phase in self.whole)
            found[f"looks ({type(watcher).__name__.lower()})"] = Often(count, look.last, look.calls * look.last)
        return found


def _enough(phase: Phase) -> int:
    """Steps up to the second at least, and to one whose programs have all run before: the first run of one takes longer."""
    met: set[StepShape] = set()
    for number in range(phase.steps):
        step_shapes = set(phase.step_shapes(number))
        if number and step_shapes <= met:
            return number + 1
        met |= step_shapes
    return phase.steps


def _due(steps: int, every: int) -> int:
    """How often something is done in a phase: every so many steps, and at its end."""
    return steps // every + bool(steps % every) if every else 1


def _answers(config: Config, parts: "RunInputs") -> Often:
    """The test records are answered before and after training, a batch at a time; one is answered here."""
    from bidora_jax.runs import execution
    from bidora_jax.tasks import evaluation

    rows = evaluation.rows(len(parts.test))
    answer = Timed(lambda: execution.answers(config, parts._replace(test=parts.test[:rows]), parts.problem.base))
    answer()
    answer()
    return Often(2 * math.ceil(len(parts.test) / rows), answer.last, 2 * answer.last)


def _read_back(met: Sequence[tuple[StepShape, Any]], clock: Clock) -> float:
    """Seconds to get the steps, which were compiled, from the persistent cache."""
    jax.clear_caches()
    before = clock.compiling
    for (program, length), state in met:
        program.compile(state, length, {})
    return clock.compiling - before


def report(cost: Cost, memory: Memory, *, merged: bool) -> list[str]:
    """The lines that are printed."""
    lines = []
    for phase in cost.phases:
        padded = ", ".join(map(str, phase.lengths))
        lines += [f"{phase.name}: {phase.steps} steps of {phase.step_seconds:.2f} s, padded to {padded}"]
        lines += [f"  {line}" for line in phase.footprint.lines()]
    most = max(phase.footprint.peak for phase in cost.phases)
    lines += [f"memory: {gigabytes(most)} at the peak of the largest step, of {gigabytes(memory.bytes)}, {memory.said}"]
    if cost.resident is not None:
        lines += [f"resident: {gigabytes(cost.resident)} at its peak; this dry run took {gigabytes(cost.held or 0)}"]
    parts = [f"{each.times} {name} {_spoken(each.total)}" for name, each in cost.often.items()]
    compiling = f"compiling {_spoken(cost.compiling)}"
    lines += [
        f"time: {_spoken(cost.seconds)} = starting and ending {_spoken(cost.once)}, "
        + ", ".join([*parts, *([compiling] if cost.reading is None else [])])
    ]
    if cost.reading is not None:
        lines += [f"{compiling} is over: the programs are kept, and the run reads them in {cost.reading:.1f} s"]
    if merged:
        lines += ["writing the merged model is not counted"]
    return [*lines, "dry run: nothing was written"]


def _length(batch: Batch) -> int:
    return batch["tokens"].shape[-1]


def _padded(phase: Phase, number: int) -> int:
    """What the time of a step follows: its padded lengths, those of its lower steps too."""
    return sum(length for _, length in phase.step_shapes(number))


def _spoken(seconds: float) -> str:
    """45 s, 12 min, 3.4 h"""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
