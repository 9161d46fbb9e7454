"""What a competitor has without an encoder: the majority or the mean, and TF-IDF with a linear model.

    majority   the shares of the classes, or of each label, in the training part and one row more of each; the greatest is predicted
    mean       the mean of the training part; of log(1 + value) where the target is trained on it
    tf-idf     words and pairs of words, and 3 to 5 letters within words; (1 + log count)·idf, each of the two blocks with length 1;
               beside them columns of numbers, standardised, 0 where there is none
               logistic regression, of more than two classes and of labels each against the rest; ridge regression of values, levels

For each fold everything is fitted on the rows of the other folds: vocabulary, idf, means of numbers, weights. The words are
counted once, under hashes, which depend on no row. A row's prediction comes from the models that have not seen it; the prediction
of a test row is the mean over the folds' models. A class that a fold's training part lacks has the probability of one row in it.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bidora_jax.competitions.target import Target

LETTERS = 20_000_000
"""Letters of all texts together that are read at most, so that the counts fit a few GiB: of many texts each is cut."""
SHORTEST = 200
HASHES = 2**20
TERMS = 50_000
"""Of words, and of letters, the most frequent ones at most."""
INVERSE_PENALTY, PENALTY = 10.0, 1.0
"""Of logistic and of ridge regression: usual for rows of length 1."""
ITERATIONS = 100
TF_IDF = "tf-idf"


class Predictions(NamedTuple):
    oof: np.ndarray
    """Of the rows of train, each by the models of the other folds."""
    test: np.ndarray
    """The mean of the folds' models."""


def run(
    target: Target,
    texts: Sequence[str],
    truth: np.ndarray,
    folds: np.ndarray,
    test_texts: Sequence[str],
    numbers: np.ndarray | None = None,
    test_numbers: np.ndarray | None = None,
) -> dict[str, Predictions]:
    """Both baselines by name. `numbers` (N, D) and `test_numbers` are columns of numbers, NaN where there is none."""
    truth, folds = np.asarray(truth), np.asarray(folds)
    every = _counted([*texts, *test_texts])
    block = None if numbers is None or test_numbers is None else np.vstack([numbers, test_numbers]).astype(np.float64)
    own, tests = np.arange(len(texts)), np.arange(len(texts), len(texts) + len(test_texts))
    found: dict[str, Predictions] = {}
    numbered = np.unique(folds)
    for fold in numbered:
        train, held = own[folds != fold], own[folds == fold]
        for name, predict in _models(target, truth[train], _weighted(every, block, train), train).items():
            made = [np.expm1(one) if target.log else one for one in map(predict, (held, tests))]
            if name not in found:
                found[name] = Predictions(*(np.zeros((len(rows), made[0].shape[1])) for rows in (own, tests)))
            found[name].oof[held] = made[0]
            found[name].test[:] += made[1] / len(numbered)
    return found


Predict = Callable[[Any], np.ndarray]


def _models(target: Target, truth: np.ndarray, features: Predict, train: np.ndarray) -> dict[str, Predict]:
    """Rows -> predictions, by the baselines' names; a target's logarithms where it is trained on them."""
    learned = _learned(target, truth)
    constant, linear = _constant(target, learned), _fit(target, features(train), learned)
    simple = "mean" if target.kind in ("regression", "ordinal") else "majority"
    return {simple: lambda rows: np.tile(constant, (len(rows), 1)), TF_IDF: lambda rows: linear(features(rows))}


# Features


def _counted(texts: Sequence[str]) -> list[Any]:
    """Words and letters of each text, counted under their hashes: nothing is learned from any row."""
    from sklearn.feature_extraction.text import HashingVectorizer

    longest = max(SHORTEST, LETTERS // max(len(texts), 1))
    cut = [text[:longest] for text in texts]
    same: dict[str, Any] = {"n_features": HASHES, "alternate_sign": False, "norm": None, "dtype": np.float32}
    ways: list[Any] = [
        HashingVectorizer(analyzer="word", ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", **same),
        HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), **same),
    ]
    return [way.transform(cut).tocsr() for way in ways]


