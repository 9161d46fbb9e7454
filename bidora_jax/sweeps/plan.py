"""A sweep before it runs: everything is read and checked, and nothing is written. Then what the folder holds:

sweep.json      what was asked for; a sweep that goes on must ask for the same, but for --trials
study.db        Optuna's study
data/           train.jsonl and judge.jsonl, where data.val_fraction split them
trials/N/       seed-0, seed-1, …: run folders as `train` leaves them, each with judged.json and seed-K.log beside it
results.csv, results.json, sweep.html, best.json, best.yaml, test.json      at the end
"""

import dataclasses
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from bidora_jax.config import Config, parse_call
from bidora_jax.data.settings import DataConfig
from bidora_jax.errors import InputError, did_you_mean, listing
from bidora_jax.machine.files import write_whole
from bidora_jax.runs.checks import check_config
from bidora_jax.sweeps import budget as budgets
from bidora_jax.sweeps import locks, records, space
from bidora_jax.sweeps.budget import Budget
from bidora_jax.sweeps.records import Records
from bidora_jax.sweeps.space import Axis

Sampler = Literal["auto", "tpe", "random", "grid"]
"""auto: grid where every axis is a choice, else tpe."""
Task = tuple[str, tuple[str, ...]]
"""The task's type, and the names of its labels."""
SWEEP, LOCK, DATABASE = "sweep.json", ".lock", "study.db"
TRIALS = 20
"""Points where nobody says how many and the sampler is no grid."""


class Request(NamedTuple):
    """What is asked for, as the command line has it."""

    config: str
    over: tuple[str, ...]
    output_dir: str
    trials: int = 0
    seeds: int = 3
    metric: str = "auto"
    budget: str = ""
    sampler: str = "auto"
    prune: bool = False
    judge_file: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A sweep that can begin."""

    folder: Path
    config: str
    """The configuration file."""
    base: Config
    """What it says without any axis."""
    axes: tuple[Axis, ...]
    trials: int
    seeds: int
    metric: str
    higher: bool
    """Whether more of the metric is better."""
    budget: Budget | None
    sampler: Sampler
    prune: bool
    records: Records
    asked: dict[str, Any]
    """What sweep.json holds."""
    notes: tuple[str, ...] = ()
    """What a user should know of the records."""

    def run_folder(self, trial: int, seed: int) -> Path:
        """That of a trial's run, by the number of the trial and of the seed, both from 0."""
        return self.folder / "trials" / str(trial) / f"seed-{seed}"


def make(request: Request) -> Plan:
    """InputError for whatever is wrong; nothing is written."""
    _check(request)
    folder = Path(request.output_dir).expanduser()
    base, _ = parse_call(request.config, {})
    axes = space.read(request.over, request.config)
    chosen = records.chosen(base, request.judge_file, folder)
    if chosen.divided and "data.train_file" in [axis.name for axis in axes]:
        raise InputError("--over data.train_file needs judging records of their own: give them as --judge-file")
    ranges = [axis.name for axis in axes if axis.scale != "choice"]
    sampler: Any = ("tpe" if ranges else "grid") if request.sampler == "auto" else request.sampler
    if sampler == "grid" and ranges:
        raise InputError(
            f"--sampler grid needs values, and {', '.join(ranges)} is a range: list them, or take tpe or random"
        )
    asked = {
        "config": dataclasses.asdict(replace(base, output_dir="")), "over": list(request.over), "seeds": request.seeds,
        "metric": request.metric, "budget": request.budget, "sampler": sampler, "prune": request.prune,
        "judge_file": list(request.judge_file),
    }  # fmt: skip
    asked = json.loads(json.dumps(asked))
    _check_folder(folder, asked)
    checked = _checked_configs(request.config, base, axes, chosen)
    points = TRIALS if ranges else len(space.grid(axes))
    wanted = min(request.trials or points, points) if sampler == "grid" else request.trials or points
    plan = Plan(
        folder, request.config, base, axes, wanted, request.seeds, "loss", False, budgets.read(request.budget), sampler,
        request.prune, chosen, asked,
    )  # fmt: skip
    named = base.search.metric if request.metric == "auto" else request.metric
    task, notes = _read(plan, checked)
    metric, higher = _metric(named, task)
    return replace(plan, metric=metric, higher=higher, notes=tuple(notes))


