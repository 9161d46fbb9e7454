"""tasks/metrics.py, tasks/metric_names.py, tasks/entities.py: against the formulas written out, and what rows don't define."""

import numpy as np
import pytest

from bidora_jax.data.labels import Labels
from bidora_jax.errors import InputError
from bidora_jax.tasks import entities, metric_names, metrics

N = 61
random = np.random.default_rng(0)


def classes(names, skew=None):
    """Labels, logits with ties among them, and targets of rows that are right more often than not."""
    count = len(names)
    truth = random.choice(count, size=N, p=skew)
    logits = (random.normal(size=(N, count)) + 1.5 * np.eye(count)[truth]).round(1)
    return Labels("classification", tuple(names)), logits, np.eye(count)[truth]


def f1_of(truth, found):
    hits = (truth & found).sum()
    return 2 * hits / max(truth.sum() + found.sum(), 1)


def auc_of(truth, score):
    """The share of pairs of a positive and a negative row that are in order; a tie is half of one."""
    above = score[truth][:, None] - score[~truth][None]
    return np.mean((above > 0) + 0.5 * (above == 0))


def kappa_of(truth, found, levels):
    seen = np.zeros((levels, levels))
    np.add.at(seen, (truth, found), 1)
    weights = np.subtract.outer(np.arange(levels), np.arange(levels)) ** 2
    return 1 - (weights * seen).sum() / (weights * np.outer(seen.sum(1), seen.sum(0)) / N).sum()


def test_two_classes():
    labels, logits, targets = classes(["no", "yes"], [0.7, 0.3])
    truth, found = targets[:, 1] > 0, logits.argmax(1) == 1
    p = 1 / (1 + np.exp(-(logits[:, 1] - logits[:, 0])))
    tp, tn, fp, fn = ((truth == a) & (found == b) for a, b in ((1, 1), (0, 0), (0, 1), (1, 0)))
    tp, tn, fp, fn = (one.sum() for one in (tp, tn, fp, fn))
    expected = {
        "accuracy": (tp + tn) / N,
        "f1": f1_of(truth, found),
        "f1_macro": (f1_of(truth, found) + f1_of(~truth, ~found)) / 2,
        "f1_micro": (tp + tn) / N,
        "matthews": (tp * tn - fp * fn) / np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
        "auc": auc_of(truth, p),
        "log_loss": -np.mean(np.log(np.where(truth, p, 1 - p))),
    }
    assert metrics.scores(labels, logits, targets) == pytest.approx(expected, rel=1e-9)
    assert metrics.measured(labels, logits, targets).notes == []


def test_several_classes_and_the_kappa_of_those_that_are_numbers():
    labels, logits, targets = classes(["10", "0.5", "2", "1"])
    truth, found = targets.argmax(1), logits.argmax(1)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    seen = np.zeros((4, 4))
    np.add.at(seen, (truth, found), 1)
    t, q = seen.sum(1), seen.sum(0)
    places = np.array([3, 0, 2, 1])  # by the size of the numbers, not by their order in the labels
    expected = {
        "accuracy": np.trace(seen) / N,
        "f1_macro": np.mean([f1_of(truth == c, found == c) for c in range(4)]),
        "f1_micro": np.trace(seen) / N,
        "matthews": (np.trace(seen) * N - t @ q) / np.sqrt((N**2 - q @ q) * (N**2 - t @ t)),
        "auc": np.mean([auc_of(truth == c, p[:, c]) for c in range(4)]),
        "log_loss": -np.mean(np.log(p[np.arange(N), truth])),
        "qwk": kappa_of(places[truth], places[found], 4),
    }
    assert metrics.scores(labels, logits, targets) == pytest.approx(expected, rel=1e-9)
    others = classes(["a", "b", "c"])
    assert "qwk" not in metrics.scores(*others)


def test_soft_labels_count_in_the_log_loss():
    labels, logits, _ = classes(["a", "b", "c"])
    soft = random.dirichlet(np.ones(3), size=N)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    found = metrics.scores(labels, logits, soft)
    assert found["log_loss"] == pytest.approx(-np.mean((soft * log_p).sum(1)))
    assert found["accuracy"] == np.mean(soft.argmax(1) == logits.argmax(1))


