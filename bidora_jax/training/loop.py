"""The one training loop: runs a phase step by step, evaluates, keeps the best, saves, and stops on a loss that is no number.

A `Phase` says what a step is; the loop knows neither methods nor models. All that has to survive a kill is in `Standing`,
which is what a checkpoint holds; everything else is a pure function of the configuration and the step.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bidora_jax.data.batches import prefetch
from bidora_jax.errors import RunError
from bidora_jax.machine.allocator import release_freed_memory
from bidora_jax.training.checkpoint import Checkpoints
from bidora_jax.training.compiled_steps import StepShape, upcoming
from bidora_jax.training.metrics_log import MetricsLog
from bidora_jax.training.progress import Progress


class StepInputs(NamedTuple):
    """What one step trains on, made on the host ahead of time."""

    batches: Any
    tokens: int
    """Real tokens, padding aside."""
    records: list[str]
    """Places of the training records, for messages."""


@dataclass(frozen=True)
class Phase:
    """One phase of training."""

    name: str
    steps: int
    first_checkpoint: int
    """Number of the checkpoint before step 0; numbers grow over all phases."""
    work: Callable[[int], StepInputs]
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


class PhaseState(NamedTuple):
    """Where a phase stands."""

    state: Any
    best: tuple[PyTree, PyTree]
    """The (direction, magnitude) that the phase will hand on."""
    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    stale: int = 0
    """Evaluations since the best one."""


@dataclass(frozen=True)
class Intervals:
    """How often things happen, in steps; 0 means at the end of the phase only."""

    evaluate: int
    save: int
    log: int


class Watcher(Protocol):
    """Looks at the adapter now and then, at the start of a run and at the end of every phase, and writes down what it sees."""

    every: int
    """Steps between two looks; 0: only at the start and at the ends."""

    def look(self, phase: str, step: int, direction: PyTree, magnitude: PyTree) -> str:
        """What to say of it in the progress; nothing if it is empty."""
        ...

    def truncate(self, phase: str, step: int) -> object:
        """Forgets what it saw from (phase, step) on."""
        ...


class Loop:
    """Runs phases; holds the services that a run has one of."""

    def __init__(
        self,
        evaluate: Callable[[PyTree, PyTree], float] | None,
        log: MetricsLog,
        checkpoints: Checkpoints,
        rhythm: Intervals,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        """`evaluate` maps (direction, magnitude) to the validation loss; None where there is no validation split."""
        self.evaluate, self.log, self.checkpoints, self.rhythm = evaluate, log, checkpoints, rhythm
        self.watchers = tuple(watchers)
        self.waited = 0.0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the run has been training, over all processes that had a part in it."""
        return time.monotonic() - self._began

    def truncate(self, phase: str, step: int) -> None:
        """Forgets what was written from (phase, step) on, before it is done again."""
        kept = self.log.truncate(phase, step)
        for watcher in self.watchers:
            watcher.truncate(phase, step)
        self._began = time.monotonic() - (kept[-1].get("seconds", 0.0) if kept else 0.0)

    def run(self, phase: Phase, standing: PhaseState) -> PhaseState:
        """From where the phase stands to its end, early or not."""
        if self._over(phase, standing):
            return standing
        batches = closing(prefetch(phase.work, standing.step, phase.steps))
        with batches as work, Progress(phase.name, phase.steps, done=standing.step, every=self.rhythm.log) as progress:
            self._compile(phase, standing, progress)
            progress.note(f"{phase.name}: {phase.steps - standing.step} steps")
            if not phase.first_checkpoint + standing.step:
                self._watch(self.watchers, phase, standing, progress)
            for reached in self._steps(phase, standing, work, progress):
                standing = reached
                if self._over(phase, standing):
                    break
        return standing

    def _compile(self, phase: Phase, standing: PhaseState, progress: Progress) -> None:
        """Compiles all that the phase will run, from shapes, before its first step."""
        step_shapes = upcoming(phase.step_shapes, standing.step, phase.steps)
        for number, (program, length) in enumerate(step_shapes, 1):
            which = ", ".join(filter(None, (program.name, f"T = {length}")))
            with progress.doing(f"{phase.name}: compiling {number} of {len(step_shapes)} shapes ({which})"):
                program.compile(standing.state, length)
        release_freed_memory()  # what LLVM left is in pieces, and of no use to the steps

    def _steps(self, phase: Phase, standing: PhaseState, batches: Iterator[StepInputs], progress: Progress):
        reporter = _Reporter(phase, progress, self.log, self.checkpoints, lambda: self.seconds)
        for work in self._timed(batches):
            step = standing.step
            state, metrics = phase.advance(standing.state, work.batches)
            reporter.add(step, work, metrics)
            standing = standing._replace(state=state, step=step + 1)
            last = standing.step == phase.steps
            evaluating, saving = (
                last or _due(standing.step, every) for every in (self.rhythm.evaluate, self.rhythm.save)
            )
            watching = [watcher for watcher in self.watchers if last or _due(standing.step, watcher.every)]
            if evaluating or saving or watching:
                extra = {}
                reporter.check({})
                if evaluating:
                    standing, extra = self._evaluated(phase, standing, progress)
                reporter.flush(extra)
                over = self._over(phase, standing)
                self._watch(self.watchers if over else watching, phase, standing, progress)
                if saving or over:
                    self._save(phase, standing)
            yield standing

    def _timed(self, batches: Iterator[StepInputs]) -> Iterator[StepInputs]:
        """The batches, with the time that is spent waiting for them kept."""
        while True:
            began = time.monotonic()
            work = next(batches, None)
            self.waited += time.monotonic() - began
            if work is None:
                return
            yield work

    def _over(self, phase: Phase, standing: PhaseState) -> bool:
        return standing.step >= phase.steps or bool(phase.patience and standing.stale >= phase.patience)

    def _evaluated(self, phase: Phase, standing: PhaseState, progress: Progress) -> tuple[PhaseState, dict[str, float]]:
        adapter = phase.adapter_of(standing.state)
        if self.evaluate is None:
            return standing._replace(best=_copy(adapter)), {}
        loss = self.evaluate(*adapter)
        better = loss < standing.best_loss
        if better or not phase.selects:
            standing = standing._replace(best=_copy(adapter))
        if better:
            standing = standing._replace(best_loss=loss, best_step=standing.step, stale=0)
        else:
            standing = standing._replace(stale=standing.stale + 1)
        chosen = "  (best)" if better and phase.selects else ""
        progress.note(f"{phase.name} {standing.step}/{phase.steps}  validation loss {loss:.4f}{chosen}")
        return standing, {"evaluation_loss": loss}

    def _watch(self, watchers: Sequence[Watcher], phase: Phase, standing: PhaseState, progress: Progress) -> None:
        for watcher in watchers:
            if said := watcher.look(phase.name, standing.step, *phase.adapter_of(standing.state)):
                progress.note(said)

    def _save(self, phase: Phase, standing: PhaseState) -> None:
        info = {"phase": phase.name} | {k: v for k, v in standing._asdict().items() if k not in ("state", "best")}
        info["best_loss"] = None if math.isinf(standing.best_loss) else standing.best_loss
        tree = {"state": standing.state, "best": standing.best}
        self.checkpoints.save(phase.first_checkpoint + standing.step, tree, info)