def begin(plan: Plan) -> None:
    """Makes the folder, once."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    with locks.waited_for(plan.folder / LOCK):
        if not (plan.folder / SWEEP).is_file():
            write_whole(plan.folder / SWEEP, json.dumps(plan.asked, indent=2, ensure_ascii=False) + "\n")
        files = [Path(str(file)) for file in (plan.records.train, plan.records.judge)]
        if plan.records.divided and not all(file.is_file() for file in files):
            files[0].parent.mkdir(exist_ok=True)
            for file, rows in zip(files, records.divided(plan.base), strict=True):
                write_whole(file, rows)


def _check(request: Request) -> None:
    """Refuses values out of bounds, all in one message."""
    r = request
    checks = {
        "name the configuration that the sweep starts from with --config FILE": not r.config,
        "name the folder of the sweep with --output-dir DIR": not r.output_dir,
        f"--trials must be at least 1, or 0 to be chosen, found {r.trials}": r.trials < 0,
        f"--seeds must be at least 1, found {r.seeds}": r.seeds < 1,
        f"--sampler must be one of {', '.join(get_args(Sampler))}, found {r.sampler!r}": r.sampler not in get_args(Sampler),
        "--prune stops a point between its seeds, and there is one seed: leave it out, or ask for more --seeds":
            r.prune and r.seeds == 1,
    }  # fmt: skip
    wrong = [message for message, found in checks.items() if found]
    try:
        budgets.read(r.budget)
    except InputError as error:
        wrong.append(str(error))
    if wrong:
        raise InputError("\n".join(wrong))
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise InputError("sweep needs the package optuna: pip install 'bidora_jax[sweep]'") from None


def _check_folder(folder: Path, asked: dict[str, Any]) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"--output-dir {folder} is a file; name a folder")
    if not (folder / SWEEP).is_file():
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise InputError(f"--output-dir {folder} is not empty, and holds no sweep: choose another folder")
        return
    held: Any = None
    with suppress(ValueError):
        held = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
    if not isinstance(held, dict):
        raise InputError(f"{folder / SWEEP} is none that this program wrote: choose another folder with --output-dir")
    before, now = dict(_flat(held)), dict(_flat(asked))
    changed = [
        f"{name}: {before.get(name)!r} → {now.get(name)!r}"
        for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)
    ]  # fmt: skip
    if changed:
        raise InputError(
            f"{folder} holds another sweep, which differs from this one:\n{listing(changed)}\nit goes on with the command that "
            "began it, and with more --trials; choose another folder with --output-dir"
        )


def _flat(value: Any, name: str = "") -> Any:
    if not isinstance(value, dict):
        yield name, value
        return
    for key, item in value.items():
        yield from _flat(item, f"{name}.{key}" if name else key)


def _checked_configs(path: str, base: Config, axes: Sequence[Axis], chosen: Records) -> list[Config]:
    """A run's configuration for each method of the sweep. InputError for an end of an axis that no method can be run with."""
    by_name = {axis.name: axis for axis in axes}
    methods = by_name["adapter.method"].values if "adapter.method" in by_name else (base.adapter.method,)
    first = {axis.name: axis.ends[0] for axis in axes}
    found = []
    for axis in axes:
        for value in axis.ends:
            problems = []
            for method in methods:
                own = {"adapter.method": method} if "adapter.method" in by_name else {}
                point = {**first, **own, axis.name: value}
                config = records.of_run(chosen, parse_call(path, point)[0])
                try:
                    check_config(config)
                except InputError as error:
                    problems.append(error)
                else:
                    found.append(config)
            if len(problems) == len(methods) or (problems and axis.name == "adapter.method"):
                raise InputError(f"--over {axis.name} {value}: {problems[0]}")
    return list({one.adapter.method: one for one in reversed(found)}.values())


def _read(plan: Plan, configs: Sequence[Config]) -> tuple[Task, list[str]]:
    """Reads all records once, as the runs will, and checks that a budget of tokens is large enough. The task, and what a user
    should know of copies."""
    data = replace(plan.base.data, buckets=1, padded_lengths=(), test_limit=0)
    kept, judge, test = plan.base.data, plan.records.judge, plan.records.test
    if not plan.records.divided:
        data = replace(data, val_file="", val_fraction=0.0, group_column="") if plan.records.apart else data
    kind, notes = _read_one(plan.base, replace(data, test_file="" if plan.records.divided else judge))
    copies = [note.replace("are in test too", "judge too") for note in notes if note.startswith("duplicates: ")]
    if test:
        _read_one(plan.base, replace(data, test_file=test))
    if plan.budget is not None and plan.budget.kind == "tokens":
        for config in configs:
            config = replace(config, data=replace(kept, test_file="")) if plan.records.divided else config
            found = budgets.sizes(config)
            budgets.within(plan.budget.amount, budgets.planned(config, found), budgets.costs(config, found))
    return kind, copies


def _read_one(base: Config, data: DataConfig) -> tuple[Task, list[str]]:
    """The task, and what a user should know of the records."""
    from bidora_jax.runs import assembly

    config = replace(base, data=data)
    labelled = assembly.read_labelled_data(config)
    if labelled is None:
        return ("language_modeling", ()), assembly.read_data(config).ready.notes
    return (labelled.labels.type, tuple(labelled.labels.names)), labelled.notes


def _metric(name: str, task: Task) -> tuple[str, bool]:
    """The metric, and whether more of it is better. InputError where the task has none of that name."""
    from bidora_jax.tasks import metric_names

    kind, labels = task
    if kind == "language_modeling":
        known = ("loss", "accuracy")
        if name not in ("auto", *known):
            raise InputError(
                f"--metric {name}: a language model has {' and '.join(known)}, accuracy being the share of right tokens"
                f"{did_you_mean(name, known)}"
            )
        return ("loss", False) if name == "auto" else (name, name == "accuracy")
    if name == "loss":
        return name, False
    if name == "auto":
        found = metric_names.default(kind, labels)
    else:
        try:
            found = metric_names.named(name, kind)
        except InputError as error:
            raise InputError(f"--metric {name}: {error}, and loss") from None
    return found.name, found.higher_is_better
