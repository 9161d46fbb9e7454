"""How right a task's outputs are: the metrics of metric_names.py, computed by scikit-learn, scipy and seqeval in float64.

Outputs are what the model gives: logits (N, C) of classes or labels, standardised values (N, K), for tokens logits (T, C) a text.
Targets are what a labelled batch holds: distributions (N, C), 0 and 1 (N, C), standardised values (N, K), or for tokens class
numbers (T,) a text with −1 where nothing is asked. Values are brought back to the scale of the file before they are measured.
A word that the model has not read, because it was cut off or has no token, has a row of NaN and counts as O.

A metric that these rows don't define (of one class only, of a constant) is left out and a note says why: there is no NaN.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bidora_jax.data.labels import OUTSIDE, Labels
from bidora_jax.tasks import entities, metric_names

Measure = Callable[[], float]
LEVELS = 101
"""Whole targets that count as the levels of an ordinal scale, at most."""


NOTHING: Any = 0
"""What 0/0 counts as."""


class Measured(NamedTuple):
    values: dict[str, float]
    """By the metric's name, in the order of METRICS."""
    notes: list[str]
    """Which metrics are not there, and why."""


class Undefined(Exception):
    """These rows don't define a metric."""


def scores(labels: Labels, outputs: Any, targets: Any) -> dict[str, float]:
    """The metrics of the task that these rows define, by name."""
    return measured(labels, outputs, targets).values


def measured(labels: Labels, outputs: Any, targets: Any) -> Measured:
    """The same with notes on what is left out."""
    if not len(outputs):
        return Measured({}, ["there are no rows to measure"])
    broken = sum(not _usable(labels, np.asarray(one)) for one in outputs)
    if broken or (labels.type == "tokens" and all(np.isnan(one).all() for one in outputs)):
        found = broken or len(outputs)
        return Measured({}, [f"{found} of {len(outputs)} rows have outputs that are not finite: nothing is measured"])
    if labels.type == "tokens":
        by_name = _tokens(labels, outputs, targets)
    else:
        of_type = {"classification": _classification, "multilabel": _multilabel, "regression": _regression}[labels.type]
        by_name = of_type(labels, np.asarray(outputs, np.float64), np.asarray(targets, np.float64))
    values, notes = {}, []
    for metric in metric_names.of_task(labels.type):
        if metric.name in by_name:
            try:
                values[metric.name] = _finite(by_name[metric.name])
            except Undefined as why:
                notes.append(f"{metric.name} is left out: {why}")
    return Measured(values, notes)


def why_undefined(labels: Labels, targets: Any, name: str) -> str:
    """Why targets don't define a metric, whatever is predicted; empty where they define it."""
    right: Any = targets
    if labels.type == "tokens":
        right = [np.eye(labels.count)[np.maximum(classes, 0)] for classes in targets]
    elif labels.type == "multilabel":
        right = np.asarray(targets, np.float64) - 0.5
    found = measured(labels, right, targets)
    if name in found.values:
        return ""
    return next((note for note in found.notes if note.startswith(name)), f"{name} is left out: these labels have none")


def undone(labels: Labels, values: Any) -> np.ndarray:
    """Standardised values (N, K) on the scale of the file."""
    return np.asarray(values, np.float64) * np.asarray(labels.std) + np.asarray(labels.mean)


def _usable(labels: Labels, outputs: np.ndarray) -> bool:
    """Whether the outputs of a row are finite; words of a text may be unread."""
    read = outputs[~np.isnan(outputs).all(1)] if labels.type == "tokens" else outputs
    return bool(np.isfinite(read).all())


def _finite(measure: Measure) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is not defined; the value says so too
        value = float(measure())
    if not np.isfinite(value):
        raise Undefined("these rows don't define it")
    return value


# Classes


def _classification(labels: Labels, logits: np.ndarray, targets: np.ndarray) -> dict[str, Measure]:
    from scipy.special import log_softmax
    from sklearn import metrics

    truth, found = targets.argmax(1), logits.argmax(1)

    def f1(average: str) -> Measure:
        return lambda: metrics.f1_score(truth, found, average=average, zero_division=NOTHING)

    def matthews() -> float:
        _several_labels(labels, truth)
        return metrics.matthews_corrcoef(truth, found)

    made: dict[str, Measure] = {
        "accuracy": lambda: metrics.accuracy_score(truth, found),
        "f1_macro": f1("macro"),
        "f1_micro": f1("micro"),
        "matthews": matthews,
        "auc": lambda: _auc(labels, truth[:, None] == np.arange(len(labels.names)), logits),
        # Not scikit-learn's, which knows no soft labels and cuts probabilities off.
        "log_loss": lambda: -np.mean(np.sum(targets * log_softmax(logits, axis=1), axis=1)),
    }
    if len(labels.names) == 2:

        def binary() -> float:
            if not truth.any():
                raise Undefined(f"no row has the label {labels.names[1]!r}")
            return metrics.f1_score(truth, found, zero_division=NOTHING)

        made["f1"] = binary
    if (places := _places(labels.names)) is not None:
        made["qwk"] = lambda: _kappa(places[truth], places[found], len(places))
    return made


def _several_labels(labels: Labels, truth: np.ndarray) -> None:
    if (truth == truth[0]).all():
        raise Undefined(f"every row has the label {labels.names[truth[0]]!r}")


