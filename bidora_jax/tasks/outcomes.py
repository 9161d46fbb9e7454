"""What a report shows of a classifier on one split: metrics, a row a label, confusion, reliability, values against their targets.

A run writes it as outcomes.json, {"validation": {…}, "test": {…}}, whose numbers reporting/ draws.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from bidora_jax.data.labels import Labels
from bidora_jax.machine.files import write_whole
from bidora_jax.tasks import entities, metric_names, metrics, outputs

FILE = "outcomes.json"
BINS = 10
"""Of the reliability curve, equally wide."""
POINTS = 2000
"""Values that are drawn against their targets, at most."""


def write(run: Path, labels: Labels, splits: dict[str, tuple[Any, Any]]) -> None:
    """Writes outcomes.json of a run; `splits` are (outputs, targets) by the split's name, validation first."""
    found = {split: outcome(labels, *pair) for split, pair in splits.items()}
    write_whole(run / FILE, json.dumps(found, ensure_ascii=False) + "\n")


def outcome(labels: Labels, logits: Any, targets: Any) -> dict[str, Any]:
    """JSON of one split. `logits` and `targets` are as `metrics.measured` takes them; a part that the task has not is not there."""
    measured = metrics.measured(labels, logits, targets)
    found: dict[str, Any] = {
        "type": labels.type, "names": list(labels.names), "rows": len(logits), "metrics": measured.values,
        "notes": measured.notes,
    }  # fmt: skip
    if not measured.values:
        return found
    if labels.type == "tokens":
        return found | _of_tags(labels, *metrics.tag_sequences(labels, logits, targets))
    shares, targets = outputs.shares(labels, logits), np.asarray(targets, np.float64)
    if labels.type == "regression":
        return found | {"points": _points(metrics.undone(labels, targets), shares)}
    if labels.type == "multilabel":
        truth = targets >= 0.5
        return found | {
            "labels": _by_label(labels, truth, shares >= 0.5),
            "reliability": _reliability(truth.ravel(), shares.ravel()),
        }
    truth, predicted = targets.argmax(1), shares.argmax(1)
    return found | {
        "labels": _by_label(labels, truth, predicted),
        "confusion": _confusion(truth, predicted, len(labels.names)),
        "reliability": _reliability(truth == predicted, shares.max(1)),
    }


def _by_label(labels: Labels, truth: np.ndarray, found: np.ndarray) -> list[dict[str, Any]]:
    """Precision, recall, F1 and the number of rows of each label."""
    from sklearn.metrics import precision_recall_fscore_support

    # scikit-learn takes a single label of several a row for two classes.
    asked = [1] if labels.type == "multilabel" and len(labels.names) == 1 else range(len(labels.names))
    columns: Any = precision_recall_fscore_support(truth, found, labels=asked, zero_division=metrics.NOTHING)
    return [
        {"label": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in zip(labels.names, *columns, strict=True)
    ]


def _confusion(truth: np.ndarray, found: np.ndarray, count: int) -> list[list[int]]:
    """Rows by their true label, downwards, and the predicted one, rightwards."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(truth, found, labels=range(count)).tolist()


def _reliability(right: np.ndarray, share: np.ndarray) -> list[dict[str, float]]:
    """Of the predictions in each bin of probability: its mean, the share that came true, and their number."""
    places = np.clip((share * BINS).astype(int), 0, BINS - 1)
    return [
        {"probability": float(share[own].mean()), "right": float(right[own].mean()), "rows": int(own.sum())}
        for own in (places == place for place in range(BINS))
        if own.any()
    ]


def _points(truth: np.ndarray, found: np.ndarray) -> list[list[list[float]]]:
    """[target, prediction] of the rows, at most POINTS evenly among them, for each of the K targets."""
    rows = np.unique(np.linspace(0, len(truth) - 1, min(len(truth), POINTS)).round().astype(int))
    return [np.stack([truth[rows, k], found[rows, k]], axis=1).tolist() for k in range(truth.shape[1])]


def _of_tags(labels: Labels, true: list[list[str]], found: list[list[str]]) -> dict[str, Any]:
    """Of entities by their type, as seqeval counts them, or of tags that mark none by the tag."""
    if not metric_names.are_entities(labels.names):
        places, count = {name: place for place, name in enumerate(labels.names)}, len(labels.names)
        # A word that was not read has the tag O, which may be none of them.
        truth, predicted = (
            np.array([places.get(tag, -1) for text in texts for tag in text]) for texts in (true, found)
        )
        return {"labels": _by_label(labels, truth, predicted), "confusion": _confusion(truth, predicted, count)}
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    read = [[entities.as_read(tags) for tags in texts] for texts in (true, found)]
    kinds = sorted({span.type for texts in read for tags in texts for span in entities.spans(tags)})
    if not kinds:
        return {}
    columns: Any = precision_recall_fscore_support(*read, average=None, zero_division=metrics.NOTHING)
    return {"labels": [
        {"label": kind, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for kind, p, r, f, n in zip(kinds, *columns, strict=True)
    ]}  # fmt: skip