def _weighted(every: list[Any], block: np.ndarray | None, train: np.ndarray) -> Callable[[np.ndarray], Any]:
    """Rows -> features, as the training rows say."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfTransformer

    ways = []
    for counts in every:
        own = counts[train]
        frequency = np.bincount(own.indices, minlength=counts.shape[1])
        kept = np.sort(np.argsort(-frequency, kind="stable")[:TERMS])
        kept = kept[frequency[kept] > 0]
        ways.append((counts, kept, TfidfTransformer(sublinear_tf=True).fit(own[:, kept]) if len(kept) else None))
    scaled = None if block is None else _standardised(block, train)

    def features(rows: np.ndarray) -> Any:
        parts = [way.transform(counts[rows][:, kept]) for counts, kept, way in ways if way is not None]
        if scaled is not None:
            parts.append(sparse.csr_matrix(scaled[rows].astype(np.float32)))
        # A column of zeros stands where no training row has a word.
        return sparse.hstack([*parts, sparse.csr_matrix((len(rows), 1), dtype=np.float32)]).tocsr()

    return features


def _standardised(block: np.ndarray, train: np.ndarray) -> np.ndarray:
    """By mean and deviation of the training rows that have a number; far values count as 5 deviations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a column without a number
        mean, std = np.nanmean(block[train], axis=0), np.nanstd(block[train], axis=0)
    scaled = (block - mean) / np.where(std > 0, std, 1)
    return np.clip(np.nan_to_num(scaled, nan=0.0, posinf=5, neginf=-5), -5, 5)


# Models


def _learned(target: Target, truth: np.ndarray) -> np.ndarray:
    """What is fitted: class numbers (N,), or columns (N, K)."""
    if target.kind in ("binary", "multiclass"):
        return truth
    columns = truth.reshape(len(truth), -1).astype(np.float64)
    return np.log1p(columns) if target.log else columns


def _constant(target: Target, learned: np.ndarray) -> np.ndarray:
    if target.kind in ("regression", "ordinal"):
        return learned.mean(0)
    if target.kind == "multilabel":
        return (learned.sum(0) + 1) / (len(learned) + 2)
    count = len(target.names)
    return (np.bincount(learned, minlength=count) + 1) / (len(learned) + count)


def _fit(target: Target, features: Any, learned: np.ndarray) -> Predict:
    if target.kind in ("regression", "ordinal"):
        return _ridge(features, learned)
    if target.kind == "multilabel":
        columns = [_logistic(features, column.astype(int), 2) for column in learned.T]
        return lambda rows: np.stack([column(rows)[:, 1] for column in columns], axis=1)
    return _logistic(features, learned, len(target.names))


def _ridge(features: Any, learned: np.ndarray) -> Predict:
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=PENALTY, solver="sparse_cg").fit(features, learned)
    return lambda rows: model.predict(rows).reshape(rows.shape[0], learned.shape[1]).astype(np.float64)


def _logistic(features: Any, classes: np.ndarray, count: int) -> Predict:
    """Probabilities of all `count` classes; those that no row has share the probability of one row each."""
    present = np.unique(classes)
    small = 1 / (len(classes) + count)
    # Of two classes the second against the first, of more each against the rest.
    asked = present[1:] if len(present) == 2 else present if len(present) > 2 else present[:0]
    models = [_one_against_the_rest(features, classes == one) for one in asked]

    def predict(rows: Any) -> np.ndarray:
        shares = np.stack([model(rows) for model in models], axis=1) if models else np.ones((rows.shape[0], 1))
        if len(present) == 2:
            shares = np.hstack([1 - shares, shares])
        made = np.full((rows.shape[0], count), small)
        made[:, present] = shares / shares.sum(1, keepdims=True) * (1 - small * (count - len(present)))
        return made

    return predict


def _one_against_the_rest(features: Any, marks: np.ndarray) -> Predict:
    """By coordinate ascent in the dual, which takes a tenth of the time of lbfgs on as many columns as words are."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=INVERSE_PENALTY, solver="liblinear", dual=True, max_iter=ITERATIONS, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a few steps short of the optimum is near enough
        model.fit(features, marks)
    return lambda rows: model.predict_proba(rows)[:, 1].astype(np.float64)
