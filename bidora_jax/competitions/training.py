"""Trains the folds of a competition, one after the other, over one base.

    folds/settings.json            steps and padded lengths, which all folds share: their programs are compiled once; and a checksum
                                   of the rows
    folds/0, folds/1, …            the run folder of each fold, as `train` leaves it
    folds/0/predictions.safetensors    what its adapter says of the rows it has not seen, and of the test rows

A fold that has predictions is done. One that was begun goes on from its last checkpoint, bit for bit. With BiDoRA a fold's
validation records are split off its own training rows, and no fold chooses a step by the rows that are held out.
"""

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bidora_jax.competitions import inputs
from bidora_jax.competitions.plan import Plan
from bidora_jax.errors import InputError
from bidora_jax.machine.files import write_whole

if TYPE_CHECKING:
    from bidora_jax.runs.sharing import Shared

LENGTHS = 3
"""Padded lengths: each program is compiled once for each."""
VAL = 0.2
"""Of a fold's training rows, with BiDoRA."""
TRIAL = 8
"""Steps that are timed where the time is limited, and of them those that are not counted."""
WARM = 3
FEWEST = 10
"""Steps of a fold that are worth its predictions; a plan that has fewer keeps them."""
SPENT = 0.85
"""Share of the time that is planned for: the rest is for what the machine does beside it."""


class Rows(NamedTuple):
    """A competition's rows as runs take them."""

    train: list[dict[str, Any]]
    test: list[dict[str, Any]]
    folds: np.ndarray

    def without(self, fold: int) -> list[dict[str, Any]]:
        return [self.train[at] for at in np.flatnonzero(self.folds != fold)]

    def held_out(self, fold: int) -> list[dict[str, Any]]:
        return [self.train[at] for at in np.flatnonzero(self.folds == fold)]


class Predicted(NamedTuple):
    """Of a fold: probabilities or values (N, C), as target.py has them."""

    held_out: np.ndarray
    test: np.ndarray
    seconds: float


def folder_of(plan: Plan, fold: int) -> Path:
    return plan.output / "folds" / str(fold)


def begun(plan: Plan) -> bool:
    """Whether it is settled how the folds are trained."""
    return _kept(plan).is_file()


def _kept(plan: Plan) -> Path:
    return plan.output / "folds" / "settings.json"


def train(plan: Plan, rows: Rows, shared: "Shared", *, began: float) -> list[Predicted]:
    """The predictions of every fold. `began`: when the whole run did, by time.monotonic."""
    common = _settings(plan, rows, shared, began)
    found = []
    for fold in range(plan.folds):
        done = _done(plan, fold)
        if done is None:
            print(f"fold {fold + 1} of {plan.folds}: {common['search.steps']} steps", flush=True)
            started = time.monotonic()
            _run(folder_of(plan, fold), rows.without(fold), common | _remat(plan), shared)
            done = _predicted(plan, rows, fold, shared, common, started)
        found.append(done)
    return found


# Settings


def _settings(plan: Plan, rows: Rows, shared: "Shared", began: float) -> dict[str, Any]:
    """Settings that all folds share. They are kept when they are found, and a run that goes on has them too."""
    kept = _kept(plan)
    kept.parent.mkdir(parents=True, exist_ok=True)
    stand_on = hashlib.sha256(json.dumps([rows.train, rows.test, rows.folds.tolist()]).encode()).hexdigest()
    if kept.is_file():
        held = json.loads(kept.read_text(encoding="utf-8"))
        if held["rows"] != stand_on:
            raise InputError(
                f"the rows of {plan.folder} are not those that the run in {plan.output} began with, and its folds stand on them: "
                "put the old files back, or choose another folder with --output"
            )
        return held["settings"]
    steps = _steps(plan, rows)
    found = plan.settings | {
        "model": plan.model, "seed": plan.seed, "report": False, "task.labels": list(inputs.outputs(plan.target)),
        "data.text_columns": list(rows.test[0]), "data.label_columns": ["label"],
        "data.padded_lengths": _lengths(plan, rows), "search.steps": steps,
    }  # fmt: skip
    if plan.columns.group:
        found["data.group_column"] = inputs.GROUP
    if plan.settings["adapter.method"] == "bidora":
        found |= {"data.val_fraction": VAL, "retrain.steps": steps}
    if plan.time is not None:
        found |= _within_time(plan, rows, found, shared, began)
    held = {"settings": found, "rows": stand_on}
    write_whole(kept, json.dumps(held, indent=2, ensure_ascii=False) + "\n")
    return found


