"""One trial: a point of settings, trained with each seed through the ordinary run code, and judged.

    trials/N/seed-K/             the run folder, as `train` leaves it
    trials/N/seed-K.log          what the run printed
    trials/N/seed-K/judged.json  its scores on the judging records, its time, its steps

A seed that has judged.json is done. One that was begun goes on from its last checkpoint, bit for bit.
"""

import json
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from bidora_jax.config import Config, parse_call, settled
from bidora_jax.errors import InputError
from bidora_jax.machine.files import write_whole
from bidora_jax.runs.checks import SETTLED
from bidora_jax.runs.folder import run_config
from bidora_jax.sweeps import budget, judging, records, timing, training
from bidora_jax.sweeps.plan import Plan

if TYPE_CHECKING:
    from bidora_jax.runs.sharing import Shared

JUDGED = "judged.json"


class Result(NamedTuple):
    """What a trial gave."""

    scores: list[float]
    """Of the metric, a seed each."""
    metrics: dict[str, float]
    """The mean of each metric over the seeds."""
    steps: list[int]
    """Of the search and of the retrain."""
    tokens: int
    """Gradient tokens of a run (budget.py)."""
    seconds: float
    """Mean training time of a run."""
    pruned: bool

    @property
    def score(self) -> float:
        return statistics.fmean(self.scores)

    @property
    def sd(self) -> float | None:
        return spread(self.scores)


def run(
    plan: Plan, number: int, values: Mapping[str, Any], shared: "Shared", prunes: Callable[[int, float], bool]
) -> Result:
    """Trains and judges the point with every seed; `prunes` says after a seed, by the mean so far, whether that is enough."""
    config = of_point(plan, values)
    sizes = budget.sizes(config)
    if plan.budget is not None:
        asked = budget.planned(config, sizes)
        if plan.budget.kind == "tokens":
            cost = budget.costs(config, sizes)
        else:
            cost = timing.seconds_of_steps(plan.folder, config, values, asked, shared)
        config = budget.with_steps(config, budget.within(plan.budget.amount, asked, cost))
    found: list[dict[str, Any]] = []
    pruned = False
    for seed in range(plan.seeds):
        found.append(_judged(plan, config, (number, seed), shared))
        if pruned := seed + 1 < plan.seeds and prunes(seed, statistics.fmean(_scores(plan, found))):
            break
    measured = [one["metrics"] for one in found]
    floats = [name for name, value in measured[0].items() if isinstance(value, float)]
    names = [name for name in floats if all(name in one for one in measured)]
    metrics = {name: statistics.fmean(one[name] for one in measured) for name in names}
    steps = budget.planned(config, sizes)
    return Result(
        _scores(plan, found), metrics, [int(steps.search), int(steps.retrain)], budget.spent(config, sizes),
        statistics.fmean(one["seconds"] for one in found), pruned,
    )  # fmt: skip


def of_point(plan: Plan, values: Mapping[str, Any]) -> Config:
    """The configuration of a point's runs, but for seed, folder and the lengths that a budget gives."""
    config, _ = parse_call(plan.config, values)
    return replace(
        records.of_run(plan.records, config), report=False, merged=False, tensorboard=False, wandb="",
        samples=replace(config.samples, every=0),
    )  # fmt: skip


def spread(scores: list[float]) -> float | None:
    """The standard deviation over the seeds; None of one."""
    return statistics.stdev(scores) if len(scores) > 1 else None


def _scores(plan: Plan, found: list[dict[str, Any]]) -> list[float]:
    scores = [one["metrics"].get(plan.metric) for one in found]
    if any(score is None or not math.isfinite(score) for score in scores):
        raise InputError(f"{plan.metric} of the judging records is not defined for what this run says of them")
    return scores


def _judged(plan: Plan, config: Config, place: tuple[int, int], shared: "Shared") -> dict[str, Any]:
    """The scores of a trial's run; `place` is the number of the trial and of the seed."""
    folder = plan.run_folder(*place)
    if (folder / JUDGED).is_file():
        return json.loads((folder / JUDGED).read_text(encoding="utf-8"))
    first = plan.run_folder(place[0], 0) / "config.json"
    if place[1] and first.is_file():  # what it has chosen for auto, so that all seeds have the same programs
        config = settled(config, run_config(str(first.parent)), SETTLED)
    with training.logged(folder):
        training.train(replace(config, seed=plan.base.seed + place[1]), folder, shared)
        scores = judging.scores(folder, plan.records.judge, plan.base.data, shared)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = {"metrics": scores, "seconds": json.loads(lines[-1])["seconds"], "steps": len(lines)}
    write_whole(folder / JUDGED, json.dumps(found, indent=2) + "\n")
    return found