def test_several_labels_a_row():
    labels = Labels("multilabel", ("a", "b", "c"))
    targets = (random.random((N, 3)) < [0.2, 0.5, 0.7]) * 1.0
    logits = (random.normal(size=(N, 3)) + 2 * targets - 1).round(1)
    truth, found, p = targets > 0, logits >= 0, 1 / (1 + np.exp(-logits))
    expected = {
        "f1_macro": np.mean([f1_of(truth[:, c], found[:, c]) for c in range(3)]),
        "f1_micro": f1_of(truth.ravel(), found.ravel()),
        "auc": np.mean([auc_of(truth[:, c], logits[:, c]) for c in range(3)]),
        "log_loss": -np.mean(np.log(np.where(truth, p, 1 - p))),
        "subset_accuracy": np.mean((truth == found).all(1)),
    }
    assert metrics.scores(labels, logits, targets) == pytest.approx(expected, rel=1e-9)
    one = metrics.scores(Labels("multilabel", ("b",)), logits[:, 1:2], targets[:, 1:2])
    assert one["f1_macro"] == one["f1_micro"] == pytest.approx(f1_of(truth[:, 1], found[:, 1]))


def test_values_are_measured_on_the_scale_of_the_file():
    labels = Labels("regression", ("size", "age"), mean=(3.0, -50.0), std=(2.0, 40.0))
    targets = random.normal(size=(N, 2)).round(1)
    values = (targets + random.normal(size=(N, 2))).round(1)
    error = (values - targets) * np.array([2.0, 40.0])
    ranks = [[np.sum(column[:, None] > column, axis=1) + np.sum(column[:, None] == column, axis=1) / 2
              for column in array.T] for array in (values, targets)]  # fmt: skip
    expected = {
        "pearson": np.mean([np.corrcoef(values[:, k], targets[:, k])[0, 1] for k in range(2)]),
        "spearman": np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(*ranks, strict=True)]),
        "rmse": np.mean(np.sqrt(np.mean(error**2, axis=0))),
        "mae": np.mean(np.abs(error)),
    }
    assert metrics.scores(labels, values, targets) == pytest.approx(expected, rel=1e-9)


def test_whole_targets_have_a_kappa_of_the_nearest_levels():
    labels = Labels("regression", ("grade",), mean=(2.7,), std=(1.3,))
    grades = random.integers(1, 6, size=N)
    found = grades + random.normal(size=N)
    targets, values = (((one - 2.7) / 1.3).astype(np.float32)[:, None] for one in (grades, found))
    expected = kappa_of(grades - 1, np.clip(found.round(), 1, 5).astype(int) - 1, 5)
    assert metrics.scores(labels, values, targets)["qwk"] == pytest.approx(expected)
    assert "qwk" not in metrics.scores(labels, values, targets + 0.1)


TAGS = ("B-PER", "O", "I-PER", "B-LOC", "I-LOC")


def texts(*pairs):
    """Outputs and targets of texts from their (true, predicted) tags; a word of which nothing is asked has the true tag ''."""
    numbers = [np.array([TAGS.index(true) if true else -1 for true, _ in text]) for text in pairs]
    return [np.eye(5)[[TAGS.index(found) for _, found in text]] for text in pairs], numbers


