"""The plan of a competition: what its files say, and how it is trained. plan.json keeps it for a run that goes on."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bidora_jax.competitions import base_models, detection, features, headers, recipe
from bidora_jax.competitions.columns import Chosen, Columns, Guess
from bidora_jax.competitions.detection import Asked
from bidora_jax.competitions.files import Files
from bidora_jax.competitions.recipe import Wishes
from bidora_jax.competitions.target import Target, truth
from bidora_jax.errors import InputError

FEWEST_ROWS = 10
"""Fewer can't be divided into folds whose scores say anything."""


class Request(NamedTuple):
    """What the user says; what is empty is found."""

    folder: Path
    output: Path
    chosen: Chosen = Chosen()
    asked: Asked = Asked()
    wishes: Wishes = Wishes()
    model: str = ""
    folds: int = 5
    seed: int = 0
    time: float | None = None


@dataclass(frozen=True)
class Plan:
    folder: Path
    output: Path
    """Where submission.csv, oof.csv, report.html, plan.json and model/ go."""
    columns: Columns
    target: Target
    guesses: tuple[Guess, ...]
    model: str
    """A folder, or a name on the Hugging Face hub."""
    folds: int
    seed: int
    time: float | None
    """Seconds that all of it may take."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of `train` by dotted name: adapter.method, data.max_length, …"""
    notes: tuple[str, ...] = ()
    """What a user should know, a line each."""
    longest: int = 0
    """Characters of an input (texts.text_of); 0: any number."""


def make(files: Files, request: Request) -> Plan:
    """The plan. InputError for files that are no competition, and for what the user says that does not fit them."""
    roles = headers.find(files, request.chosen)
    if len(files.train.rows) < FEWEST_ROWS:
        raise InputError(
            f"{files.train.path} has {len(files.train.rows)} row{'s' * (len(files.train.rows) > 1)}, expected at least "
            f"{FEWEST_ROWS} to train on and to measure by; get the whole file"
        )
    target, of_target = detection.find(files, roles, request.asked)
    columns, of_features = features.find(files, roles, request.chosen)
    files = labelled(files, columns)
    folds, of_folds = _folds(files, target, columns, request.folds)
    model, of_model = base_models.find(request.model)
    if request.wishes.max_length > model.positions:
        raise InputError(
            f"--max-length {request.wishes.max_length} is more than the {model.positions} positions of {model.name}; ask for less"
        )
    lengths = base_models.lengths(model, files.train.rows, columns)
    settings = recipe.settings(target, len(files.train.rows), model, lengths, request.wishes)
    return Plan(
        request.folder, request.output, columns, target, (*roles.guesses, *of_target, *of_features, *of_folds, of_model),
        model.name, folds, request.seed, request.time, settings, tuple(_notes(files, target, columns)),
        recipe.characters(settings["data.max_length"], lengths, columns),
    )  # fmt: skip


def labelled(files: Files, columns: Columns) -> Files:
    """The files without the rows of train that lack a target: there is nothing to learn from them."""
    rows = [row for row in files.train.rows if all(row[name].strip() for name in columns.targets)]
    return files._replace(train=files.train._replace(rows=rows))


def lines(plan: Plan) -> list[str]:
    """The plan for a reader: a line for each guess, with the flag that says otherwise, then settings and notes."""
    rows = [(one.what, one.found or "(no name)", one.reason, one.flag) for one in plan.guesses]
    short = (
        "adapter.method",
        "adapter.preset",
        "data.max_length",
        "data.batch_size",
        "inner.learning_rate",
        "search.epochs",
    )
    rows += [(name, f"{plan.settings[name]:g}" if isinstance(plan.settings[name], float) else str(plan.settings[name]), "", flag)
             for name, flag in zip(short, ("--method", "--preset", "--max-length", "--batch-size", "--lr", "--epochs"), strict=True)
             if name in plan.settings]  # fmt: skip
    widths = [min(max(len(row[at]) for row in rows), limit) for at, limit in enumerate((20, 40, 60))]
    table = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, (*widths, 0), strict=True)).rstrip() for row in rows
    ]
    return [*table, *(f"note: {note}" for note in plan.notes)]