def _auc(labels: Labels, truth: np.ndarray, logits: np.ndarray) -> float:
    """The mean over labels, of two classes that of the second. A label that no row has, or every row, has none."""
    from scipy.special import softmax
    from sklearn.metrics import roc_auc_score

    if labels.type == "classification" and len(labels.names) == 2:
        _several_labels(labels, truth.argmax(1))
        return float(roc_auc_score(truth[:, 1], logits[:, 1] - logits[:, 0]))
    outputs = softmax(logits, axis=1) if labels.type == "classification" else logits
    both = truth.any(0) & ~truth.all(0)
    if not both.any():
        raise Undefined("each label is in every row or in none")
    return float(np.mean([roc_auc_score(truth[:, c], outputs[:, c]) for c in np.flatnonzero(both)]))


def _places(names: Sequence[str]) -> np.ndarray | None:
    """The place of each class on a scale of three levels or more; None where the names are no numbers."""
    try:
        numbers = np.array([float(name) for name in names])
    except ValueError:
        return None
    return numbers.argsort().argsort() if len(names) > 2 and np.isfinite(numbers).all() else None


def _kappa(truth: np.ndarray, found: np.ndarray, levels: int) -> float:
    from sklearn.metrics import cohen_kappa_score

    if (truth == truth[0]).all():
        raise Undefined("every row has the same level")
    return cohen_kappa_score(truth, found, labels=np.arange(levels), weights="quadratic")


def _multilabel(labels: Labels, logits: np.ndarray, targets: np.ndarray) -> dict[str, Measure]:
    from scipy.special import log_expit
    from sklearn import metrics

    truth, found = targets >= 0.5, logits >= 0

    def f1(average: str) -> Measure:
        # scikit-learn takes a single label for two classes.
        return lambda: metrics.f1_score(
            truth, found, average=average if len(labels.names) > 1 else "binary", zero_division=NOTHING
        )

    return {
        "f1_macro": f1("macro"),
        "f1_micro": f1("micro"),
        "auc": lambda: _auc(labels, truth, logits),
        "log_loss": lambda: -np.mean(targets * log_expit(logits) + (1 - targets) * log_expit(-logits)),
        "subset_accuracy": lambda: metrics.accuracy_score(truth, found),
    }


# Values


def _regression(labels: Labels, values: np.ndarray, targets: np.ndarray) -> dict[str, Measure]:
    from scipy import stats
    from sklearn import metrics

    found, truth = undone(labels, values), undone(labels, targets)

    def correlation(of: Callable[..., Any]) -> Measure:
        def measure() -> float:
            for what, columns in (("target", truth), ("prediction", found)):
                still = [name for name, column in zip(labels.names, columns.T, strict=True) if np.ptp(column) == 0]
                if still:
                    raise Undefined(f"the {what} of {', '.join(still)} is the same in every row")
            return float(np.mean([of(*pair).statistic for pair in zip(truth.T, found.T, strict=True)]))

        return measure

    made: dict[str, Measure] = {
        "pearson": correlation(stats.pearsonr),
        "spearman": correlation(stats.spearmanr),
        "rmse": lambda: metrics.root_mean_squared_error(truth, found),
        "mae": lambda: metrics.mean_absolute_error(truth, found),
    }
    # What was a whole number in the file is one again but for the rounding of the standardised float32.
    whole, low = truth.round(), int(truth.min().round())
    levels = int(truth.max().round()) - low + 1
    if truth.shape[1] == 1 and levels <= LEVELS and np.allclose(truth, whole, rtol=0, atol=1e-4):
        nearest = np.clip(found.round(), whole.min(), whole.max())
        made["qwk"] = lambda: _kappa(whole[:, 0].astype(int) - low, nearest[:, 0].astype(int) - low, levels)
    return made


# Tokens


def tag_sequences(labels: Labels, outputs: Any, targets: Any) -> tuple[list[list[str]], list[list[str]]]:
    """True and predicted tags of the words of each text of which a tag is asked."""
    true, found = [], []
    for logits, classes in zip(map(np.asarray, outputs), map(np.asarray, targets), strict=True):
        asked = classes >= 0
        true.append([labels.names[c] for c in classes[asked]])
        found.append(tags(labels, logits[asked]))
    return true, found


def tags(labels: Labels, logits: np.ndarray) -> list[str]:
    """The most probable tag of each word; O of one that was not read."""
    return [OUTSIDE if np.isnan(row).all() else labels.names[row.argmax()] for row in logits]


def _tokens(labels: Labels, outputs: Any, targets: Any) -> dict[str, Measure]:
    from seqeval import metrics

    true, found = tag_sequences(labels, outputs, targets)
    words = sum(map(len, true))

    def right() -> float:
        if not words:
            raise Undefined("no word has a tag")
        return metrics.accuracy_score(true, found)

    def of_entities(of: Callable[..., Any]) -> Measure:
        def measure() -> float:
            read = [[entities.as_read(one) for one in texts] for texts in (true, found)]
            if not any(map(entities.spans, true)):
                raise Undefined("no text has an entity")
            return of(*read, zero_division=NOTHING)

        return measure

    made: dict[str, Measure] = {"tag_accuracy": right}
    if metric_names.are_entities(labels.names):
        for name in ("f1", "precision", "recall"):
            made[f"entity_{name}"] = of_entities(getattr(metrics, f"{name}_score"))
    return made