def _steps(plan: Plan, rows: Rows) -> int:
    """Those of the plan's epochs over the training rows of a fold, the same for all of them."""
    batch = plan.settings["data.batch_size"]
    share = 1 - VAL if plan.settings["adapter.method"] == "bidora" else 1.0
    ours = len(rows.train) * (plan.folds - 1) / plan.folds * share
    return max(round(plan.settings["search.epochs"] * max(ours / batch, 1)), 1)


def _lengths(plan: Plan, rows: Rows) -> list[int]:
    """Padded lengths that hold every row."""
    from bidora_jax.data.batches import bucket_lengths
    from bidora_jax.data.tokenizer import load_tokenizer, tokenize
    from bidora_jax.models.formats import hf_config

    folder = hf_config.resolve_folder(plan.model, weights=False)
    tokenizer, most = load_tokenizer(folder, ends=False), plan.settings["data.max_length"]
    parts = [[row[name] for row in (*rows.train, *rows.test)] for name in list(rows.test[0])]
    encoded = tokenize(tokenizer, *parts, truncation=True, max_length=most)["input_ids"]
    return list(bucket_lengths([len(ids) for ids in encoded], LENGTHS))


def _within_time(plan: Plan, rows: Rows, settings: dict[str, Any], shared: "Shared", began: float) -> dict[str, Any]:
    """Fewer steps where those of the plan would take too long: a short run is timed first, with its predictions."""
    assert plan.time is not None
    trial, started = plan.output / "folds" / "trial", time.monotonic()
    shutil.rmtree(trial, ignore_errors=True)
    steps = {"search.steps": TRIAL} | ({"retrain.steps": TRIAL} if "retrain.steps" in settings else {})
    _run(trial, rows.without(0), settings | steps, shared)
    lines = [json.loads(line) for line in (trial / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    phases = {line["phase"] for line in lines}
    step = sum(_seconds_of_step([line for line in lines if line["phase"] == phase]) for phase in phases)
    trained = time.monotonic()
    sample = (rows.held_out(0) + rows.train)[: 8 * settings["data.batch_size"]]
    _outputs(plan, trial, sample, settings["data.padded_lengths"], shared)  # compiles, too
    first = time.monotonic()
    _outputs(plan, trial, sample, settings["data.padded_lengths"], shared)
    predicting = (time.monotonic() - first) / len(sample) * (len(rows.train) / plan.folds + len(rows.test))
    shutil.rmtree(trial)
    around = trained - started - TRIAL * step  # reading and compiling, which the first fold does again
    spent, wanted = time.monotonic() - began + around, settings["search.steps"]
    possible = steps_within(plan.time, spent, plan.folds, (wanted, predicting, step))
    if possible >= wanted:
        return {}
    print(f"--time: {possible} steps a fold of the {wanted} of the plan; a step takes {step:.2f} s", flush=True)
    return {"search.steps": possible} | ({"retrain.steps": possible} if "retrain.steps" in settings else {})


def steps_within(limit: float, spent: float, folds: int, fold: tuple[int, float, float]) -> int:
    """Steps of each fold within a time, of which so much is spent. `fold`: steps that are wanted, seconds of its predictions, and
    of a step. InputError where they are too few to be worth it."""
    wanted, predicting, step = fold
    fewest, possible = min(FEWEST, wanted), int(((SPENT * limit - spent) / folds - predicting) / step)
    if possible >= fewest:
        return possible
    needed = (spent + folds * (predicting + fewest * step)) / SPENT
    raise InputError(
        f"--time allows {limit / 60:.1f} minutes, and {folds} folds of {fewest} steps with their predictions need "
        f"{needed / 60:.1f}: a step takes {step:.2f} s and the predictions of a fold {predicting:.0f} s; give more time, or fewer "
        "--folds, a shorter --max-length or a smaller --model"
    )


def _seconds_of_step(lines: Sequence[dict[str, Any]]) -> float:
    times = [line["seconds"] for line in lines]
    return (times[-1] - times[WARM - 1]) / (len(times) - WARM)


def _remat(plan: Plan) -> dict[str, Any]:
    """What the first fold has chosen, so that all folds have the same steps."""
    first = folder_of(plan, 0) / "config.json"
    return {"model.remat": json.loads(first.read_text())["model"]["remat"]} if first.is_file() else {}


# A fold


def _run(folder: Path, rows: list[dict[str, Any]], settings: dict[str, Any], shared: "Shared") -> None:
    """Trains in the folder, or goes on there; what a run prints goes to folder.log."""
    from bidora_jax.runs.finetuning import finetune

    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        if (folder / "config.json").is_file():
            finetune(str(folder / "config.json"), resume=True, shared=shared)
        else:
            finetune(train=rows, output=folder, shared=shared, **settings)


def _predicted(
    plan: Plan, rows: Rows, fold: int, shared: "Shared", common: dict[str, Any], started: float
) -> Predicted:
    from safetensors.numpy import save

    held_out = rows.held_out(fold)
    found = _outputs(plan, folder_of(plan, fold), [*held_out, *rows.test], common["data.padded_lengths"], shared)
    done = Predicted(found[: len(held_out)], found[len(held_out) :], time.monotonic() - started)
    tensors = {"held_out": done.held_out, "test": done.test, "seconds": np.array([done.seconds])}
    write_whole(_file(plan, fold), save({name: np.ascontiguousarray(one) for name, one in tensors.items()}))
    return done


def outputs_of(
    plan: Plan, run: Path, adapters: Mapping[str, Path], rows: list[dict[str, Any]], lengths: Sequence[int] = (),
    shared: "Shared | None" = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Probabilities or values (N, C) of each adapter for rows, in their order and on the file's scale. `run` is a folder with the
    config.json of the run that trained them; `lengths` are padded ones that hold every row."""
    from bidora_jax.runs import classifying
    from bidora_jax.runs.folder import run_config
    from bidora_jax.tasks import outputs

    config = run_config(str(run))
    named = {name: str(folder) for name, folder in adapters.items()}
    classifier = classifying.opened(config.model.path, named, config.model, shared)
    read = classifier.read(rows, config.data)
    found = classifier.outputs(read.examples, config.data.batch_size, tuple(lengths))
    made = {}
    for name, one in found.items():
        labels = classifier.members[name].labels
        order = [labels.names.index(output) for output in inputs.outputs(plan.target)]
        values = outputs.shares(labels, one.outputs)[:, order]
        made[name] = np.expm1(values) if plan.target.log else values
    return made


def _outputs(plan: Plan, run: Path, rows: list[dict[str, Any]], lengths: Sequence[int], shared: "Shared") -> np.ndarray:
    """Those of a run's own adapter."""
    unlabelled = [{name: value for name, value in row.items() if name.startswith("text")} for row in rows]
    return outputs_of(plan, run, {"": run / "adapter"}, unlabelled, lengths, shared)[""]


def _file(plan: Plan, fold: int) -> Path:
    return folder_of(plan, fold) / "predictions.safetensors"


def _done(plan: Plan, fold: int) -> Predicted | None:
    """What a fold has left that was finished before."""
    from safetensors.numpy import load_file

    if not _file(plan, fold).is_file():
        return None
    tensors = load_file(_file(plan, fold))
    return Predicted(tensors["held_out"], tensors["test"], float(tensors["seconds"][0]))
