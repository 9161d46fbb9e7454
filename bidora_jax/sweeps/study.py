"""The study: which point is next, who runs it, and what it gave. Several processes may share it.

A trial is claimed by the lock of its folder. Asking Optuna for a point, claiming it and telling its result happen under one lock of
the whole sweep, so no trial is lost or doubled:

    complete, pruned or failed     over
    running, its lock held         another process runs it
    running, its lock free         the process that ran it was killed: whoever comes next goes on with it

The draws of trial N depend on the sweep's seed, on N and on the trials before it, and not on how often the sweep was begun.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from bidora_jax.sweeps import locks, space
from bidora_jax.sweeps.plan import DATABASE, LOCK, Plan

if TYPE_CHECKING:
    import optuna

NAME = "sweep"
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
"""Optuna's states by ours; any other is running."""


class Claimed(NamedTuple):
    """A trial that this process runs."""

    number: int
    drawn: dict[str, Any]
    """Labels of choices and numbers, by axis."""
    trial: "optuna.Trial"
    lock: TextIO


class Trial(NamedTuple):
    """What the study knows of a trial."""

    number: int
    state: str
    drawn: dict[str, Any]
    score: float | None
    notes: dict[str, Any]
    """What `Study.tell` was given beside the score."""


@dataclass(frozen=True)
class Study:
    plan: Plan
    held: "optuna.Study"

    @property
    def lock(self) -> Path:
        return self.plan.folder / LOCK

    def claim(self) -> Claimed | None:
        """A trial that nobody runs: one that was begun, or a new one. None where there is none left."""
        import optuna

        with locks.waited_for(self.lock):
            known = self.held.get_trials(deepcopy=False)
            running = [one for one in known if one.state == optuna.trial.TrialState.RUNNING]
            for one in running:
                if (lock := self._taken(one.number)) is not None:
                    self.held.sampler = _sampler(self.plan, one.number)
                    return self._drawn(optuna.trial.Trial(self.held, one._trial_id), lock)
            waiting = [one for one in known if one.state == optuna.trial.TrialState.WAITING]
            if not waiting and len(known) >= self.plan.trials:
                return None
            number = waiting[0].number if waiting else len(known)
            if self.plan.sampler == "grid" and not waiting:
                self.held.enqueue_trial(space.grid(self.plan.axes)[number])
            self.held.sampler = _sampler(self.plan, number)
            trial = self.held.ask()
            lock = self._taken(trial.number)
            assert lock is not None, f"trial {trial.number} is new, and another process holds it"
            return self._drawn(trial, lock)

    def _taken(self, number: int) -> TextIO | None:
        folder = self.plan.run_folder(number, 0).parent
        folder.mkdir(parents=True, exist_ok=True)
        return locks.taken(folder / LOCK)

    def _drawn(self, trial: "optuna.Trial", lock: TextIO) -> Claimed:
        """The point of a trial. What it drew before it was killed, it draws again."""
        drawn: dict[str, Any] = {}
        for axis in self.plan.axes:
            if axis.scale == "choice":
                drawn[axis.name] = trial.suggest_categorical(axis.name, axis.labels)
            elif axis.whole:
                drawn[axis.name] = trial.suggest_int(axis.name, int(axis.low), int(axis.high), log=axis.scale == "log")
            else:
                drawn[axis.name] = trial.suggest_float(axis.name, axis.low, axis.high, log=axis.scale == "log")
        return Claimed(trial.number, drawn, trial, lock)

    def prunes(self, claimed: Claimed, seed: int, mean: float) -> bool:
        """Whether the trial is to stop after this seed: its mean is worse than the median of the others' at the same seed."""
        if not self.plan.prune:
            return False
        with locks.waited_for(self.lock), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the seed was reported by a process that was killed
            claimed.trial.report(mean, seed)
            return claimed.trial.should_prune()

    def tell(self, claimed: Claimed, score: float | None, *, pruned: bool = False, **notes: Any) -> None:
        """Ends a trial; without a score it has failed."""
        import optuna

        state = optuna.trial.TrialState
        with locks.waited_for(self.lock):
            for name, value in notes.items():
                claimed.trial.set_user_attr(name, value)
            if pruned or score is None:
                self.held.tell(claimed.trial, state=state.PRUNED if pruned else state.FAIL)
            else:
                self.held.tell(claimed.trial, score)
        claimed.lock.close()

    def trials(self) -> list[Trial]:
        """All trials in their order."""
        return [
            Trial(one.number, STATES.get(one.state.name, "running"), dict(one.params), one.value, dict(one.user_attrs))
            for one in self.held.get_trials(deepcopy=False)
        ]


@contextmanager
def opened(plan: Plan) -> Iterator[Study]:
    """The study of a sweep whose folder is there; made where it is not."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with locks.waited_for(plan.folder / LOCK):  # two processes would both make its tables
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{plan.folder / DATABASE}", engine_kwargs={"connect_args": {"timeout": 60}}
        )
        held = optuna.create_study(
            storage=storage, study_name=NAME, direction="maximize" if plan.higher else "minimize", load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=0),
        )  # fmt: skip
    try:
        yield Study(plan, held)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _sampler(plan: Plan, number: int) -> "optuna.samplers.BaseSampler":
    import optuna

    seed = (plan.base.seed * 1_000_003 + number) % 2**32
    if plan.sampler != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        # Optuna calls the liar an experiment: points that others are running count as bad ones, so that two processes part.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def best(trials: Sequence[Trial], *, higher: bool) -> Trial | None:
    """The best complete trial; of equal ones the first."""
    sign = -1 if higher else 1
    ranks = [(sign * one.score, one.number, one) for one in trials if one.state == "complete" and one.score is not None]
    return min(ranks)[2] if ranks else None
