"""What a sweep leaves: a table, results.csv, results.json, sweep.html, and the best point as a configuration of `train`.

best.json is the configuration of the best trial's first seed, whole; best.yaml has only what differs from the defaults. Both name
the test records, which no run of the sweep has read, so `train` answers and scores them. test.json holds the scores of the best
trial's runs on them. They are computed once, for the trial that the judging records have chosen.
"""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidora_jax.config import Config, leaves, to_json
from bidora_jax.machine.files import write_whole
from bidora_jax.runs.folder import run_config
from bidora_jax.sweeps import judging
from bidora_jax.sweeps.plan import Plan
from bidora_jax.sweeps.study import Trial, best
from bidora_jax.sweeps.trials import spread

if TYPE_CHECKING:
    from bidora_jax.runs.sharing import Shared

METHOD = "adapter.method"
FILLED_IN = ("adapter.preset", "output_dir")
"""Settings that best.yaml leaves out: a preset fills in what is not set, and all that it gave is written out."""


def outcome(plan: Plan, known: Sequence[Trial]) -> dict[str, Any]:
    """The sweep as JSON: what results.json holds and the page is made from."""
    found = best(known, higher=plan.higher)
    judge = plan.records.judge
    return {
        "name": plan.folder.name,
        "metric": plan.metric,
        "higher_is_better": plan.higher,
        "judge": judge if isinstance(judge, str) else ", ".join(judge),
        "budget": plan.asked["budget"],
        "sampler": plan.sampler,
        "seeds": plan.seeds,
        "wanted": plan.trials,
        "axes": [
            {"name": axis.name, "scale": axis.scale, "labels": list(axis.labels), "low": axis.low, "high": axis.high}
            for axis in plan.axes
        ],
        "trials": [_trial(plan, one) for one in known],
        "best": None if found is None else found.number,
        "best_by_method": _by_method(plan, known),
        "test": None,
    }


def _trial(plan: Plan, one: Trial) -> dict[str, Any]:
    notes = {"scores": [], "metrics": {}, "steps": [0, 0], "tokens": None, "seconds": None, "error": ""} | one.notes
    score = statistics.fmean(notes["scores"]) if notes["scores"] else None
    values = {axis.name: one.drawn.get(axis.name) for axis in plan.axes}
    return {"number": one.number, "state": one.state, "method": _method(plan, one), "values": values, "score": score,
            "sd": spread(notes["scores"]), **notes}  # fmt: skip


def _method(plan: Plan, one: Trial) -> str:
    return one.drawn.get(METHOD, plan.base.adapter.method)


def _by_method(plan: Plan, known: Sequence[Trial]) -> dict[str, int]:
    """The number of each method's best trial."""
    methods = dict.fromkeys(_method(plan, one) for one in known)
    found = {
        method: best([one for one in known if _method(plan, one) == method], higher=plan.higher) for method in methods
    }
    return {method: one.number for method, one in found.items() if one is not None}


def finish(plan: Plan, found: dict[str, Any], shared: "Shared") -> dict[str, Any]:
    """Writes all files and prints the table."""
    from bidora_jax.reporting import sweep

    if found["best"] is not None:
        found = found | {"test": _test(plan, found["best"], shared)}
        config = best_config(plan, found["best"])
        write_whole(plan.folder / "best.json", to_json(config))
        write_whole(plan.folder / "best.yaml", to_yaml(config))
    write_whole(plan.folder / "results.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    write_whole(plan.folder / "results.csv", to_csv(found))
    write_whole(plan.folder / "sweep.html", sweep.render(found))
    print("\n".join(sweep.table(found)))
    if found["best"] is not None:
        print(f"best: trial {found['best']}; python -m bidora_jax.train --config {plan.folder / 'best.json'} trains it")
    print(f"{plan.folder / 'sweep.html'} shows it, {plan.folder / 'results.csv'} holds it")
    return found


def best_config(plan: Plan, number: int) -> Config:
    """The configuration with which `train` makes the trial's first run again, on to the test records."""
    config, base = run_config(str(plan.run_folder(number, 0))), plan.base
    return replace(
        config, output_dir=str(plan.folder / "best"), report=base.report, merged=base.merged, tensorboard=base.tensorboard,
        wandb=base.wandb, samples=base.samples, data=replace(config.data, test_file=plan.records.test),
    )  # fmt: skip


def _test(plan: Plan, number: int, shared: "Shared") -> dict[str, Any] | None:
    """Scores of a trial's runs on the test records; None where there are none. What was computed before is read."""
    kept: Path = plan.folder / "test.json"
    if not plan.records.test:
        return None
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    if known.get("trial") != number:
        runs = [plan.run_folder(number, seed) for seed in range(plan.seeds)]
        found = [judging.scores(run, plan.records.test, plan.base.data, shared) for run in runs]
        scores = [one[plan.metric] for one in found]
        known = {"trial": number, "metric": plan.metric, "score": statistics.fmean(scores), "sd": spread(scores),
                 "scores": scores, "metrics": found}  # fmt: skip
        write_whole(kept, json.dumps(known, indent=2) + "\n")
    return known


def to_csv(found: dict[str, Any]) -> str:
    """A row a trial."""
    axes = [axis["name"] for axis in found["axes"]]
    metrics = list(dict.fromkeys(name for one in found["trials"] for name in one["metrics"]))
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow([
        "trial", "state", *axes, "score", "sd", "seeds", *(f"score_{seed}" for seed in range(found["seeds"])),
        *(f"mean_{name}" for name in metrics), "search_steps", "retrain_steps", "gradient_tokens", "seconds", "error",
    ])  # fmt: skip
    for one in found["trials"]:
        scores = [*one["scores"], *[None] * (found["seeds"] - len(one["scores"]))]
        rows.writerow([
            one["number"], one["state"], *(one["values"][name] for name in axes), one["score"], one["sd"], len(one["scores"]),
            *scores, *(one["metrics"].get(name) for name in metrics), *one["steps"], one["tokens"], one["seconds"],
            " ".join(one["error"].split()),
        ])  # fmt: skip
    return stream.getvalue()


def to_yaml(config: Config) -> str:
    """The settings that differ from the defaults, by section. Values are written as JSON, which YAML reads."""
    defaults, sections = dict(leaves(Config())), {}
    for name, value in leaves(config):
        differs = value != defaults[name] or name == "outer.learning_rate"  # which follows another where it is not set
        if differs and name not in FILLED_IN:
            section, _, leaf = name.rpartition(".")
            sections.setdefault(section, []).append(f"{leaf}: {json.dumps(value, ensure_ascii=False)}")
    lines = [f"output_dir: {json.dumps(config.output_dir)}", *sections.pop("", [])]
    for section, own in sections.items():
        lines += [f"{section}:", *(f"  {line}" for line in own)]
    return "\n".join(lines) + "\n"


def written(value: Any) -> str:
    """A value of an axis, for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
