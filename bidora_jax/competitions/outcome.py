"""What came of a competition: oof.csv, and the Outcome that the report is made from and outcome.json keeps.

oof.csv    the row's id if it has one, fold (from 1), a column for each class or label with its probability, or for each value, and
           the truth as train writes it: truth, or `truth of COLUMN` of several
"""

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bidora_jax.competitions import scoring
from bidora_jax.competitions.cuts import decided
from bidora_jax.competitions.files import Files, Table
from bidora_jax.competitions.measures import MEASURES
from bidora_jax.competitions.plan import Plan
from bidora_jax.competitions.scoring import Decision, Results
from bidora_jax.competitions.target import Target
from bidora_jax.machine.files import write_whole

SHOWN, LETTERS = 20, 300
"""Rows that are shown, and letters of their texts."""
POINTS = 2000
"""Values that are drawn against the truth, at most."""
QUANTILES = {"least": 0.0, "a quarter below": 0.25, "half below": 0.5, "three quarters below": 0.75, "greatest": 1.0}


@dataclass(frozen=True)
class Outcome:
    """Plain values: asdict is JSON."""

    name: str
    kind: str
    metric: str
    higher_is_better: bool
    names: tuple[str, ...]
    """Classes, labels, values or levels."""
    rows: dict[str, int]
    """Of train and test."""
    scores: dict[str, dict[str, Any]]
    """Folds, mean and sd by the model's name: encoder, majority or mean, tf-idf, blend."""
    winner: str | None
    """The best model without the blend; None where the rows define no score."""
    weights: dict[str, float]
    """Of the models in the submission."""
    cuts: tuple[float, ...]
    confusion: list[list[int]] | None
    """Out of fold, true downwards, predicted rightwards; classes and levels."""
    points: list[list[list[float]]] | None
    """[true, predicted] of rows by column; values and levels."""
    wrong: list[dict[str, Any]]
    """The rows that are most surely wrong, or furthest off: id, text, truth, found, sure."""
    shares: dict[str, dict[str, list[float]]]
    """Of each class or label in train and predicted for test; of each value its quantiles."""
    leaks: tuple[str, ...]
    notes: tuple[str, ...]
    guesses: list[dict[str, str]]
    """The plan's lines: what, found, reason, flag."""
    model: str
    submission: str
    """The file's name."""
    seconds: float


def to_json(outcome: Outcome) -> str:
    return json.dumps(dataclasses.asdict(outcome), ensure_ascii=False, indent=1) + "\n"


def made(
    plan: Plan, files: Files, results: Results, decision: Decision, texts: list[str], leaks: list[str], seconds: float
) -> Outcome:
    """The outcome of what `decision` submits. `files.train` holds the labelled rows, and `texts` what a model read of each."""
    target = plan.target
    scores, notes = scoring.scores(target, results)
    found, future = (decided(target, one, decision.cuts) for one in (decision.oof, decision.test))
    is_class = target.kind in ("binary", "multiclass", "ordinal")
    return Outcome(
        name=plan.folder.absolute().name, kind=target.kind, metric=target.metric,
        higher_is_better=MEASURES[target.metric].higher_is_better, names=target.names,
        rows={"train": len(results.truth), "test": len(files.test.rows)},
        scores={name: dataclasses.asdict(one) for name, one in scores.items()},
        winner=scoring.winner(target.metric, scores), weights=decision.weights, cuts=decision.cuts.values,
        confusion=_confusion(target, results.truth, found) if is_class else None,
        points=_points(results.truth, decision.oof) if target.kind in ("regression", "ordinal") else None,
        wrong=[
            {"id": row_name(plan, files.train, one["row"]), "text": _short(texts[one["row"]])} | one
            for one in _wrong(target, results.truth, decision.oof, found)
        ],
        shares=_shares(target, results.truth, decision.test, future), leaks=tuple(leaks), notes=(*plan.notes, *notes),
        guesses=[guess._asdict() for guess in plan.guesses], model=plan.model, submission="submission.csv", seconds=seconds,
    )  # fmt: skip


def row_name(plan: Plan, table: Table, row: int) -> str:
    """Its id, or its place in the file."""
    own = plan.columns.id
    return table.rows[row][own] if own in table.columns else f"row {row + 1}"


def _short(text: str) -> str:
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


# What is shown of the predictions


def _numbers(target: Target, labels: np.ndarray) -> np.ndarray:
    """Class numbers of classes or of levels."""
    return (
        np.searchsorted([float(name) for name in target.names], labels.ravel()) if target.kind == "ordinal" else labels
    )


