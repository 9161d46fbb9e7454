"""Whether a run that is resumed may have more epochs or steps than it began with: where the steps that are done stay what they are.

A rate that depends on the number of steps (a decay, a warmup) would have been another one from the first step on. The order of the
data, the dropout and the start depend on the step alone.
"""

from pathlib import Path

from bidora_jax.config import Config, leaves
from bidora_jax.errors import InputError, listing

LENGTHS = ("search.epochs", "search.steps", "retrain.epochs", "retrain.steps")


def changed(old: Config, new: Config) -> list[str]:
    """Which lengths differ."""
    before, after = dict(leaves(old)), dict(leaves(new))
    return [name for name in LENGTHS if before[name] != after[name]]


def check(folder: Path, old: Config, new: Config) -> None:
    """InputError with the reason for each changed length that would make the steps that are done other ones."""
    before, after = dict(leaves(old)), dict(leaves(new))
    wrong = []
    for name in changed(old, new):
        phase = name.partition(".")[0]
        reasons = [f"it can only grow, found {after[name]:g}"] * (after[name] < before[name]) + _rates(old, phase)
        if not before[name]:
            reasons = [f"the run began with {phase}.{'epochs' if name.endswith('steps') else 'steps'}: change that"]
        if phase == "search" and _phase_reached(folder) == "retrain":
            reasons.append("the search has ended, and retrain stands on what it found")
        wrong += [f"{name} {before[name]:g} → {after[name]:g}: {reason}" for reason in reasons]
    if wrong:
        raise InputError(
            f"the run in {folder} can't be lengthened:\n{listing(wrong)}\nto train on from its adapter, start a new run with "
            f"--adapter.path {folder / 'adapter'} and another --output-dir"
        )


def _rates(config: Config, phase: str) -> list[str]:
    """Why the learning rates of a phase depend on its number of steps."""
    levels = ["inner", "outer"] if phase == "search" and config.adapter.method == "bidora" else ["inner"]
    found = []
    for level in levels:
        settings = getattr(config, level)
        if settings.schedule != "constant":
            found.append(f"{level}.schedule {settings.schedule} decays over the planned steps; only constant is exact")
        if settings.warmup:
            found.append(f"{level}.warmup is {settings.warmup:g} of the planned steps; only 0 is exact")
    return found


def _phase_reached(folder: Path) -> str:
    """The phase of the newest checkpoint; empty where there is none."""
    from bidora_jax.training.checkpoint import Checkpoints

    with Checkpoints(folder / "checkpoints", None) as checkpoints:
        latest = checkpoints.latest()
        return "" if latest is None else checkpoints.part(latest, lambda path: False)[1]["phase"]
