"""train --dry-run: what a run will take, before it is paid for. Nothing is written.

The run's own code does two steps of every phase in a temporary folder, the largest one twice: a program's first run takes longer.
They train on real batches. The longest validation batch, one batch of test answers, checkpoints, the adapter with its proof and
the report are done too. Then

    run = rehearsal + Σ ( all steps, evaluations, checkpoints, looks and answers − those rehearsed ) − compiling + reading + left

Each of them is taken to last as long as the last one that was rehearsed. Steps and evaluations scale with their padded tokens,
summed over the real order of the data. One padded length of every program is compiled, and each of those that are `left` to the
run takes as long as that. Compiled programs are kept on disk, and the run that follows reads them instead of compiling. The
rehearsal reads the last phase's to know how long that takes, and counts the others by how long they compiled.

Memory is the compiler's count (planning/footprint.py). Resident memory (of a CPU) is the larger of two: what the rehearsal took
at most, and what the process holds before a step, measured, plus the compiler's count of the step. The merged model is not
written, as a temporary folder may have no room for it.
"""

import contextlib
import functools
import io
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jaxtyping import PyTree

from bidora_jax.config import Config
from bidora_jax.data.batches import Batch
from bidora_jax.machine.allocator import release_freed_memory
from bidora_jax.machine.memory import Memory, resident
from bidora_jax.planning import footprint
from bidora_jax.planning.footprint import Footprint, gigabytes
from bidora_jax.planning.remat_choice import FirstPhase
from bidora_jax.runs.compile_clock import Clock
from bidora_jax.tasks.task import Scores
from bidora_jax.training.checkpoint import Checkpoints
from bidora_jax.training.compiled_steps import CompiledStep, StepShape, shapes, upcoming
from bidora_jax.training.loop import Intervals, Loop, Phase, PhaseState, Watcher
from bidora_jax.training.metrics_log import MetricsLog
from bidora_jax.training.problem import Problem

if TYPE_CHECKING:
    from bidora_jax.runs.assembly import RunInputs


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
    devices: int = 1
    """Over which a step is spread; a CPU's virtual ones are in this process."""

    @property
    def resident(self) -> int | None:
        """Resident at the peak of the largest step."""
        parts = self.footprint
        of_each = parts.temporaries + parts.results + parts.batch
        return None if self.held is None else self.held + self.devices * of_each


class Often(NamedTuple):
    """What a run does several times."""

    times: int
    seconds: float
    """Each."""
    rehearsed: float
    """Seconds that the rehearsal spent on it, without compiling."""

    @property
    def total(self) -> float:
        return self.times * self.seconds


