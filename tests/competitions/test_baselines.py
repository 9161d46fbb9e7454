"""competitions/baselines.py: what each fold's models have seen, and what they predict."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from targets import target_of

from bidora_jax.competitions import baselines

random = np.random.default_rng(0)
WORDS = ["sun", "moon", "rain", "snow", "wind", "cloud", "storm", "frost"]
N, TESTS, FOLDS = 47, 13, 3
folds = random.permutation(N) % FOLDS


@pytest.fixture(autouse=True)
def _from_the_start():
    """Each test draws the same numbers, in whichever order they run."""
    random.bit_generator.state = np.random.default_rng(1).bit_generator.state


def texts(rows, classes):
    """Words at random, and often the one of the class."""
    drawn = [" ".join(random.choice(WORDS, 4)) for _ in range(rows)]
    return [
        f"{WORDS[c]} {WORDS[c]} {text}" if random.random() < 0.8 else text
        for c, text in zip(classes, drawn, strict=True)
    ]


def competition(kind, count=3):
    """A target, truth, texts and texts of test."""
    classes, hidden = random.integers(count, size=N), random.integers(count, size=TESTS)
    truth = {
        "binary": classes % 2,
        "multiclass": classes,
        "multilabel": (classes[:, None] == np.arange(3)).astype(int),
        "regression": np.stack([classes + 0.5, 10.0 * classes], axis=1),
        "ordinal": 1.0 + classes,
    }[kind]
    return target_of(kind, "rmse"), truth, texts(N, classes), texts(TESTS, hidden)


KINDS = ["binary", "multiclass", "multilabel", "regression", "ordinal"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_rows_own_label_never_reaches_its_prediction(kind):
    target, truth, own, test = competition(kind)
    before = baselines.run(target, own, truth, folds, test)
    for fold in range(FOLDS):
        held = np.flatnonzero(folds == fold)
        moved = truth.copy()
        moved[held] = truth[np.roll(held, 1)][::-1]
        assert (moved != truth).any()
        after = baselines.run(target, own, moved, folds, test)
        for name in before:
            np.testing.assert_array_equal(before[name].oof[held], after[name].oof[held])
        assert (before["tf-idf"].oof != after["tf-idf"].oof).any()  # the other folds have learned from them


def test_a_rows_own_text_and_numbers_reach_no_other_row_of_its_fold():
    target, truth, own, test = competition("binary")
    numbers, test_numbers = random.normal(size=(N, 2)), random.normal(size=(TESTS, 2))
    before = baselines.run(target, own, truth, folds, test, numbers, test_numbers)["tf-idf"].oof
    row, *others = np.flatnonzero(folds == 1)
    own[row], numbers[row] = "an altogether different text of other words", 99
    after = baselines.run(target, own, truth, folds, test, numbers, test_numbers)["tf-idf"].oof
    np.testing.assert_array_equal(before[others], after[others])
    assert (before[row] != after[row]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_tell_the_target_are_found_and_shapes_are_the_contracts(kind):
    target, truth, own, test = competition(kind)
    found = baselines.run(target, own, truth, folds, test)
    columns = {"binary": 2, "multiclass": 3, "multilabel": 3, "regression": 2, "ordinal": 1}[kind]
    assert list(found) == ["mean" if kind in ("regression", "ordinal") else "majority", "tf-idf"]
    for one in found.values():
        assert one.oof.shape == (N, columns) and one.test.shape == (TESTS, columns)
        assert one.oof.dtype == one.test.dtype == np.float64
        if kind in ("binary", "multiclass"):
            np.testing.assert_allclose(one.oof.sum(1), 1, rtol=1e-6)
            np.testing.assert_allclose(one.test.sum(1), 1, rtol=1e-6)
    simple, linear = found.values()
    full = truth.reshape(N, -1) if kind not in ("binary", "multiclass") else np.eye(columns)[truth]
    assert np.mean((full - linear.oof) ** 2) < 0.9 * np.mean((full - simple.oof) ** 2)


def test_the_models_are_scikit_learns_on_the_training_rows_and_test_is_their_mean():
    """Against the same pipeline written with TfidfVectorizer, which keeps words and no hashes."""
    for kind in ("multiclass", "ordinal"):
        target, truth, own, test = competition(kind)
        found = baselines.run(target, own, truth, folds, test)["tf-idf"]
        tests = []
        for fold in range(FOLDS):
            train, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            ways = [TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"),
                    TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)]  # fmt: skip
            for way in ways:
                way.fit([own[row] for row in train])

            def features(some, ways=ways):
                return np.hstack([way.transform(some).toarray() for way in ways])

            x = features([own[row] for row in train])
            if kind == "multiclass":
                rest = [
                    LogisticRegression(C=10, solver="liblinear", max_iter=1000).fit(x, truth[train] == c)
                    for c in range(3)
                ]

                def predict(some, rest=rest):
                    shares = np.stack([one.predict_proba(some)[:, 1] for one in rest], axis=1)
                    return shares / shares.sum(1, keepdims=True)
            else:
                ridge = Ridge(alpha=1.0).fit(x, truth[train])

                def predict(some, ridge=ridge):
                    return ridge.predict(some)[:, None]

            np.testing.assert_allclose(found.oof[held], predict(features([own[row] for row in held])), atol=3e-3)
            tests.append(predict(features(test)))
        np.testing.assert_allclose(found.test, np.mean(tests, axis=0), atol=3e-3)


def test_a_class_that_a_training_part_lacks_has_a_column_and_little_probability():
    target, truth, own, test = competition("multiclass")
    truth = np.where(truth == 2, 0, truth)
    truth[5] = 2
    for one in baselines.run(target, own, truth, folds, test).values():
        assert one.oof.shape == (N, 3)
        assert 0 < one.oof[5, 2] < 0.04
        np.testing.assert_allclose(one.oof.sum(1), 1, rtol=1e-6)


def test_a_training_part_of_one_class_or_of_empty_texts_is_predicted_too():
    target = target_of("binary", "accuracy")
    truth = np.where(np.arange(N) == 4, 1, 0)
    for own in (["word"] * N, [""] * N):
        for one in baselines.run(target, own, truth, folds, ["", "other"]).values():
            assert np.isfinite(one.oof).all() and one.test.shape == (2, 2)
            assert (one.oof.argmax(1) == 0).all()
    marks = np.zeros((N, 3), int)
    assert baselines.run(target_of("multilabel", "f1"), ["word"] * N, marks, folds, ["x"])["tf-idf"].oof.max() < 0.05


def test_the_majority_and_the_mean_are_those_of_the_other_folds():
    target, truth, own, test = competition("multiclass")
    found = baselines.run(target, own, truth, folds, test)["majority"].oof
    others = truth[folds != 0]
    expected = (np.bincount(others, minlength=3) + 1) / (len(others) + 3)
    np.testing.assert_allclose(found[folds == 0], np.tile(expected, ((folds == 0).sum(), 1)))
    target, truth, own, test = competition("regression")
    found = baselines.run(target, own, truth, folds, test)["mean"]
    np.testing.assert_allclose(found.oof[folds == 2][0], truth[folds != 2].mean(0))
    np.testing.assert_allclose(found.test[4], np.mean([truth[folds != fold].mean(0) for fold in range(FOLDS)], axis=0))


def test_a_target_that_is_learned_as_a_logarithm_comes_back_on_its_scale():
    target, truth, own, test = competition("regression")
    logs = target_of("regression", "rmsle", log=True)
    found = baselines.run(logs, own, truth, folds, test)
    plain = baselines.run(target, own, np.log1p(truth), folds, test)
    for name in found:
        np.testing.assert_allclose(found[name].oof, np.expm1(plain[name].oof))
        assert found[name].test.shape == (TESTS, 2)


def test_numbers_beside_the_text_are_learned_from_and_may_be_missing():
    target, truth, *_ = competition("binary")
    numbers = np.stack([1000 * truth + random.normal(size=N), np.full(N, np.nan), np.full(N, 7.0)], axis=1)
    numbers[3] = np.nan
    told = baselines.run(target, ["text"] * N, truth, folds, ["text"], numbers, np.array([[1000.0, 1, np.inf]]))[
        "tf-idf"
    ]
    assert np.isfinite(told.oof).all() and np.isfinite(told.test).all()
    assert np.mean(np.delete(told.oof.argmax(1) == truth, 3)) == 1
    assert told.test.argmax() == 1
