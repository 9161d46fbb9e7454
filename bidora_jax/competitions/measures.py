"""The metrics of competitions by Kaggle's names, of predictions as competitions/target.py describes them.

    accuracy    share of right labels; of several labels a row, share of the rows of which all are right
    auc         area under the ROC curve; of more classes or labels the mean of one against the rest, each with the same weight
    logloss     −mean log p of the true class over ALL classes, also those that these rows lack; p is first divided by the row's
                sum and then kept within 1e-15 and 1 − 1e-15. Of several labels a row, the mean over labels of theirs
    f1          of the positive class; of several labels a row, of all labels together (micro)
    macro_f1    the mean of the F1 of the classes that are true or predicted somewhere, as scikit-learn and Kaggle take it; of
                several labels a row, of all labels, 0 of one that is neither
    mcc         Matthews' correlation coefficient of labels; 0 of a constant prediction
    qwk         quadratic weighted kappa (kappa.py) of levels; of classes by their names as numbers, or else by their places
    rmse, mae   of several outputs the mean of theirs; mcrmse is that of rmse under the name that Kaggle gave it
    rmsle       RMSE of log(1 + value); a prediction below 0 counts as 0, a true value below 0 is refused
    pearson     correlation; of several outputs the mean

scikit-learn computes what it can, in float64. A metric that the rows don't define raises Undefined with the reason: no NaN.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bidora_jax.competitions.cuts import Cuts, decided
from bidora_jax.competitions.kappa import kappa
from bidora_jax.competitions.target import Kind, Target
from bidora_jax.tasks.metrics import NOTHING, Undefined

__all__ = ["CLIP", "MEASURES", "Measure", "Undefined", "score"]
CLIP = 1e-15
"""What Kaggle keeps probabilities away from 0 and 1 by."""


@dataclass(frozen=True)
class Measure:
    about: str
    kinds: tuple[Kind, ...]
    needs: Literal["labels", "probabilities", "values"]
    """What submissions are scored by. Labels are decided with cuts (cuts.py)."""
    higher_is_better: bool = True

    def better(self, new: float, old: float) -> bool:
        """Whether `new` is strictly better."""
        return new > old if self.higher_is_better else new < old


_CLASSES: tuple[Kind, ...] = ("binary", "multiclass")
_MARKED: tuple[Kind, ...] = (*_CLASSES, "multilabel")
_VALUES: tuple[Kind, ...] = ("regression", "ordinal")
MEASURES = {
    "accuracy": Measure("share of the rows that are right", (*_MARKED, "ordinal"), "labels"),
    "auc": Measure("area under the ROC curve; mean of one against the rest", _MARKED, "probabilities"),
    "logloss": Measure("mean −log of the probability of what is true", _MARKED, "probabilities", False),
    "f1": Measure("F1 of the positive class, or of all labels together", ("binary", "multilabel"), "labels"),
    "macro_f1": Measure("mean of the classes' F1", (*_MARKED, "ordinal"), "labels"),
    "mcc": Measure("Matthews' correlation coefficient", (*_CLASSES, "ordinal"), "labels"),
    "qwk": Measure("quadratic weighted kappa", ("ordinal", *_CLASSES), "labels"),
    "rmse": Measure("root mean square error", _VALUES, "values", False),
    "rmsle": Measure("root mean square error of log(1 + value)", _VALUES, "values", False),
    "mae": Measure("mean absolute error", _VALUES, "values", False),
    "mcrmse": Measure("mean of the columns' root mean square errors", _VALUES, "values", False),
    "pearson": Measure("Pearson's correlation", _VALUES, "values"),
}


def score(name: str, target: Target, truth: np.ndarray, predictions: np.ndarray, cuts: Cuts) -> float:
    """The metric of these rows; `truth` as target.truth gives it. Undefined where they have none."""
    truth, predictions = np.asarray(truth), np.asarray(predictions, np.float64)
    if not len(truth):
        raise Undefined("there are no rows to measure")
    if not (finite := np.isfinite(predictions).all(1)).all():
        raise Undefined(f"{(~finite).sum()} of {len(truth)} rows have predictions that are not finite")
    needs = MEASURES[name].needs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is not defined; the value says so too
        if needs == "labels":
            value = _of_labels(name, target, truth, decided(target, predictions, cuts))
        elif needs == "probabilities":
            value = _of_probabilities(name, target, truth, predictions)
        else:
            value = _of_values(name, target, truth.reshape(predictions.shape).astype(np.float64), predictions)
    if not np.isfinite(value):
        raise Undefined("these rows don't define it")
    return float(value)


def _of_labels(name: str, target: Target, truth: np.ndarray, found: np.ndarray) -> float:
    from sklearn import metrics

    if name == "qwk":
        return _kappa(target, truth, found)
    if target.kind == "ordinal":  # scikit-learn takes levels with a fraction for values
        scale = np.unique(np.append(truth, found))
        truth, found = (np.searchsorted(scale, levels.ravel()) for levels in (truth, found))
    if name == "accuracy":
        return float(metrics.accuracy_score(truth, found))
    if name == "mcc":
        if (truth == truth[0]).all():
            raise Undefined("every row has the same label")
        return float(metrics.matthews_corrcoef(truth, found))
    if name == "f1":
        if not truth.any():
            raise Undefined("no row has a label" if target.kind == "multilabel" else f"no row is {target.names[1]!r}")
        # Of a single column scikit-learn would count the rows without the label as a class.
        together = target.kind == "multilabel" and truth.shape[1] > 1
        return float(metrics.f1_score(truth, found, average="micro" if together else "binary", zero_division=NOTHING))
    if target.kind == "multilabel" and truth.shape[1] == 1:
        return float(metrics.f1_score(truth, found, zero_division=NOTHING))
    return float(metrics.f1_score(truth, found, average="macro", zero_division=NOTHING))


def _kappa(target: Target, truth: np.ndarray, found: np.ndarray) -> float:
    if target.kind != "ordinal":
        try:
            scale = np.array([float(name) for name in target.names])
        except ValueError:
            scale = np.arange(len(target.names))
        truth, found = scale[truth], scale[found]
    if (truth == truth[0]).all():
        raise Undefined("every row has the same level")
    return kappa(truth, found.ravel())


def _of_probabilities(name: str, target: Target, truth: np.ndarray, predictions: np.ndarray) -> float:
    several = target.kind == "multilabel"
    marks = truth == 1 if several else truth[:, None] == np.arange(predictions.shape[1])
    if name == "logloss":
        if several:
            p = np.clip(predictions, CLIP, 1 - CLIP)
            return -float(np.mean(np.where(marks, np.log(p), np.log1p(-p))))
        p = predictions / predictions.sum(1, keepdims=True)
        return -float(np.mean(np.log(np.clip(p, CLIP, 1 - CLIP))[marks]))
    if target.kind == "binary":
        marks, predictions = marks[:, 1:], predictions[:, 1:]
    both = np.flatnonzero(marks.any(0) & ~marks.all(0))
    if not len(both):
        raise Undefined("each label is in every row or in none")
    return float(np.mean([_area(marks[:, c], predictions[:, c]) for c in both]))


def _area(marks: np.ndarray, scores: np.ndarray) -> float:
    """By the ranks, of ties the mean: a fifth of the time of scikit-learn's, and a blend asks for it hundreds of times."""
    from scipy.stats import rankdata

    count = int(marks.sum())
    above = float(rankdata(scores)[marks].sum()) - count * (count + 1) / 2
    return above / (count * (len(marks) - count))


def _of_values(name: str, target: Target, truth: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn import metrics

    if name == "mae":
        return float(metrics.mean_absolute_error(truth, predictions))
    if name in ("rmse", "mcrmse"):
        return float(metrics.root_mean_squared_error(truth, predictions))
    if name == "rmsle":
        if (truth < 0).any():
            raise Undefined(
                f"it takes the logarithm of 1 + value, and the least true value is {truth.min():g}; use rmse"
            )
        return float(metrics.root_mean_squared_error(np.log1p(truth), np.log1p(np.maximum(predictions, 0))))
    for what, columns in (("target", truth), ("prediction", predictions)):
        still = [column for column, values in enumerate(columns.T) if np.ptp(values) == 0]
        if still:
            named = [target.names[c] for c in still] if target.kind == "regression" else target.columns
            raise Undefined(f"the {what} of {', '.join(named)} is the same in every row")
    return float(np.mean([np.corrcoef(t, p)[0, 1] for t, p in zip(truth.T, predictions.T, strict=True)]))