def _folds(files: Files, target: Target, columns: Columns, wanted: int) -> tuple[int, list[Guess]]:
    """The number of folds: fewer where a class or the groups are not enough for so many."""
    if wanted < 2:
        raise InputError(f"--folds must be at least 2, found {wanted}")
    folds, reason = min(wanted, len(files.train.rows) // 2), "as many as asked for"
    counts = _counts(files, target)
    enough = sorted(count for count in counts.values() if count > 1)
    rare = enough[0] if target.kind == "binary" and enough else folds
    if rare < folds:
        folds, reason = max(2, rare), f"the rarer class has {rare} rows"
    if columns.group:
        groups = len({row[columns.group] for row in files.train.rows})
        if groups < 2:
            raise InputError(
                f"--group-column {columns.group} has one value in all of {files.train.path}, expected several to divide; name "
                "another column"
            )
        if groups < folds:
            folds, reason = groups, f"there are {groups} groups"
    return folds, [Guess("folds", str(folds), reason, "--folds")]


def _counts(files: Files, target: Target) -> Counter[str]:
    """Rows of each class; empty for other targets."""
    if target.kind not in ("binary", "multiclass"):
        return Counter()
    return Counter(target.names[number] for number in truth(target, files.train.rows))


def _notes(files: Files, target: Target, columns: Columns) -> Iterator[str]:
    test, sample = files.test, files.sample
    counts = _counts(files, target)
    if rare := sorted(name for name, count in counts.items() if count < 5):
        shown = ", ".join(f"{name} ({counts[name]})" for name in rare[:5]) + ", …" * (len(rare) > 5)
        yield f"classes with fewer than 5 rows are kept, and hardly learned: {shown}"
    if sample is not None and columns.id is not None:
        ids, shown_ids = {row[columns.id] for row in test.rows}, {row[columns.id] for row in sample.rows}
        if ids != shown_ids:
            yield (f"{sample.path.name} has {len(sample.rows)} rows and {test.path.name} {len(test.rows)}, with "
                   f"{len(ids & shown_ids)} ids in both: the submission has the rows of {test.path.name}")  # fmt: skip
    if target.written == "probabilities":
        found = detection.class_outputs(target)
        if absent := [name for name in target.outputs if name not in found]:
            yield f"no row of train is of the class {', '.join(absent)}: its probability is 0"
    empty = sum(
        not any(row[name].strip() for name in (*columns.texts, *columns.categories, *columns.numbers))
        for row in test.rows
    )
    if empty:
        yield f"{empty} rows of {test.path.name} have nothing to predict from; they get a prediction too"
    if _is_a_table(files, columns):
        yield (
            "this is a table with few words: gradient boosting (LightGBM, CatBoost, XGBoost) usually does better on it, in less "
            "time; compare before you submit"
        )


def _is_a_table(files: Files, columns: Columns) -> bool:
    """Whether rows say more in categories and numbers than in words."""
    words = sum(len(row[name].split()) for row in files.train.rows for name in columns.texts) / len(files.train.rows)
    short = len(columns.categories) + len(columns.numbers)
    return not columns.texts or (short >= 4 and words < 2 * short)


def to_json(plan: Plan) -> str:
    values = dataclasses.asdict(plan) | {"folder": str(plan.folder), "output": str(plan.output)}
    values["guesses"] = [guess._asdict() for guess in plan.guesses]
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def from_json(text: str) -> Plan:
    """The plan that `to_json` wrote, equal to it in every field."""
    values = json.loads(text)
    parts = {
        "folder": Path(values["folder"]),
        "output": Path(values["output"]),
        "columns": Columns(**_tuples(values["columns"])),
        "target": Target(**_tuples(values["target"])),
        "guesses": tuple(Guess(**guess) for guess in values["guesses"]),
        "settings": _tuples(values["settings"]),
        "notes": tuple(values["notes"]),
    }
    return Plan(**(values | parts))


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""

    def whole(value: Any) -> Any:
        return tuple(map(whole, value)) if isinstance(value, list) else value

    return {name: whole(value) for name, value in values.items()}