def test_entities_are_right_as_a_whole():
    outputs, targets = texts(
        [("", "B-LOC"), ("B-PER", "B-PER"), ("I-PER", "I-PER"), ("O", "O"), ("B-LOC", "I-LOC")],  # both right
        [("B-PER", "B-PER"), ("I-PER", "O"), ("O", "B-LOC")],  # cut short, and one too many
    )
    labels = Labels("tokens", TAGS)
    expected = {"entity_f1": 4 / 7, "entity_precision": 2 / 4, "entity_recall": 2 / 3, "tag_accuracy": 4 / 7}
    assert metrics.scores(labels, outputs, targets) == pytest.approx(expected)
    lost = [
        (outputs[1], np.full((2, 5), np.nan)),
        (targets[1], np.array([3, 4])),
    ]  # an entity in words that were cut off
    outputs[1], targets[1] = (np.concatenate(pair) for pair in lost)
    measured = metrics.measured(labels, outputs, targets)
    cut = {"entity_f1": 4 / 8, "entity_precision": 2 / 4, "entity_recall": 2 / 4, "tag_accuracy": 4 / 9}
    assert measured.values == pytest.approx(cut) and not measured.notes


def test_tags_that_mark_no_entity_are_counted_word_by_word():
    labels = Labels("tokens", ("NOUN", "VERB", "ADJ", "ADV", "X"))
    outputs, targets = [np.eye(5)[[0, 1, 2]]], [np.array([0, 1, 1])]
    assert metrics.scores(labels, outputs, targets) == {"tag_accuracy": pytest.approx(2 / 3)}
    assert metric_names.default("tokens", labels.names).name == "tag_accuracy"
    assert metric_names.default("tokens", TAGS).name == "entity_f1"


@pytest.mark.parametrize(("tags", "expected"), [
    ("O B-A I-A O I-A", [("A", 1, 3), ("A", 4, 5)]),
    ("I-A I-B B-B I-B", [("A", 0, 1), ("B", 1, 2), ("B", 2, 4)]),
    ("S-A B-A I-A E-A E-A", [("A", 0, 1), ("A", 1, 4), ("A", 4, 5)]),
    ("U-A B-A I-A L-A L-A", [("A", 0, 1), ("A", 1, 4), ("A", 4, 5)]),
    ("O O", []),
])  # fmt: skip
def test_spans(tags, expected):
    assert entities.spans(tags.split()) == expected


CLASSES = Labels("classification", ("a", "b", "c"))
VALUES = Labels("regression", ("x", "y"), mean=(0.0, 0.0), std=(1.0, 1.0))


@pytest.mark.parametrize(("labels", "outputs", "targets", "there", "notes"), [
    (CLASSES, np.eye(3)[[0, 1, 1]], np.eye(3)[[1, 1, 1]], {"accuracy": 2 / 3, "f1_micro": 2 / 3},
     ["matthews is left out: every row has the label 'b'", "auc is left out: each label is in every row or in none"]),
    (CLASSES, np.eye(3)[[0, 0, 0]], np.eye(3)[[0, 1, 1]], {"matthews": 0.0, "auc": 0.5, "accuracy": 1 / 3}, []),
    (Labels("classification", ("a", "b")), np.eye(2)[[0, 1]], np.eye(2)[[0, 0]], {"accuracy": 0.5},
     ["f1 is left out: no row has the label 'b'", "matthews is left out: every row has the label 'a'",
      "auc is left out: every row has the label 'a'"]),
    (Labels("classification", ("1", "2", "3")), np.eye(3)[[0, 1]], np.eye(3)[[1, 1]], {"accuracy": 0.5},
     ["matthews is left out: every row has the label '2'", "auc is left out: each label is in every row or in none",
      "qwk is left out: every row has the same level"]),
    (VALUES, np.array([[1.5, 1], [1.5, 2]]), np.array([[0.5, 1.5], [1, 1]]), {"mae": 0.75},
     [f"{name} is left out: the prediction of x is the same in every row" for name in ("pearson", "spearman")]),
    (VALUES, np.eye(2), np.ones((2, 2)), {"mae": 0.5},
     [f"{name} is left out: the target of x, y is the same in every row" for name in ("pearson", "spearman")]),
    (VALUES, np.array([[1e200, 1], [2, 3]]), np.eye(2), {"mae": 2.5e199}, ["rmse is left out: these rows don't define it"]),
    (Labels("tokens", TAGS), [np.eye(5)[[0]]], [np.array([1])], {"tag_accuracy": 0.0},
     [f"{name} is left out: no text has an entity" for name in ("entity_f1", "entity_precision", "entity_recall")]),
    (CLASSES, np.array([[np.nan] * 3, [1, 2, 3]]), np.eye(3)[[0, 1]], {},
     ["1 of 2 rows have outputs that are not finite: nothing is measured"]),
    (Labels("tokens", TAGS), [np.full((2, 5), np.nan)], [np.ones(2, int)], {},
     ["1 of 1 rows have outputs that are not finite: nothing is measured"]),
    (Labels("tokens", TAGS), [np.eye(5), np.array([[0, 1, np.inf, 0, 0]])], [np.zeros(5, int), np.zeros(1, int)], {},
     ["1 of 2 rows have outputs that are not finite: nothing is measured"]),
    (CLASSES, np.zeros((0, 3)), np.zeros((0, 3)), {}, ["there are no rows to measure"]),
])  # fmt: skip
def test_what_rows_do_not_define_is_left_out_with_its_reason(labels, outputs, targets, there, notes):
    found = metrics.measured(labels, outputs, targets)
    assert found.notes == notes
    assert {name: found.values[name] for name in there} == pytest.approx(there)
    assert np.isfinite(list(found.values.values())).all()


