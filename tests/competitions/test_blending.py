"""competitions/blending.py: the laws of the weights, and the blend that they make."""

import numpy as np
import pytest
from targets import target_of

from bidora_jax.competitions import blending, cuts, measures
from bidora_jax.competitions.measures import Undefined

random = np.random.default_rng(0)
N = 59


@pytest.fixture(autouse=True)
def _from_the_start():
    """Each test draws the same numbers, in whichever order they run."""
    random.bit_generator.state = np.random.default_rng(1).bit_generator.state


def values():
    """Truth, and three models: two that err independently, one that is far off."""
    truth = random.normal(size=(N, 1))
    models = {"far": truth + 4 * random.normal(size=(N, 1)), "a": truth + random.normal(size=(N, 1)),
              "b": truth + random.normal(size=(N, 1))}  # fmt: skip
    return target_of("regression", "rmse", names=("size",)), truth, models


def fitted(target, truth, mixed):
    return measures.score(target.metric, target, truth, mixed, cuts.fit(target, truth, mixed))


def test_weights_sum_to_one_are_not_negative_and_come_out_the_same_again():
    target, truth, models = values()
    found = blending.weights(target, truth, models)
    assert sum(found.values()) == pytest.approx(1, abs=1e-12) and min(found.values()) >= 0
    assert list(found) == ["far", "a", "b"]
    assert blending.weights(target, truth, models) == found


def test_models_that_err_independently_are_mixed_and_a_bad_one_is_left_out():
    target, truth, models = values()
    found = blending.weights(target, truth, models)
    assert found["far"] < 0.1 and found["a"] > 0.25 and found["b"] > 0.25
    mixed = fitted(target, truth, blending.blended(found, models))
    assert mixed < 0.85 * min(fitted(target, truth, one) for one in models.values())


@pytest.mark.parametrize(("kind", "metric"), [("binary", "f1"), ("multiclass", "logloss"), ("multilabel", "auc"),
                                              ("ordinal", "qwk"), ("binary", "accuracy")])  # fmt: skip
def test_the_blend_is_never_worse_than_the_best_single_model(kind, metric):
    target = target_of(kind, metric)
    for seed in range(2 if metric == "qwk" else 4):
        rows = np.random.default_rng(seed)
        if kind == "ordinal":
            truth = rows.integers(1, 6, N).astype(float)
            models = {name: (truth + rows.normal(size=N))[:, None] for name in "ab"}
        elif kind == "multilabel":
            truth = rows.integers(2, size=(N, 3))
            models = {name: np.clip(rows.random(truth.shape) + 0.3 * truth, 0, 1) for name in "ab"}
        else:
            count = len(target.names)
            truth = rows.integers(count, size=N)
            made = {name: rows.random((N, count)) + 0.4 * np.eye(count)[truth] for name in "abc"}
            models = {name: one / one.sum(1, keepdims=True) for name, one in made.items()}
        mixed = fitted(target, truth, blending.blended(blending.weights(target, truth, models), models))
        for one in models.values():
            assert not measures.MEASURES[metric].better(fitted(target, truth, one), mixed)


def test_equal_models_are_the_first_alone():
    target, truth, models = values()
    assert blending.weights(target, truth, {"x": models["a"], "y": models["a"]}) == {"x": 1.0, "y": 0.0}
    assert blending.weights(target, truth, {"x": models["a"]}) == {"x": 1.0}


def test_the_blend_is_the_weighted_mean():
    mixed = blending.blended({"x": 0.25, "y": 0.75, "z": 0.0}, {"x": np.ones((2, 3)), "y": 3 * np.ones((2, 3))})
    assert mixed.tolist() == [[2.5] * 3] * 2


def test_rows_that_define_no_score_have_no_weights():
    target = target_of("binary", "auc")
    with pytest.raises(Undefined):
        blending.weights(target, np.ones(3, int), {"x": np.full((3, 2), 0.5)})
