"""From probabilities and values to labels: where the cuts between them lie, fitted on out-of-fold predictions.

    F1              the threshold of the positive class. F1 changes only where the threshold passes a score, so a sweep over the
                    sorted scores finds the best of all thresholds in O(N log N)
    macro F1        of two classes the same sweep; of several labels a row, a threshold for each label
    F1, multilabel  a threshold for each label, so that the F1 of all labels together, 2·TP/(predicted + true), is greatest. The
                    quotient ties the labels: Dinkelbach's iteration maximises 2·TP − λ·predicted label by label and sets λ to the
                    F1 that is reached, until it stays (Dinkelbach, Management Science 1967)
    QWK             K − 1 cut points between the levels: Nelder and Mead's search on −κ, from the middles between the levels or
                    the quantiles at which predictions are distributed as the truth is, whichever are better
    others          none: the most probable class, one half, the nearest level

A cut is inside the gap between two scores, and is the usual one (one half, the middle) where that is in the gap. The usual cuts are
candidates themselves: fitted ones are never worse on the rows they were fitted on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bidora_jax.competitions import kappa
from bidora_jax.competitions.target import Target

HALF = 0.5
STEPS = (0.1, 0.4)
"""Edges of the first simplex, in mean distances between levels: κ is a step function, and a small simplex may see no step."""


@dataclass(frozen=True)
class Cuts:
    values: tuple[float, ...] = ()
    """Ascending cut points, or a threshold for the positive class or each label; none: argmax, one half, the nearest level."""


USUAL = Cuts()


def fit(target: Target, truth: np.ndarray, predictions: np.ndarray) -> Cuts:
    """The cuts that are best for the target's metric on these rows; none for a metric that takes no cuts."""
    truth, predictions = np.asarray(truth), np.asarray(predictions, np.float64)
    if not len(truth):
        return USUAL
    if target.kind == "binary" and target.metric in ("f1", "macro_f1"):
        objective = _f1 if target.metric == "f1" else _macro_f1
        return Cuts((_threshold(truth == 1, predictions[:, 1], objective),))
    if target.kind == "multilabel" and target.metric == "macro_f1":
        pairs = zip(truth.T == 1, predictions.T, strict=True)
        return Cuts(tuple(_threshold(true, scores, _f1) for true, scores in pairs))
    if target.kind == "multilabel" and target.metric == "f1":
        return Cuts(_jointly(truth == 1, predictions))
    if target.kind == "ordinal" and target.metric == "qwk":
        return Cuts(_between_levels(levels(target), truth, predictions[:, 0]))
    return USUAL


def decided(target: Target, predictions: np.ndarray, cuts: Cuts) -> np.ndarray:
    """Class numbers (N,), labels (N, C) of 0 and 1, or levels (N, 1)."""
    predictions = np.asarray(predictions, np.float64)
    if target.kind == "multilabel":
        return (predictions >= np.array(cuts.values or [HALF] * predictions.shape[1])).astype(int)
    if target.kind == "ordinal":
        scale = levels(target)
        return scale[np.searchsorted(cuts.values or middles(scale), predictions[:, :1], side="right")]
    if target.kind == "binary" and cuts.values:
        return (predictions[:, 1] >= cuts.values[0]).astype(int)
    return predictions.argmax(1)


def levels(target: Target) -> np.ndarray:
    """The levels of an ordinal target as numbers, ascending."""
    return np.array([float(name) for name in target.names])


def middles(scale: np.ndarray) -> np.ndarray:
    """Halfway between the levels: where rounding cuts."""
    return (scale[:-1] + scale[1:]) / 2


# Thresholds


Objective = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]
"""(hits, predicted, true, rows) -> what is to be greatest; the first two for each candidate."""


def _f1(hits: np.ndarray, predicted: np.ndarray, true: int, rows: int) -> np.ndarray:
    return 2 * hits / np.maximum(predicted + true, 1)


def _macro_f1(hits: np.ndarray, predicted: np.ndarray, true: int, rows: int) -> np.ndarray:
    missed = rows - predicted - true + hits
    return (_f1(hits, predicted, true, rows) + _f1(missed, rows - predicted, rows - true, rows)) / 2