def test_every_task_has_a_default_and_every_name_is_computed_somewhere():
    cases = [classes(["0", "1"]), classes(["0", "1", "2"]),
             (Labels("multilabel", ("a", "b")), random.normal(size=(9, 2)), np.eye(2)[[0, 1] * 4 + [0]]),
             (Labels("regression", ("x",), (0.0,), (1.0,)), random.normal(size=(3, 1)), np.array([[1.0], [2], [4]])),
             (Labels("tokens", TAGS), *texts([("B-PER", "O")]))]  # fmt: skip
    computed = {(labels.type, name) for labels, *rest in cases for name in metrics.scores(labels, *rest)}
    assert computed == {(task, metric.name) for metric in metric_names.METRICS for task in metric.types}
    assert {task: metric_names.default(task, TAGS).name for task in metric_names.DEFAULT} == metric_names.DEFAULT


def test_a_name_that_the_task_has_not_is_refused_with_those_it_has():
    with pytest.raises(
        InputError, match=r"regression has the metrics .*rmse.*, found accuracy, a metric of classification"
    ):
        metric_names.named("accuracy", "regression")
    with pytest.raises(InputError, match=r"did you mean 'matthews'"):
        metric_names.named("mathews", "classification")


def test_which_way_is_better():
    f1, loss = metric_names.named("f1", "classification"), metric_names.named("log_loss", "classification")
    assert f1.better(0.6, 0.5) and not f1.better(0.5, 0.5)
    assert loss.better(0.5, 0.6) and not loss.better(0.5, 0.5)


@pytest.mark.parametrize(("labels", "targets", "name", "why"), [
    (CLASSES, np.eye(3)[[1, 1]], "matthews", "matthews is left out: every row has the label 'b'"),
    (CLASSES, np.eye(3)[[1, 0]], "auc", ""), (CLASSES, np.eye(3)[[1, 1]], "accuracy", ""),
    (CLASSES, np.eye(3)[[1, 0]], "qwk", "qwk is left out: these labels have none"),
    (Labels("multilabel", ("a", "b")), np.array([[1, 0], [1, 0]]), "auc", "auc is left out: each label is in every row or in none"),
    (Labels("multilabel", ("a", "b")), np.array([[1, 0], [0, 0]]), "auc", ""),
    (VALUES, np.ones((3, 2)), "pearson", "pearson is left out: the target of x, y is the same in every row"),
    (VALUES, np.array([[1, 2], [2, 1]]), "pearson", ""),
    (Labels("tokens", TAGS), [np.array([1, -1])], "entity_f1", "entity_f1 is left out: no text has an entity"),
    (Labels("tokens", TAGS), [np.array([1, -1, 0])], "entity_f1", ""),
])  # fmt: skip
def test_what_the_targets_alone_do_not_define(labels, targets, name, why):
    assert metrics.why_undefined(labels, targets, name) == why