def restored(tree: PyTree, info: dict[str, Any]) -> PhaseState:
    """The standing that a checkpoint holds."""
    best_loss = math.inf if info["best_loss"] is None else info["best_loss"]
    return PhaseState(tree["state"], tree["best"], info["step"], best_loss, info["best_step"], info["stale"])


class _Reporter:
    """Reads a step's metrics while the next step runs, so that the device never waits for the log."""

    def __init__(
        self, phase: Phase, progress: Progress, log: MetricsLog, checkpoints: Checkpoints, seconds: Callable[[], float]
    ) -> None:
        self.phase, self.progress, self.log, self.checkpoints, self.seconds = phase, progress, log, checkpoints, seconds
        self.pending: tuple[int, StepInputs, dict[str, jax.Array]] | None = None

    def add(self, step: int, work: StepInputs, metrics: dict[str, jax.Array]) -> None:
        self.flush({})
        self.pending = (step, work, metrics)

    def check(self, extra: dict[str, float]) -> None:
        """Stops the run if a metric of the pending step, or one of `extra`, is not finite."""
        assert self.pending is not None
        step, work, metrics = self.pending
        wrong = {name: value for name, value in (_floats(metrics) | extra).items() if not math.isfinite(value)}
        if not wrong:
            return
        self.progress.note("")
        kept = self.checkpoints.latest()
        raise RunError(
            f"{', '.join(f'{name} is {value}' for name, value in wrong.items())} at step {step + 1} of {self.phase.name}, "
            f"on the batch of training records {', '.join(work.records)}; "
            + (f"the last good checkpoint is {kept}" if kept is not None else "no checkpoint was made before it")
            + "; look at those records, lower the learning rates or set inner.clip"
        )

    def flush(self, extra: dict[str, float]) -> None:
        if self.pending is None:
            return
        self.check(extra)
        step, work, metrics = self.pending
        self.pending = None
        values = _floats(metrics)
        self.progress.step(values["train_loss"], work.tokens)
        speed = self.progress.speed.tokens_per_second
        self.log.append(
            {"phase": self.phase.name, "step": step + 1, **values, **extra, **self.phase.rates(step)}
            | {
                "tokens": work.tokens,
                "tokens_per_second": speed and round(speed, 1),
                "seconds": round(self.seconds(), 3),
            }
        )


def _floats(metrics: dict[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(metrics).items()}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _copy(adapter: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
    """The state's buffers are donated to the next step; what is kept has its own."""
    return jax.tree.map(jnp.copy, adapter)
