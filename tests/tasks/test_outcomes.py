"""tasks/outcomes.py: the numbers of a report, counted by hand."""

import json

import numpy as np
import pytest

from bidora_jax.data.labels import Labels
from bidora_jax.tasks import outcomes

CLASSES = Labels("classification", ("a", "b", "c"))


def test_classes_have_a_confusion_a_row_a_label_and_a_reliability():
    truth, found = [0, 0, 0, 1, 2, 2], [0, 0, 1, 1, 1, 2]
    logits = 2.0 * np.eye(3)[found]
    logits[0] = [9.0, 0, 0]
    made = outcomes.outcome(CLASSES, logits, np.eye(3)[truth])
    assert made["confusion"] == [[2, 1, 0], [0, 1, 0], [0, 1, 1]]
    assert made["labels"] == [
        {"label": "a", "precision": 1.0, "recall": pytest.approx(2 / 3), "f1": pytest.approx(0.8), "support": 3},
        {"label": "b", "precision": pytest.approx(1 / 3), "recall": 1.0, "f1": 0.5, "support": 1},
        {"label": "c", "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
    ]
    share = np.exp(2) / (np.exp(2) + 2)
    assert made["reliability"] == [
        {"probability": pytest.approx(share), "right": pytest.approx(3 / 5), "rows": 5},
        {"probability": pytest.approx(1, abs=1e-3), "right": 1.0, "rows": 1},
    ]
    assert made["metrics"]["accuracy"] == 4 / 6 and (made["rows"], made["notes"]) == (6, [])


def test_a_label_that_nobody_has_counts_nothing():
    made = outcomes.outcome(CLASSES, np.eye(3)[[0, 1]], np.eye(3)[[0, 1]])
    assert made["labels"][2] == {"label": "c", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


@pytest.mark.parametrize("names", [("a", "b"), ("a",)])
def test_several_labels_a_row_are_counted_each(names):
    labels = Labels("multilabel", names)
    targets = np.array([[1, 0], [1, 1], [0, 0], [1, 1]])[:, : len(names)]
    logits = np.array([[1, 1], [1, 1], [-1, -1], [-1, 1]])[:, : len(names)]
    made = outcomes.outcome(labels, logits, targets)
    assert made["labels"][0] == {
        "label": "a",
        "precision": 1.0,
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(0.8),
        "support": 3,
    }
    assert [one["support"] for one in made["labels"]] == [3, 2][: len(names)]
    assert sum(one["rows"] for one in made["reliability"]) == targets.size and "confusion" not in made


def test_values_stand_beside_their_targets_on_the_scale_of_the_file(monkeypatch):
    labels = Labels("regression", ("x", "y"), mean=(1.0, 0.0), std=(2.0, 1.0))
    made = outcomes.outcome(labels, np.array([[0.5, 3], [1, 4]]), np.array([[0.0, 1], [1, 2]]))
    assert made["points"] == [[[1.0, 2.0], [3.0, 3.0]], [[1.0, 3.0], [2.0, 4.0]]]
    monkeypatch.setattr(outcomes, "POINTS", 3)
    rows = np.arange(9.0)[:, None]
    one = Labels("regression", ("x",), mean=(0.0,), std=(1.0,))
    assert outcomes.outcome(one, rows, rows)["points"] == [[[0.0, 0.0], [4.0, 4.0], [8.0, 8.0]]]


def test_entities_are_counted_by_type_and_other_tags_by_the_tag():
    labels = Labels("tokens", ("O", "B-PER", "I-PER", "U-LOC"))
    made = outcomes.outcome(labels, [np.eye(4)[[1, 2, 0, 3]], np.eye(4)[[1]]], [np.array([1, 2, 3, 3]), np.array([-1])])
    assert made["labels"] == [
        {"label": "LOC", "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
        {"label": "PER", "precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1},
    ]
    parts = Labels("tokens", ("NOUN", "VERB"))
    unread = np.array([[1.0, 0], [0, 1], [np.nan, np.nan]])
    made = outcomes.outcome(parts, [unread], [np.array([0, 0, 1])])
    assert made["confusion"] == [[1, 1], [0, 0]]
    assert [one["support"] for one in made["labels"]] == [2, 1]
    nothing = outcomes.outcome(labels, [np.eye(4)[[0]]], [np.array([0])])
    assert "labels" not in nothing and nothing["metrics"] == {"tag_accuracy": 1.0}


def test_outputs_that_are_not_finite_leave_the_reason_alone():
    made = outcomes.outcome(CLASSES, np.full((2, 3), np.nan), np.eye(3)[:2])
    assert made["metrics"] == {} and "not finite" in made["notes"][0] and "labels" not in made


def test_the_file_of_a_run_holds_every_split(tmp_path):
    pair = np.eye(3), np.eye(3)
    outcomes.write(tmp_path, CLASSES, {"validation": pair, "test": (pair[0][:1], pair[1][:1])})
    found = json.loads((tmp_path / "outcomes.json").read_text())
    assert list(found) == ["validation", "test"]
    assert [one["rows"] for one in found.values()] == [3, 1] and found["validation"]["metrics"]["accuracy"] == 1
