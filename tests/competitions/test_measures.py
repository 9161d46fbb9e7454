"""competitions/measures.py, competitions/kappa.py: against scikit-learn, scipy and the formulas written out."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics
from targets import target_of

from bidora_jax.competitions import kappa, measures
from bidora_jax.competitions.cuts import Cuts
from bidora_jax.competitions.measures import MEASURES, Undefined

N = 67
random = np.random.default_rng(0)
USUAL = Cuts()


@pytest.fixture(autouse=True)
def _from_the_start():
    """Each test draws the same numbers, in whichever order they run."""
    random.bit_generator.state = np.random.default_rng(1).bit_generator.state


def probabilities(kind):
    """Truth and probabilities with ties among them, right more often than not; class 0 is rarer than the others."""
    if kind == "multilabel":
        truth = (random.random((N, 3)) < [0.2, 0.5, 0.7]).astype(int)
        return truth, (0.6 * random.random(truth.shape) + 0.4 * truth).round(2)
    count = 2 if kind == "binary" else 3
    truth = random.choice(count, size=N, p=[0.2, 0.8] if count == 2 else [0.2, 0.3, 0.5])
    shares = (random.random((N, count)) + 0.7 * np.eye(count)[truth]).round(1) + 0.05
    return truth, shares / shares.sum(1, keepdims=True)


def score(name, kind, truth, predictions, cuts=USUAL, **more):
    return measures.score(name, target_of(kind, name, **more), truth, predictions, cuts)


def test_metrics_of_labels_are_scikit_learns():
    for kind in ("binary", "multiclass"):
        truth, p = probabilities(kind)
        found = p.argmax(1)
        assert score("accuracy", kind, truth, p) == np.mean(truth == found)
        assert score("macro_f1", kind, truth, p) == metrics.f1_score(truth, found, average="macro")
        assert score("mcc", kind, truth, p) == metrics.matthews_corrcoef(truth, found)
    truth, p = probabilities("binary")
    assert score("f1", "binary", truth, p) == metrics.f1_score(truth, p[:, 1] > p[:, 0])
    assert score("f1", "binary", truth, p, Cuts((0.8,))) == metrics.f1_score(truth, p[:, 1] >= 0.8)
    assert score("f1", "binary", truth, p, Cuts((0.8,))) != score("f1", "binary", truth, p)


def test_metrics_of_several_labels_are_scikit_learns():
    truth, p = probabilities("multilabel")
    found = p >= 0.5
    assert score("accuracy", "multilabel", truth, p) == np.mean((truth == found).all(1))
    assert score("f1", "multilabel", truth, p) == metrics.f1_score(truth, found, average="micro")
    assert score("macro_f1", "multilabel", truth, p) == metrics.f1_score(truth, found, average="macro")
    cuts = (0.3, 0.6, 0.4)
    assert score("f1", "multilabel", truth, p, Cuts(cuts)) == metrics.f1_score(truth, p >= cuts, average="micro")
    for name in ("f1", "macro_f1"):
        alone = score(name, "multilabel", truth[:, :1], p[:, :1], names=("red",))
        assert alone == metrics.f1_score(truth[:, 0], found[:, 0])


def test_the_area_is_that_of_one_against_the_rest():
    truth, p = probabilities("binary")
    assert score("auc", "binary", truth, p) == pytest.approx(metrics.roc_auc_score(truth, p[:, 1]), abs=1e-15)
    truth, p = probabilities("multiclass")
    assert score("auc", "multiclass", truth, p) == pytest.approx(
        metrics.roc_auc_score(truth, p, multi_class="ovr", average="macro"), abs=1e-15
    )
    truth, p = probabilities("multilabel")
    assert score("auc", "multilabel", truth, p) == pytest.approx(metrics.roc_auc_score(truth, p), abs=1e-15)
    truth[:, 1] = 1
    kept = [metrics.roc_auc_score(truth[:, c], p[:, c]) for c in (0, 2)]
    assert score("auc", "multilabel", truth, p) == pytest.approx(np.mean(kept), abs=1e-15)


def test_log_loss_is_of_all_labels_and_cut_off_where_kaggle_cuts_it():
    for kind in ("binary", "multiclass"):
        truth, p = probabilities(kind)
        expected = metrics.log_loss(truth, p, labels=range(p.shape[1]))
        assert score("logloss", kind, truth, p) == pytest.approx(expected, rel=1e-14)
    truth, p = np.array([0, 0]), np.array([[0.5, 0.25, 0.25], [0, 1, 0]])  # no row has the second or the third class
    assert score("logloss", "multiclass", truth, p) == pytest.approx((np.log(2) - np.log(1e-15)) / 2, rel=1e-14)
    assert score("logloss", "multiclass", truth, 3 * p) == score("logloss", "multiclass", truth, p)
    truth, p = probabilities("multilabel")
    expected = np.mean([metrics.log_loss(t, q, labels=[0, 1]) for t, q in zip(truth.T, p.T, strict=True)])
    assert score("logloss", "multilabel", truth, p) == pytest.approx(expected, rel=1e-14)


def test_metrics_of_values_are_the_means_of_the_columns():
    truth, values = random.gamma(2, 3, (N, 2)) * [1, 10], random.gamma(2, 3, (N, 2)) * [1, 10]
    values[3] = -1
    root = np.sqrt(np.mean((truth - values) ** 2, axis=0))
    assert score("rmse", "regression", truth, values) == pytest.approx(root.mean(), rel=1e-14)
    assert score("mcrmse", "regression", truth, values) == pytest.approx(root.mean(), rel=1e-14)
    assert score("mae", "regression", truth, values) == pytest.approx(np.mean(abs(truth - values)), rel=1e-14)
    clipped = np.where(values < 0, 0, values)
    logs = np.sqrt(np.mean((np.log(1 + truth) - np.log(1 + clipped)) ** 2, axis=0)).mean()
    assert score("rmsle", "regression", truth, values) == pytest.approx(logs, rel=1e-14)
    expected = np.mean([stats.pearsonr(truth[:, k], values[:, k]).statistic for k in range(2)])
    assert score("pearson", "regression", truth, values) == pytest.approx(expected, rel=1e-13)


def test_values_of_levels_are_measured_as_they_are_and_labels_after_cuts():
    truth = random.integers(1, 6, N).astype(float)
    values = (truth + random.normal(size=N))[:, None]
    assert score("rmse", "ordinal", truth, values) == pytest.approx(np.sqrt(np.mean((truth - values[:, 0]) ** 2)))
    nearest = np.clip(np.floor(values[:, 0] + 0.5), 1, 5)
    assert score("accuracy", "ordinal", truth, values) == np.mean(truth == nearest)
    assert score("macro_f1", "ordinal", truth, values) == metrics.f1_score(truth, nearest, average="macro")
    assert score("mcc", "ordinal", truth, values) == metrics.matthews_corrcoef(truth, nearest)
    qwk = metrics.cohen_kappa_score(truth, nearest, weights="quadratic", labels=[1, 2, 3, 4, 5])
    assert score("qwk", "ordinal", truth, values) == pytest.approx(qwk, abs=1e-14)
    cuts = (1.2, 2.3, 3.1, 4.8)
    moved = 1 + np.searchsorted(cuts, values[:, 0])
    qwk = metrics.cohen_kappa_score(truth, moved, weights="quadratic", labels=[1, 2, 3, 4, 5])
    assert score("qwk", "ordinal", truth, values, Cuts(cuts)) == pytest.approx(qwk, abs=1e-14)


def test_a_level_that_no_row_has_may_be_found():
    assert score("accuracy", "ordinal", np.array([3.0, 1.0]), np.array([[2.0], [1.0]])) == 0.5


def test_levels_may_have_fractions_and_gaps():
    names = ("-0.5", "1", "1.5", "4")
    levels = np.array([-0.5, 1, 1.5, 4])
    truth, found = levels[random.integers(4, size=N)], levels[random.integers(4, size=N)]
    rest = {"names": names}
    assert score("accuracy", "ordinal", truth, found[:, None] + 0.1, **rest) == np.mean(truth == found)
    halves = [(2 * levels).astype(int) for levels in (truth, found)]
    whole = metrics.cohen_kappa_score(*halves, weights="quadratic", labels=range(-1, 9))
    assert score("qwk", "ordinal", truth, found[:, None], **rest) == pytest.approx(whole, abs=1e-14)
    assert score("mcc", "ordinal", truth, found[:, None], **rest) == metrics.matthews_corrcoef(*halves)


def test_kappa_of_classes_goes_by_their_numbers_or_their_places():
    truth, p = probabilities("multiclass")
    found = p.argmax(1)
    by_place = metrics.cohen_kappa_score(truth, found, weights="quadratic", labels=[0, 1, 2])
    assert score("qwk", "multiclass", truth, p) == pytest.approx(by_place, abs=1e-14)
    scale = np.array([2, 3, 6])
    by_number = metrics.cohen_kappa_score(scale[truth], scale[found], weights="quadratic", labels=range(2, 7))
    assert score("qwk", "multiclass", truth, p, names=("2", "3", "6")) == pytest.approx(by_number, abs=1e-14)
    assert by_number != pytest.approx(by_place, abs=1e-3)


def test_kappa_of_years_keeps_its_digits():
    truth, found = random.integers(5, size=N), random.integers(5, size=N)
    assert kappa.kappa(truth + 2e8, found + 2e8) == kappa.kappa(truth, found)
    assert np.isnan(kappa.kappa(np.full(3, 0.1), np.full(3, 0.1)))


@pytest.mark.parametrize(
    ("name", "kind", "truth", "predictions", "reason"),
    [
        ("auc", "binary", [1, 1], [[0.5, 0.5]] * 2, "every row or in none"),
        ("auc", "multilabel", [[0, 1, 0]] * 2, [[0.5] * 3] * 2, "every row or in none"),
        ("f1", "binary", [0, 0], [[0.5, 0.5]] * 2, "no row is 'yes'"),
        ("f1", "multilabel", [[0, 0, 0]], [[0.5] * 3], "no row has a label"),
        ("mcc", "multiclass", [2, 2], [[0.2, 0.2, 0.6]] * 2, "same label"),
        ("qwk", "ordinal", [3.0, 3.0], [[1.0], [2.0]], "same level"),
        ("rmsle", "regression", [[-2.0, 1.0]], [[1.0, 1.0]], "least true value is -2"),
        ("pearson", "regression", [[1.0, 2.0], [1.0, 3.0]], [[1.0, 2.0], [2.0, 3.0]], "target of size is the same"),
        ("pearson", "ordinal", [1.0, 2.0], [[1.0], [1.0]], "prediction of target is the same"),
        ("rmse", "regression", [[1.0, 2.0]], [[np.nan, 2.0]], "1 of 1 rows have predictions that are not finite"),
        ("accuracy", "binary", [], np.zeros((0, 2)), "no rows"),
    ],
)
def test_a_metric_that_the_rows_do_not_define_says_why(name, kind, truth, predictions, reason):
    with pytest.raises(Undefined, match=reason):
        score(name, kind, np.array(truth), np.array(predictions))


def test_every_metric_is_of_its_kinds_and_is_better_for_what_is_right():
    for name, one in MEASURES.items():
        for kind in one.kinds:
            if kind == "regression":
                truth = random.gamma(2, 3, (N, 2))
                right = truth
            elif kind == "ordinal":
                truth = random.integers(1, 6, N).astype(float)
                right = truth[:, None]
            else:
                truth, _ = probabilities(kind)
                right = truth.astype(float) if kind == "multilabel" else np.eye(3 if kind == "multiclass" else 2)[truth]
            wrong = right[::-1]
            best, worse = score(name, kind, truth, right), score(name, kind, truth, wrong)
            assert one.better(best, worse) and not one.better(worse, best) and not one.better(best, best)
            assert best == pytest.approx(1.0 if one.higher_is_better else 0.0, abs=1e-12), (name, kind)
