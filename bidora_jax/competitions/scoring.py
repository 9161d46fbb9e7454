"""Scores by fold, and the blend that is submitted.

Cuts and weights of the submission are fitted on all out-of-fold predictions. Measured on the same rows they would flatter: the
score of a fold takes those that the other folds' rows give.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bidora_jax.competitions import blending, cuts, measures
from bidora_jax.competitions.cuts import Cuts
from bidora_jax.competitions.measures import Undefined
from bidora_jax.competitions.target import Target

BLEND = "blend"


class Results(NamedTuple):
    """What the models say, and the truth. Rows of train are the labelled ones, in their order."""

    truth: np.ndarray
    folds: np.ndarray
    """(N,) the fold in which a row is held out."""
    oof: dict[str, np.ndarray]
    """By the model's name (encoder, majority or mean, tf-idf), each row by the models that have not seen it."""
    test: dict[str, np.ndarray]


class Decision(NamedTuple):
    """What is submitted."""

    weights: dict[str, float]
    oof: np.ndarray
    test: np.ndarray
    cuts: Cuts


@dataclass(frozen=True)
class Score:
    folds: tuple[float | None, ...]
    """None where a fold's rows don't define the metric."""
    mean: float | None
    """Over the folds that have one; of all rows together where none has."""
    sd: float
    """Over the folds, of a sample."""


def decide(target: Target, results: Results) -> Decision:
    """The blend and its cuts, fitted on all out-of-fold predictions. The first model alone where the metric is not defined."""
    try:
        shares = blending.weights(target, results.truth, results.oof)
    except Undefined:
        shares = {name: float(at == 0) for at, name in enumerate(results.oof)}
    oof = blending.blended(shares, results.oof)
    return Decision(shares, oof, blending.blended(shares, results.test), cuts.fit(target, results.truth, oof))


def scores(target: Target, results: Results) -> tuple[dict[str, Score], list[str]]:
    """The score of each model and of their blend, and notes on what the rows don't define."""
    notes: dict[str, None] = {}
    found = {name: _score(target, results, {name: one}, notes) for name, one in results.oof.items()}
    if len(found) > 1:
        found[BLEND] = _score(target, results, results.oof, notes)
    return found, list(notes)


def _score(target: Target, results: Results, oof: Mapping[str, np.ndarray], notes: dict[str, None]) -> Score:
    truth, by_fold = results.truth, []
    for fold in np.unique(results.folds):
        own = results.folds == fold
        others = {name: one[~own] for name, one in oof.items()}
        try:
            shares = blending.weights(target, truth[~own], others) if len(oof) > 1 else dict.fromkeys(oof, 1.0)
            fitted = cuts.fit(target, truth[~own], blending.blended(shares, others))
            mixed = blending.blended(shares, {name: one[own] for name, one in oof.items()})
            by_fold.append(measures.score(target.metric, target, truth[own], mixed, fitted))
        except Undefined as why:
            by_fold.append(None)
            notes[f"{target.metric} of fold {len(by_fold)} is left out: {why}"] = None
    known = [one for one in by_fold if one is not None]
    mean = float(np.mean(known)) if known else _of_all_rows(target, results, oof)
    return Score(tuple(by_fold), mean, float(np.std(known, ddof=1)) if len(known) > 1 else 0.0)


def _of_all_rows(target: Target, results: Results, oof: Mapping[str, np.ndarray]) -> float | None:
    """Of folds of one row, say, of which none defines a correlation. Without cuts, which would flatter."""
    mixed = np.mean(list(oof.values()), axis=0)
    try:
        return measures.score(target.metric, target, results.truth, mixed, cuts.USUAL)
    except Undefined:
        return None


def winner(metric: str, found: Mapping[str, Any]) -> str | None:
    """The model with the best mean, the blend not counted; the first of equals."""
    best: str | None = None
    for name, one in found.items():
        if name == BLEND or one.mean is None:
            continue
        if best is None or measures.MEASURES[metric].better(one.mean, found[best].mean):
            best = name
    return best