def _confusion(target: Target, truth: np.ndarray, found: np.ndarray) -> list[list[int]]:
    count = len(target.names)
    places = _numbers(target, truth) * count + _numbers(target, found)
    return np.bincount(places, minlength=count**2).reshape(count, count).tolist()


def _points(truth: np.ndarray, predictions: np.ndarray) -> list[list[list[float]]]:
    rows = np.unique(np.linspace(0, len(truth) - 1, min(len(truth), POINTS)).round().astype(int))
    true = truth.reshape(predictions.shape)
    return [np.stack([true[rows, k], predictions[rows, k]], axis=1).tolist() for k in range(predictions.shape[1])]


def _wrong(target: Target, truth: np.ndarray, predictions: np.ndarray, found: np.ndarray) -> list[dict[str, Any]]:
    """row, truth, found and how sure: the probability of what was found, or of values the distance in the file's scale."""
    if target.kind in ("regression", "ordinal"):
        return _furthest(target, truth.reshape(predictions.shape), predictions)
    if target.kind == "multilabel":
        sure = np.where(found == 1, predictions, 1 - predictions)
        places = np.argwhere(found != truth)
        order = np.argsort(-sure[tuple(places.T)], kind="stable")[:SHOWN]

        def named(marked: Any, c: int) -> str:
            return target.names[c] if marked else f"not {target.names[c]}"

        return [
            {
                "row": row,
                "truth": named(truth[row, c], c),
                "found": named(found[row, c], c),
                "sure": float(sure[row, c]),
            }
            for row, c in places[order].tolist()
        ]
    sure = predictions[np.arange(len(found)), found]
    wrong = np.flatnonzero(found != truth)
    return [
        {
            "row": int(row),
            "truth": target.names[truth[row]],
            "found": target.names[found[row]],
            "sure": float(sure[row]),
        }
        for row in wrong[np.argsort(-sure[wrong], kind="stable")[:SHOWN]]
    ]


def _furthest(target: Target, truth: np.ndarray, predictions: np.ndarray) -> list[dict[str, Any]]:
    """Of several values the one that is furthest off in standard deviations."""
    off = np.abs(predictions - truth)
    spread = truth.std(0)
    scaled = off / np.where(spread > 0, spread, 1)
    worst = scaled.argmax(1)
    rows = np.argsort(-scaled.max(1), kind="stable")[:SHOWN]
    several = truth.shape[1] > 1

    def said(row: int, value: Any) -> str:
        return f"{target.names[worst[row]]} {value:.6g}" if several else f"{value:.6g}"

    return [
        {"row": int(row), "truth": said(row, truth[row, worst[row]]), "found": said(row, predictions[row, worst[row]]),
         "sure": float(off[row, worst[row]])} for row in rows.tolist() if off[row, worst[row]] > 0
    ]  # fmt: skip


def _shares(
    target: Target, truth: np.ndarray, test: np.ndarray, future: np.ndarray
) -> dict[str, dict[str, list[float]]]:
    """By class, label or value: of train and of test."""
    if target.kind == "regression":
        at = list(QUANTILES.values())
        return {
            name: {"train": np.quantile(truth[:, k], at).tolist(), "test": np.quantile(test[:, k], at).tolist()}
            for k, name in enumerate(target.names) if len(test)
        }  # fmt: skip
    if target.kind == "multilabel":
        parts = [one.mean(0) if len(one) else np.zeros(len(target.names)) for one in (truth, future)]
    else:
        count = len(target.names)
        parts = [np.bincount(_numbers(target, one), minlength=count) / max(len(one), 1) for one in (truth, future)]
    return {name: {"train": [float(parts[0][c])], "test": [float(parts[1][c])]} for c, name in enumerate(target.names)}


# Out of fold


def write_oof(path: Path, plan: Plan, train: Table, folds: np.ndarray, predictions: np.ndarray) -> None:
    """Writes oof.csv, whole or not at all; `train` holds the labelled rows."""
    target = plan.target
    own = plan.columns.id if plan.columns.id in train.columns else None
    before = [*([own] if own else []), "fold"]
    truths = ["truth"] if len(target.columns) == 1 else [f"truth of {column}" for column in target.columns]
    what = "value" if target.kind in ("regression", "ordinal") else "probability"
    names = target.columns if target.kind == "ordinal" else target.names
    columns = [f"{what} of {name}" if name in (*before, *truths) else name for name in names]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*before, *columns, *truths])
    numbers = np.searchsorted(np.unique(folds), folds) + 1
    for row, fold, values in zip(train.rows, numbers, predictions, strict=True):
        cells = [f"{value:.9g}" for value in values]
        writer.writerow([*([row[own]] if own else []), fold, *cells, *(row[column] for column in target.columns)])
    write_whole(path, stream.getvalue())