def _threshold(true: np.ndarray, scores: np.ndarray, objective: Objective) -> float:
    thresholds, hits, predicted = _candidates(true, scores)
    return _best(thresholds, objective(hits, predicted, int(true.sum()), len(true)))


def _candidates(true: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A threshold for each way to decide, with the number of rows that reach it and are true, and that reach it at all."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # the last row of each score
    hits = np.append(0, np.cumsum(true[order])[ends])
    predicted = np.append(0, ends + 1)
    # The threshold of a candidate lies above `low` and at most at `high`.
    high = np.append(np.inf, falling[ends])
    low = np.append(falling[ends], -np.inf)
    with np.errstate(invalid="ignore"):
        middle = low + (high - low) / 2
    middle[0], middle[-1] = np.nextafter(low[0], np.inf), high[-1]
    middle = np.where(middle > low, middle, high)  # of two neighbours among the floats
    return np.where((low < HALF) & (high >= HALF), HALF, middle), hits, predicted


def _best(thresholds: np.ndarray, values: np.ndarray) -> float:
    """Of equally good ones the nearest to one half."""
    best = np.flatnonzero(values == values.max())
    return float(thresholds[best[np.abs(thresholds[best] - HALF).argmin()]])


def _jointly(true: np.ndarray, scores: np.ndarray) -> tuple[float, ...]:
    found = [_candidates(column, own) for column, own in zip(true.T, scores.T, strict=True)]
    everything, reached = true.sum(), -1.0
    value = _together(true, scores >= HALF)
    while value > reached and everything:
        reached = value
        best = [int((2 * hits - reached * predicted).argmax()) for _, hits, predicted in found]
        hits, predicted = (sum(one[part][at] for one, at in zip(found, best, strict=True)) for part in (1, 2))
        value = 2 * hits / (predicted + everything)
    gains = [2 * hits - reached * predicted for _, hits, predicted in found]
    return tuple(_best(one[0], gain.round(9)) for one, gain in zip(found, gains, strict=True))


def _together(true: np.ndarray, found: np.ndarray) -> float:
    return 2 * (true & found).sum() / max(true.sum() + found.sum(), 1)


# Cut points


def _between_levels(scale: np.ndarray, truth: np.ndarray, values: np.ndarray) -> tuple[float, ...]:
    usual = middles(scale)
    if len(scale) < 2 or not np.isfinite(values).all():
        return tuple(usual.tolist())
    from scipy.optimize import minimize

    agreement = _agreement(scale, truth, values)
    shares = np.searchsorted(np.sort(truth), scale[1:]) / len(truth)
    tried = [usual, np.quantile(values, shares)]
    start = tried[int(np.nan_to_num([agreement(cuts) for cuts in tried], nan=-np.inf).argmax())]
    gap = (scale[-1] - scale[0]) / (len(scale) - 1)
    for step in STEPS:
        simplex = np.vstack([start, start + step * gap * np.eye(len(start))])
        how = {"initial_simplex": simplex, "xatol": 0.005 * gap, "fatol": 1e-6, "maxfev": 100 * len(start)}
        tried.append(np.sort(minimize(lambda cuts: -agreement(cuts), start, method="Nelder-Mead", options=how).x))
    reached = np.nan_to_num([agreement(cuts) for cuts in tried], nan=-np.inf)
    return tuple(map(float, tried[int(reached.argmax())]))  # the first of the best: rounding where nothing beats it


def _agreement(scale: np.ndarray, truth: np.ndarray, values: np.ndarray) -> Callable[[np.ndarray], float]:
    """κ of the levels that sorted cut points give; O(K log N) a call, from running sums over the sorted values."""
    order = np.argsort(values, kind="stable")
    rising, t = values[order], truth[order] - scale[0]
    running, p = np.append(0, np.cumsum(t)), scale - scale[0]
    total, squares = float(t.sum()), float(t @ t)

    def agreement(cuts: np.ndarray) -> float:
        edges = np.concatenate([[0], np.searchsorted(rising, np.sort(cuts), side="left"), [len(t)]])
        counts, sums = np.diff(edges), np.diff(running[edges])
        return kappa.from_sums(len(t), total, squares, float(p @ counts), float(p**2 @ counts), float(p @ sums))

    return agreement
