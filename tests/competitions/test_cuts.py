"""competitions/cuts.py: fitted cuts against every cut there is, and against those that nobody fitted."""

import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest
from sklearn import metrics
from targets import target_of

from bidora_jax.competitions import cuts, measures
from bidora_jax.competitions.cuts import Cuts
from bidora_jax.competitions.kappa import kappa

random = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _from_the_start():
    """Each test draws the same numbers, in whichever order they run."""
    random.bit_generator.state = np.random.default_rng(1).bit_generator.state


def binary(rows, decimals, share=0.3):
    """Truth and scores, with many ties where there are few decimals."""
    truth = (random.random(rows) < share).astype(int)
    scores = np.clip(0.5 * random.random(rows) + 0.25 * truth, 0, 1).round(decimals)
    return truth, np.stack([1 - scores, scores], axis=1)


def every_threshold(scores):
    return [-1.0, 2.0, 0.5, *scores, *(np.nextafter(score, 2) for score in scores)]


@pytest.mark.parametrize("decimals", [1, 8])
@pytest.mark.parametrize("average", ["binary", "macro"])
def test_the_sweep_finds_the_best_of_all_thresholds(decimals, average):
    name = {"binary": "f1", "macro": "macro_f1"}[average]
    target = target_of("binary", name)
    for rows in (3, 11, 53):
        truth, p = binary(rows, decimals)
        truth[0] = 1
        best = max(
            metrics.f1_score(truth, p[:, 1] >= one, labels=[0, 1], average=average, zero_division=0.0)
            for one in every_threshold(p[:, 1])
        )
        found = cuts.fit(target, truth, p)
        decided = cuts.decided(target, p, found)
        assert metrics.f1_score(truth, decided, labels=[0, 1], average=average, zero_division=0.0) == best


def test_the_threshold_lies_inside_its_gap_and_is_one_half_where_that_is_there():
    target = target_of("binary", "f1")

    def of(truth, scores):
        return cuts.fit(target, np.array(truth), np.stack([1 - np.array(scores), scores], axis=1)).values[0]

    assert of([0, 1, 1], [0.1, 0.3, 0.35]) == pytest.approx(0.2)
    assert of([0, 1], [0.1, 0.8]) == 0.5
    assert of([1, 1], [0.1, 0.8]) == 0.1
    assert of([0, 1], [np.nextafter(0.3, 0), 0.3]) == 0.3
    assert of([0, 0], [0.1, 0.8]) == 0.5  # without a positive row nothing is better than anything


def test_each_label_has_its_threshold():
    target = target_of("multilabel", "macro_f1")
    truth = (random.random((41, 3)) < [0.1, 0.4, 0.8]).astype(int)
    p = np.clip(0.5 * random.random(truth.shape) + 0.2 * truth, 0, 1).round(2)
    found = cuts.fit(target, truth, p)
    for column in range(3):
        best = max(
            metrics.f1_score(truth[:, column], p[:, column] >= one, zero_division=0.0)
            for one in set(every_threshold(p[:, column]))
        )
        assert metrics.f1_score(truth[:, column], p[:, column] >= found.values[column], zero_division=0.0) == best
    assert measures.score("macro_f1", target, truth, p, found) > measures.score("macro_f1", target, truth, p, Cuts())


def test_the_thresholds_of_all_labels_together_are_the_best_of_all_their_combinations():
    target = target_of("multilabel", "f1")
    for seed in range(12):
        rows = np.random.default_rng(seed)
        truth = rows.random((7, 3)) < [0.1, 0.4, 0.8]
        truth[0, 1] = True
        p = np.clip(0.6 * rows.random(truth.shape) + 0.2 * truth, 0, 1).round(1)
        counts = [
            {(int((t & (q >= one)).sum()), int((q >= one).sum())) for one in every_threshold(q)}
            for t, q in zip(truth.T, p.T, strict=True)
        ]
        best = max(
            2 * sum(hits for hits, _ in labels) / (truth.sum() + sum(predicted for _, predicted in labels))
            for labels in itertools.product(*counts)
        )
        found = cuts.fit(target, truth.astype(int), p)
        assert measures.score("f1", target, truth.astype(int), p, found) == pytest.approx(best, abs=1e-12)


def test_cut_points_of_levels_are_near_the_best_and_never_worse_than_rounding():
    target = target_of("ordinal", "qwk", names=("1", "2", "4"))
    for seed in range(8):
        rows = np.random.default_rng(seed)
        truth = rows.choice([1.0, 2.0, 4.0], size=43, p=[0.5, 0.3, 0.2])
        values = (0.4 * truth + 1 + 0.4 * rows.normal(size=43))[:, None]
        usual = kappa(truth, cuts.decided(target, values, Cuts()).ravel())
        found = cuts.fit(target, truth, values)
        reached = kappa(truth, cuts.decided(target, values, found).ravel())
        assert list(found.values) == sorted(found.values) and len(found.values) == 2
        places = [0.0, *(np.sort(values.ravel()) + 1e-9)]
        best = max(kappa(truth, np.array([1, 2, 4])[np.searchsorted(pair, values.ravel())])
                   for pair in itertools.combinations_with_replacement(places, 2))  # fmt: skip
        assert best + 1e-12 >= reached >= usual
        assert reached > best - 0.03, seed  # the search is local, and 0.025 from the best of all at its worst here


def test_levels_that_are_right_are_not_moved():
    target = target_of("ordinal", "qwk")
    truth = random.integers(1, 6, 50).astype(float)
    assert cuts.fit(target, truth, truth[:, None] + 0.1).values == (1.5, 2.5, 3.5, 4.5)


def test_the_fast_agreement_is_that_of_the_levels():
    scale = np.array([1.0, 2.0, 5.0, 5.5])
    truth, values = scale[random.integers(4, size=71)], random.normal(3, 2, 71).round(1)
    for points in ([2.0, 3.0, 4.0], [4.0, 2.0, 3.0], [2.0, 2.0, 9.0], [-9.0, -8.0, -7.0]):
        levels = scale[np.searchsorted(np.sort(points), values, side="right")]
        assert cuts._agreement(scale, truth, values)(np.array(points)) == pytest.approx(kappa(truth, levels), abs=1e-12)


def test_nothing_is_fitted_for_other_metrics():
    for kind, metric in (
        ("binary", "accuracy"),
        ("multiclass", "macro_f1"),
        ("ordinal", "rmse"),
        ("multilabel", "auc"),
    ):
        target = target_of(kind, metric)
        truth = np.ones((5, 3) if kind == "multilabel" else 5, int)
        assert cuts.fit(target, truth, np.ones((5, 3))) == Cuts()


def test_without_cuts_the_most_probable_class_one_half_and_the_nearest_level_decide():
    p = np.array([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2]])
    assert cuts.decided(target_of("multiclass", "accuracy"), p, Cuts()).tolist() == [1, 0]
    assert cuts.decided(target_of("multilabel", "f1"), p, Cuts()).tolist() == [[0, 1, 0], [1, 0, 0]]
    ordinal = target_of("ordinal", "qwk", names=("1", "2", "4"))
    levels = cuts.decided(ordinal, np.array([[-9.0], [1.5], [2.9], [3.0], [70.0]]), Cuts())
    assert levels.tolist() == [[1], [2], [2], [4], [4]]


def test_cuts_go_through_json():
    target = target_of("binary", "f1")
    found = cuts.fit(target, *binary(53, 8))
    assert Cuts(tuple(json.loads(json.dumps(asdict(found)))["values"])) == found