class Cost(NamedTuple):
    """What a run takes. Seconds and bytes."""

    phases: tuple[PhaseCost, ...]
    often: dict[str, Often]
    rehearsal: float
    """Seconds from the start of the process to the end of the rehearsal, without what only a dry run does."""
    compiling: float
    """Seconds of `rehearsal` in the compiler."""
    reading: float | None
    """Seconds to read the compiled programs back; None where they are not kept."""
    tracing: float
    """Seconds of `rehearsal` in which the programs were traced; a run traces them too, before it reads or compiles them."""
    left: float
    """Seconds that the run will compile the padded lengths which the rehearsal did not."""
    held: int | None
    """The most that was resident up to the end of the rehearsal; None where the system does not tell."""

    @property
    def once(self) -> float:
        """What a run does once: starting, ending and, where programs are kept, reading them."""
        return (
            self.rehearsal
            - self.compiling
            - sum(each.rehearsed for each in self.often.values())
            + (self.reading or 0.0)
            + self.left
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


def main(config: Config, inputs: "RunInputs", first: FirstPhase, memory: Memory, clock: Clock, *, kept: bool) -> None:
    """Rehearses the run and prints what it takes. `clock` was made before anything was compiled; `kept` says whether
    compiled programs are kept on disk."""
    print("rehearsing the first steps of each phase, in a temporary folder", flush=True)
    cost = rehearsed(config, inputs, first, clock, kept=kept)
    print("\n".join(["", *report(cost, memory, merged=config.merged)]))


def rehearsed(config: Config, inputs: "RunInputs", first: FirstPhase, clock: Clock, *, kept: bool) -> Cost:
    """The cost of the run, by doing a little of all its parts."""
    from bidora_jax.runs import execution

    batches = execution.validation_batches(inputs.problem)
    some = batches[-1:]  # from short to long
    losses = Timed(execution.scorer(inputs.problem, inputs.labelled)(some)) if some else None
    rehearsal = Rehearsal(inputs.problem, clock)
    # Nothing is shown of what a few steps come to: their losses above all would only mislead.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        small = replace(config, output_dir=f"{folder}/run", merged=False, tensorboard=False, wandb="")
        execution.run(
            small, inputs._replace(test=[], test_rows=[]), first, losses=losses, make_loop=rehearsal.make_loop
        )
    often = rehearsal.often()
    if losses is not None:
        all_tokens, some_tokens = (sum(map(_length, passed)) for passed in (batches, some))
        # Two more: before the first step, and of the result.
        count = 2 + sum(_due(phase.steps, phase.interval(config.eval_every)) for phase in rehearsal.phases)
        often["evaluations"] = Often(count, losses.last * all_tokens / some_tokens, losses.last * losses.calls)
    if inputs.test:
        often["batches of test answers"] = _answers(config, inputs)
    peak, total, compiling = resident("VmHWM"), clock.running - rehearsal.apart, clock.compiling
    tracing, left = (
        clock.tracing,
        rehearsal.left + (len({_length(batch) for batch in batches}) - 1) * clock.made("sums"),
    )
    reading = _read_back(*rehearsal.programs[-1], clock) * compiling if kept else None
    return Cost(tuple(rehearsal.costs()), often, total, compiling, reading, tracing, left, peak)


class Timed:
    """A function that remembers how often it was called, and how long the last call took."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self.calls, self.last = function, 0, 0.0

    def __call__(self, *arguments: Any) -> Any:
        began = time.monotonic()
        out = jax.block_until_ready(self._function(*arguments))
        self.calls, self.last = self.calls + 1, time.monotonic() - began
        return out


class Silent:
    """A watcher that writes down what it sees and says nothing in the progress."""

    def __init__(self, watcher: Watcher) -> None:
        self.name, self.every = watcher.name, watcher.every
        self._watcher = watcher

    def look(self, phase: str, step: int, direction: PyTree, magnitude: PyTree) -> str:
        self._watcher.look(phase, step, direction, magnitude)
        return ""

    def truncate(self, phase: str, step: int) -> None:
        self._watcher.truncate(phase, step)


class Rehearsal:
    """Lets the loop do the first steps of every phase, times what it does, and counts the memory of its steps."""

    def __init__(self, problem: Problem, clock: Clock) -> None:
        self.phases: list[Phase] = []
        """All phases of the run, as they are planned."""
        self.programs: list[tuple[StepShape, Any]] = []
        """Every program at the padded length that was compiled, with the shapes of its state."""
        self.left = 0.0
        """Seconds to compile what was not."""
        self.apart = 0.0
        """Seconds of what only a dry run does."""
        self._problem, self._clock = problem, clock
        self._loop: Loop | None = None
        self._seconds: defaultdict[tuple[str, str], list[float]] = defaultdict(list)  # of each time, by (doing, phase)
        self._counts: list[tuple[Footprint, int | None, tuple[int, ...]]] = []

    def make_loop(
        self, evaluate: Callable[[PyTree, PyTree], Scores] | None, log: MetricsLog, checkpoints: Checkpoints,
        intervals: Intervals, watchers: Sequence[Watcher],
    ) -> Loop:  # fmt: skip
        silent = [Silent(watcher) for watcher in watchers]
        self._loop = Loop(evaluate, log, checkpoints, intervals, silent, part=self.part, timer=self.timer)
        return self._loop

    def part(self, phase: Phase) -> Phase:
        """The largest step of a phase, twice. Each waits for its results, so that it can be timed."""
        if phase not in self.phases:
            self.phases.append(phase)
        number = _largest(phase)
        return replace(
            phase, steps=2, inputs=lambda _: phase.inputs(number), step_shapes=lambda _: phase.step_shapes(number),
            advance=lambda *given: jax.block_until_ready(phase.advance(*given)),
        )  # fmt: skip

    @contextlib.contextmanager
    def timer(self, doing: str, phase: Phase, at: PhaseState) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._seconds[doing, phase.name].append(time.monotonic() - began)
        if doing == "compile":
            self._count(phase, at)

    def _count(self, phase: Phase, at: PhaseState) -> None:
        """What the compiler counts for the largest step of the phase, and what is resident before the first one."""
        began = time.monotonic()
        step_shapes = upcoming(phase.step_shapes, at.step, phase.steps)
        done = [step_shape for step_shape in step_shapes if step_shape[0].has(step_shape[1])]
        self.programs += [(step_shape, shapes(at.state)) for step_shape in done]
        for program, _ in done:  # each at one length
            others = sum(other is program for other, _ in step_shapes) - 1
            self.left += others * self._clock.made(_name(program))
        parts = footprint.of(self._problem, phase, at.state, done[-1])
        release_freed_memory()
        self._counts.append((parts, resident(), tuple(sorted({length for _, length in step_shapes}))))
        self.apart += time.monotonic() - began

    def costs(self) -> Iterator[PhaseCost]:
        """What each phase takes."""
        for phase, (parts, held, lengths) in zip(self.phases, self._counts, strict=True):
            seconds = self._seconds["step", phase.name]
            per_token = seconds[-1] / _padded(phase, _largest(phase))
            mean = per_token * sum(_padded(phase, step) for step in range(phase.steps)) / phase.steps
            spread = self._problem.spread
            devices = 1 if spread is None else spread.devices
            yield PhaseCost(phase.name, phase.steps, lengths, mean, parts, held, devices)

    def often(self) -> dict[str, Often]:
        """What the loop does several times, by name."""
        assert self._loop is not None
        steps = sum(phase.steps for phase in self.phases)
        each = sum(cost.steps * cost.step_seconds for cost in self.costs()) / steps
        by_phase = [self._seconds["step", phase.name] for phase in self.phases]
        found = {"steps": Often(steps, each, sum(len(seconds) * seconds[-1] for seconds in by_phase))}
        saves = sum(_due(phase.steps, phase.interval(self._loop.intervals.save)) for phase in self.phases)
        found["checkpoints"] = self._times("save", saves)
        for watcher in self._loop.watchers:
            count = 1 + sum(_due(phase.steps, phase.interval(watcher.every)) for phase in self.phases)
            found[f"looks ({watcher.name})"] = self._times(f"watch {watcher.name}", count)
        return found

    def _times(self, doing: str, count: int) -> Often:
        """`count` times what was rehearsed under a name, each as long as the last one."""
        seconds = [one for phase in self.phases for one in self._seconds[doing, phase.name]]
        return Often(count, seconds[-1], len(seconds) * seconds[-1])


def _name(program: CompiledStep) -> str:
    """What JAX's events call a program."""
    return (program.step.func if isinstance(program.step, functools.partial) else program.step).__name__


@functools.cache
def _largest(phase: Phase) -> int:
    """The first step whose last program runs at the largest padded length of all steps: it takes most memory."""
    return max(range(phase.steps), key=lambda number: ([*phase.step_shapes(number)][-1][1], _padded(phase, number)))


def _due(steps: int, every: int) -> int:
    """How often something is done in a phase: every so many steps, and at its end."""
    return steps // every + bool(steps % every) if every else 1


def _answers(config: Config, inputs: "RunInputs") -> Often:
    """A run answers the test records before and after training, a batch at a time; one batch is answered here."""
    from bidora_jax.runs import execution
    from bidora_jax.tasks import evaluation

    rows = evaluation.rows(len(inputs.test))
    answer = Timed(lambda: execution.answers(config, inputs._replace(test=inputs.test[:rows])))
    answer()
    answer()
    return Often(2 * math.ceil(len(inputs.test) / rows), answer.last, 2 * answer.last)


def _read_back(step_shape: StepShape, state: Any, clock: Clock) -> float:
    """How long it takes to read a program from the persistent cache, over how long it took to compile."""
    program, length = step_shape
    compiled = clock.compiled(name := _name(program))
    jax.clear_caches()
    program.compile(state, length, {})
    return (clock.compiled(name) - compiled) / compiled


def report(cost: Cost, memory: Memory, *, merged: bool) -> list[str]:
    """The lines that are printed."""
    lines = []
    for phase in cost.phases:
        padded = ", ".join(map(str, phase.lengths))
        each = f"; on each of {phase.devices} devices" if phase.devices > 1 else ""
        lines += [f"{phase.name}: {phase.steps} steps of {phase.step_seconds:.2f} s, padded to {padded}{each}"]
        lines += [f"  {line}" for line in phase.footprint.lines()]
    most = max(phase.footprint.peak for phase in cost.phases)
    lines += [_memory(most, cost.resident, memory)]
    parts = [f"{each.times} {name} {_spoken(each.total)}" for name, each in cost.often.items()]
    compiling = f"compiling {_spoken(cost.compiling)}"
    others = f", and compiles the other padded lengths for {_spoken(cost.left)}" if cost.left else ""
    lines += [
        f"time: {_spoken(cost.seconds)} = starting and ending {_spoken(cost.once)}, "
        + ", ".join([*parts, *([compiling] if cost.reading is None else [])])
    ]
    if cost.reading is not None:
        lines += [
            f"{compiling} is over: the programs are kept. The run traces them anew in {_spoken(cost.tracing)}, reads them in "
            f"{cost.reading:.1f} s{others}"
        ]
    elif others:
        lines += [f"the run traces its programs for {_spoken(cost.tracing)}{others}, which is counted"]
    if merged:
        lines += ["writing the merged model is not counted"]
    return [*lines, "dry run: nothing was written"]


def _memory(step: int, process: int | None, memory: Memory) -> str:
    """Which memory is needed: on a CPU the whole process's, on a GPU that of the arrays."""
    there = f"of {gigabytes(memory.bytes)}, {memory.source}"
    if process is None:
        return f"memory: {gigabytes(step)} is needed {there}, for the arrays of the largest step"
    if jax.default_backend() != "cpu":
        host = f"the process takes {gigabytes(process)} of the host's"
        return f"memory: {gigabytes(step)} is needed {there}, for the arrays of the largest step; {host}"
    return (
        f"memory: {gigabytes(process)} is needed {there}: the whole process at its peak (resident), with libraries and compiler; "
        f"the arrays of the largest step are {gigabytes(step)} of it"
    )


def _length(batch: Batch) -> int:
    return batch["tokens"].shape[-1]


def _padded(phase: Phase, number: int) -> int:
    """The padded lengths of a step and its lower steps, summed: its time grows with them."""
    return sum(length for _, length in phase.step_shapes(number))


def _spoken(seconds: float) -> str:
    """45 s, 12 min, 3.4 h"""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
