"""The one training loop: runs a phase step by step, evaluates, keeps the best, saves, and stops on a loss that is no number.

A `Phase` says what a step is; the loop knows neither methods nor models. All that has to survive a kill is in `PhaseState`,
which is what a checkpoint holds; everything else is a pure function of the configuration and the step.

A caller that wants to know what a run costs gives the loop a `Timer`, and `part` of each phase to run (runs/dry_run.py).
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bidora_jax.data.batches import prefetch
from bidora_jax.errors import NotFinite, Stopped
from bidora_jax.machine import interrupts
from bidora_jax.machine.allocator import release_freed_memory
from bidora_jax.machine.interrupts import Interrupts
from bidora_jax.tasks.task import Scores
from bidora_jax.training.checkpoint import Checkpoints
from bidora_jax.training.compiled_steps import StepShape, are_kept, compile_all, in_words, upcoming
from bidora_jax.training.metrics_log import MetricsLog
from bidora_jax.training.progress import Progress

UNCHANGING = ("tokens", "records")
"""Facts of an evaluation that are the same at every step."""


class StepInputs(NamedTuple):
    """What one step trains on; the host makes it while earlier steps run."""

    batches: Any
    tokens: int
    """Tokens of the records, without padding."""
    records: list[str]
    """Where each training record stands (file:line), for messages."""


@dataclass(frozen=True)
class Phase:
    """One phase of training."""

    name: str
    steps: int
    epoch: float
    """Steps of a pass over its training records."""
    steps_before: int
    """Steps of the run that are planned before this phase."""
    inputs: Callable[[int], StepInputs]
    """What a step trains on, by its number in the phase."""
    advance: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]
    """(state, batches) to (state, metrics); may donate the state."""
    adapter_of: Callable[[Any], tuple[PyTree, PyTree]]
    """The (direction, magnitude) inside a state."""
    rates: Callable[[int], dict[str, float]]
    """Learning rates of a step."""
    selects: bool
    """Whether the best step by validation loss is kept, rather than the last."""
    patience: int
    """Evaluations without a better one before the phase ends early; 0 never ends it."""
    step_shapes: Callable[[int], Iterable[StepShape]] = lambda number: ()
    """The programs that a step runs, each with the padded length it runs at."""

    def run_step(self, step: int) -> int:
        """`step` of this phase counted from the start of the run; a checkpoint is numbered by it."""
        return self.steps_before + step

    def interval(self, every: float) -> int:
        """An interval in steps: `every` itself, or that share of an epoch where it is below 1. 0 stays 0."""
        return int(every) if every >= 1 or not every else max(round(every * self.epoch), 1)


class PhaseState(NamedTuple):
    """Where a phase stands: all that a checkpoint holds."""

    state: Any
    best: tuple[PyTree, PyTree]
    """The (direction, magnitude) that the phase will hand on."""
    step: int = 0
    """Steps that are done."""
    best_rank: float = math.inf
    """Of the best evaluation: the smaller, the better (tasks/task.py)."""
    best_step: int = 0
    stale: int = 0
    """Evaluations since the best one."""


@dataclass(frozen=True)
class Intervals:
    """How often things happen, in steps or, below 1, in a share of an epoch; 0 means at the end of the phase only."""

    evaluate: float
    save: float
    log: int
    """Seconds between two lines of the progress."""


class Watcher(Protocol):
    """Looks at the adapter at the start of a run, at intervals and at the end of every phase, and writes down what it sees."""

    name: str
    """What it writes, in a word."""

    @property
    def every(self) -> float:
        """Between two looks, as in `Intervals`; 0: only at the start and at the ends."""
        ...

    def look(self, phase: str, step: int, direction: PyTree, magnitude: PyTree) -> str:
        """Writes down what it sees; returns a line for the progress, or an empty text."""
        ...

    def truncate(self, phase: str, step: int) -> object:
        """Removes what it wrote from (phase, step) on."""
        ...


class Timer(Protocol):
    """Makes a context around each thing that the loop does, which may time it."""

    def __call__(self, doing: str, phase: Phase, at: PhaseState) -> AbstractContextManager[object]:
        """`doing` is "compile", "step", "evaluate", "save", or "watch" and a watcher's name."""
        ...


def untimed(doing: str, phase: Phase, at: PhaseState) -> AbstractContextManager[object]:
    """The timer of a run that nobody times."""
    return nullcontext()


def whole(phase: Phase) -> Phase:
    """All of a phase."""
    return phase


