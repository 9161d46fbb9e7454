"""competitions/scoring.py: scores that nothing was fitted on, and the blend that is submitted."""

import numpy as np
import pytest
from targets import target_of

from bidora_jax.competitions import blending, cuts, measures, scoring
from bidora_jax.competitions.scoring import Results, Score

N, FOLDS = 60, 3


def results(kind="binary"):
    random = np.random.default_rng(2)
    truth, folds = random.integers(2, size=N), np.arange(N) % FOLDS
    one, other = (np.clip(0.35 * random.random(N) + 0.12 * truth, 0, 1) for _ in range(2))
    oof = {"encoder": np.stack([1 - one, one], axis=1), "tf-idf": np.stack([1 - other, other], axis=1)}
    test = {name: values[:7] for name, values in oof.items()}
    return Results(truth, folds, oof, test)


def test_a_fold_is_scored_with_the_cuts_of_the_others():
    target, found = target_of("binary", "f1"), results()
    scores, notes = scoring.scores(target, found)
    expected = []
    for fold in range(FOLDS):
        own, p = found.folds == fold, found.oof["encoder"]
        fitted = cuts.fit(target, found.truth[~own], p[~own])
        expected.append(measures.score("f1", target, found.truth[own], p[own], fitted))
    assert scores["encoder"] == Score(tuple(expected), np.mean(expected), np.std(expected, ddof=1))
    assert list(scores) == ["encoder", "tf-idf", "blend"] and notes == []
    flattering = measures.score("f1", target, found.truth, p, cuts.fit(target, found.truth, p))
    assert scores["encoder"].mean < flattering


def test_the_labels_of_a_fold_do_not_reach_the_weights_and_cuts_it_is_scored_with(monkeypatch):
    target, found = target_of("binary", "f1"), results()
    seen = []
    kept = measures.score
    monkeypatch.setattr(measures, "score", lambda *args: seen.append((len(args[2]), args[4])) or kept(*args))
    scoring.scores(target, found)
    before = seen.copy()
    seen.clear()
    moved = found.truth.copy()
    moved[found.folds == 0] = 1 - moved[found.folds == 0]
    scoring.scores(target, found._replace(truth=moved))
    first_fold = [next(one for one in calls if one[0] == N // FOLDS) for calls in (before, seen)]
    assert first_fold[0] == first_fold[1]


def test_what_is_submitted_is_the_blend_with_the_cuts_of_all_rows():
    target, found = target_of("binary", "f1"), results()
    decision = scoring.decide(target, found)
    assert decision.weights == blending.weights(target, found.truth, found.oof)
    np.testing.assert_array_equal(decision.oof, blending.blended(decision.weights, found.oof))
    np.testing.assert_array_equal(decision.test, decision.oof[:7])
    assert decision.cuts == cuts.fit(target, found.truth, decision.oof) != cuts.USUAL


def test_a_fold_that_defines_no_score_is_left_out_and_said():
    target, found = target_of("binary", "auc"), results()
    truth = np.where(found.folds == 1, 1, found.truth)
    scores, notes = scoring.scores(target, found._replace(truth=truth))
    one = scores["tf-idf"]
    assert one.folds[1] is None and one.mean == np.mean([one.folds[0], one.folds[2]])
    assert notes == ["auc of fold 2 is left out: each label is in every row or in none"]


def test_where_no_fold_has_a_score_that_of_all_rows_stands_or_none():
    target, found = target_of("binary", "auc"), results()
    alone = found._replace(folds=np.arange(N))
    scores, _ = scoring.scores(target, alone._replace(oof={"encoder": found.oof["encoder"]}))
    assert list(scores) == ["encoder"]
    assert scores["encoder"].mean == measures.score("auc", target, found.truth, found.oof["encoder"], cuts.USUAL)
    none = found._replace(truth=np.ones(N, int))
    assert scoring.scores(target, none)[0]["encoder"] == Score((None,) * FOLDS, None, 0.0)
    assert scoring.decide(target, none).weights == {"encoder": 1.0, "tf-idf": 0.0}


@pytest.mark.parametrize(("metric", "best"), [("accuracy", "b"), ("logloss", "a")])
def test_the_winner_has_the_best_mean_and_is_no_blend(metric, best):
    found = {"a": Score((), 0.4, 0.0), "b": Score((), 0.6, 0.0), "c": Score((), None, 0.0), "d": Score((), 0.6, 0.0),
             "blend": Score((), 0.9 if metric == "accuracy" else 0.1, 0.0)}  # fmt: skip
    assert scoring.winner(metric, found) == best
    assert scoring.winner(metric, {"c": found["c"]}) is None