class Loop:
    """Runs phases; holds the services that a run has one of."""

    def __init__(
        self,
        evaluate: Callable[[PyTree, PyTree], Scores] | None,
        log: MetricsLog,
        checkpoints: Checkpoints,
        intervals: Intervals,
        watchers: Sequence[Watcher] = (),
        *,
        part: Callable[[Phase], Phase] = whole,
        timer: Timer = untimed,
        interrupts: Interrupts | None = None,
    ) -> None:
        """`evaluate` scores (direction, magnitude) on the validation split; None where there is no such split.

        `part` gives the steps of a phase that are compiled and run, such as its first ones. `interrupts` says when to stop.
        """
        self.evaluate, self.log, self.checkpoints, self.intervals = evaluate, log, checkpoints, intervals
        self.watchers, self.part, self.timer = tuple(watchers), part, timer
        self.interrupts = interrupts or Interrupts()
        self.waited = 0.0
        """Seconds that the loop waited for the inputs of a step."""
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the run has been training, over all processes that had a part in it."""
        return time.monotonic() - self._began

    def truncate(self, phase: str, step: int) -> None:
        """Removes what was written from (phase, step) on, before those steps are done again."""
        kept = self.log.truncate(phase, step)
        for watcher in self.watchers:
            watcher.truncate(phase, step)
        self._began = time.monotonic() - (kept[-1].get("seconds", 0.0) if kept else 0.0)

    def run(self, phase: Phase, at: PhaseState) -> PhaseState:
        """Runs the phase from where it stands to its end; patience may end it early. Returns where it stands then."""
        planned, phase = phase, self.part(phase)
        if _over(phase, at):
            return at
        self._stop_if_asked(phase, at)
        inputs = closing(prefetch(phase.inputs, at.step, phase.steps))
        with inputs as ahead, Progress(phase.name, phase.steps, done=at.step, every=self.intervals.log) as progress:
            with self.interrupts.nothing_unsaved():
                with self.timer("compile", planned, at):
                    self._compile(phase, at, progress)
                progress.note(f"{phase.name}: {phase.steps - at.step} steps")
                if phase.run_step(at.step) == 0:
                    self._watch(self.watchers, phase, at, progress)
            for reached in self._steps(phase, at, ahead, progress):
                at = reached
                if _over(phase, at):
                    break
        self._stop_if_asked(phase, at)
        return at

    def _stop_if_asked(self, phase: Phase, at: PhaseState) -> None:
        """Raises Stopped if a signal asked for it; the state is saved by then."""
        if (asked := self.interrupts.asked) is not None:
            raise Stopped(
                f"{self.interrupts.name} after step {at.step} of {phase.name}, which is saved; {self.interrupts.advice}",
                interrupts.status(asked),
            )

    def _compile(self, phase: Phase, at: PhaseState, progress: Progress) -> None:
        """Compiles all that the phase will run, from shapes, before its first step."""
        needed = upcoming(phase.step_shapes, at.step, phase.steps)
        left = [(program, length) for program, length in needed if not program.has(length)]
        kept = "; kept, so the next run need not wait" if are_kept() else ""
        with closing(compile_all(left, at.state)) as compiled:
            while left:
                what = f"{len(left)} of {len(needed)} programs left ({in_words(left)}){kept}"
                with progress.doing(f"{phase.name}: compiling, {what}"):
                    left.remove(next(compiled))
        release_freed_memory()  # LLVM's freed blocks are scattered; no step can use them

    def _steps(
        self, phase: Phase, at: PhaseState, ahead: Iterator[StepInputs], progress: Progress
    ) -> Iterator[PhaseState]:
        reporter = _Reporter(phase, progress, self.log, self.checkpoints, lambda: self.seconds)
        for inputs in self._waited_for(ahead):
            with self.timer("step", phase, at):
                state, metrics = phase.advance(at.state, inputs.batches)
            reporter.add(at.step, inputs, metrics)
            at = at._replace(state=state, step=at.step + 1)
            last = at.step == phase.steps
            self.interrupts.at_step()
            stopping = self.interrupts.asked is not None
            evaluating, saving = (
                last or _due(at.step, phase.interval(every)) for every in (self.intervals.evaluate, self.intervals.save)
            )
            watching = [one for one in self.watchers if last or _due(at.step, phase.interval(one.every))]
            if evaluating or saving or watching or stopping:
                extra = {}
                reporter.check({})
                if evaluating:
                    at, extra = self._evaluated(phase, at, progress)
                reporter.flush(extra)
                over = _over(phase, at)
                self._watch(self.watchers if over else watching, phase, at, progress)
                if saving or over or stopping:
                    self._save(phase, at)
                if stopping:
                    self._stop_if_asked(phase, at)
            yield at

    def _waited_for(self, ahead: Iterator[StepInputs]) -> Iterator[StepInputs]:
        """The inputs of each step; adds the time spent waiting for them to `waited`."""
        while True:
            began = time.monotonic()
            inputs = next(ahead, None)
            self.waited += time.monotonic() - began
            if inputs is None:
                return
            yield inputs

    def _evaluated(self, phase: Phase, at: PhaseState, progress: Progress) -> tuple[PhaseState, dict[str, float]]:
        adapter = phase.adapter_of(at.state)
        if self.evaluate is None:
            return at._replace(best=_copy(adapter)), {}
        with self.timer("evaluate", phase, at):
            found = self.evaluate(*adapter)
        better = found.rank < at.best_rank
        if better or not phase.selects:
            at = at._replace(best=_copy(adapter))
        if better:
            at = at._replace(best_rank=found.rank, best_step=at.step if phase.selects else 0)
        at = at._replace(stale=0 if better else at.stale + 1)
        chosen = "  (best)" if better and phase.selects else ""
        progress.note(f"{phase.name} {at.step}/{phase.steps}  validation {found.in_words}{chosen}")
        return at, {f"evaluation_{name}": value for name, value in found.facts.items() if name not in UNCHANGING}

    def _watch(self, watchers: Sequence[Watcher], phase: Phase, at: PhaseState, progress: Progress) -> None:
        for watcher in watchers:
            with self.timer(f"watch {watcher.name}", phase, at):
                line = watcher.look(phase.name, at.step, *phase.adapter_of(at.state))
            if line:
                progress.note(line)

    def _save(self, phase: Phase, at: PhaseState) -> None:
        """Saves a state that another run can go on from. The loss that was seen is of the parameters before the step."""
        if wrong := _not_finite(at.state):
            raise NotFinite(
                f"after step {at.step} of {phase.name} the state holds NaN or infinity in {', '.join(wrong[:4])}"
                f"{', …' * (len(wrong) > 4)}, though its loss was a number; "
                f"{_last_good(self.checkpoints, phase.run_step(at.step))}; {REMEDY}",
                phase.run_step(at.step),
            )
        info = {"phase": phase.name} | {k: v for k, v in at._asdict().items() if k not in ("state", "best")}
        info["best_rank"] = None if math.isinf(at.best_rank) else at.best_rank
        with self.timer("save", phase, at):
            self.checkpoints.save(phase.run_step(at.step), {"state": at.state, "best": at.best}, info)


def restored(tree: PyTree, info: dict[str, Any]) -> PhaseState:
    """Where the phase of a checkpoint stood, from what `Checkpoints.restore` read."""
    rank = info["best_rank"] if "best_rank" in info else info["best_loss"]  # as older checkpoints call it
    best = math.inf if rank is None else rank
    return PhaseState(tree["state"], tree["best"], info["step"], best, info["best_step"], info["stale"])


def _over(phase: Phase, at: PhaseState) -> bool:
    return at.step >= phase.steps or bool(phase.patience and at.stale >= phase.patience)


class _Reporter:
    """Reads a step's metrics while the next step runs, so that the device never waits for the log."""

    def __init__(
        self, phase: Phase, progress: Progress, log: MetricsLog, checkpoints: Checkpoints, seconds: Callable[[], float]
    ) -> None:
        self.phase, self.progress, self.log, self.checkpoints, self.seconds = phase, progress, log, checkpoints, seconds
        self.pending: tuple[int, StepInputs, dict[str, jax.Array]] | None = None

    def add(self, step: int, inputs: StepInputs, metrics: dict[str, jax.Array]) -> None:
        """Reports the step before, and keeps this one until the next call."""
        self.flush({})
        self.pending = (step, inputs, metrics)

    def check(self, extra: dict[str, float]) -> None:
        """Stops the run if a metric of the pending step, or one of `extra`, is not finite."""
        assert self.pending is not None
        step, inputs, metrics = self.pending
        own = _floats(metrics)
        wrong = {name: value for name, value in (own | extra).items() if not math.isfinite(value)}
        if not wrong:
            return
        self.progress.note("")
        # A step's own numbers are of the state before it, which may be the newest checkpoint; an evaluation is of the one after it.
        ruined = self.phase.run_step(step if wrong.keys() & own.keys() else step + 1)
        raise NotFinite(
            f"{', '.join(f'{name} is {value}' for name, value in wrong.items())} at step {step + 1} of {self.phase.name}, "
            f"on the batch of training records {', '.join(inputs.records)}; "
            f"{_last_good(self.checkpoints, ruined)}; look at those records, {REMEDY}",
            ruined,
        )

    def flush(self, extra: dict[str, float]) -> None:
        """Writes the line of the pending step, with `extra` in it."""
        if self.pending is None:
            return
        self.check(extra)
        step, inputs, metrics = self.pending
        self.pending = None
        values = _floats(metrics)
        self.progress.step(values, inputs.tokens)
        speed = self.progress.speed.tokens_per_second
        self.log.append(
            {"phase": self.phase.name, "step": step + 1, **values, **extra, **self.phase.rates(step)}
            | {
                "tokens": inputs.tokens,
                "tokens_per_second": speed and round(speed, 1),
                "seconds": round(self.seconds(), 3),
            }
        )


REMEDY = "lower the learning rates or set inner.clip, and go on with --resume"


def _last_good(checkpoints: Checkpoints, ruined: int) -> str:
    good = [step for step in checkpoints.steps() if step < ruined]
    return f"the last good checkpoint is {good[-1]}" if good else "there is no good checkpoint before it"


def _not_finite(state: PyTree) -> list[str]:
    """The floating-point arrays of a state that hold NaN or infinity."""
    return [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not jnp.isfinite(leaf).all()
    ]


def _floats(metrics: dict[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(metrics).items()}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _copy(adapter: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
    """A copy in buffers of its own: the next step takes over those of the state, which is donated to it."""
    return jax.tree.map(jnp.copy, adapter)
