"""competitions/folds.py: stratified, grouped, copies of a text in one fold, sizes alike; competitions/inputs.py's labels."""

from collections import Counter

import numpy as np
import pytest

from bidora_jax.competitions import folds, inputs
from bidora_jax.competitions.target import Target


def of(kind: str, names: tuple[str, ...], columns: tuple[str, ...] = ("y",), **more) -> Target:
    return Target(kind, columns, names, "label", "accuracy", columns, **more)  # pyright: ignore[reportArgumentType]


def rows(values, **more) -> list[dict[str, str]]:
    return [
        {"y": str(value)} | {name: str(cells[at]) for name, cells in more.items()} for at, value in enumerate(values)
    ]


def unlike(count: int) -> list[tuple[str, ...]]:
    return [(f"text {number}",) for number in range(count)]


def test_each_class_is_spread_as_evenly_as_it_can_be():
    random = np.random.default_rng(0)
    values = random.permutation(["a"] * 41 + ["b"] * 17 + ["c"] * 5 + ["d"] * 3).tolist()
    found = folds.assign(of("multiclass", ("a", "b", "c", "d")), rows(values), unlike(66), None, 5, 0)
    for name, count in Counter(values).items():
        inside = np.bincount(found[np.array(values) == name], minlength=5)
        assert inside.sum() == count and inside.max() - inside.min() <= 1, name
    sizes = np.bincount(found)
    assert sizes.max() - sizes.min() <= 1


def test_numbers_are_stratified_by_tenths():
    values = np.random.default_rng(1).normal(size=100)
    found = folds.assign(of("regression", ("y",)), rows(values), unlike(100), None, 4, 0)
    tenth = np.argsort(np.argsort(values)) // 10
    for part in range(10):
        inside = np.bincount(found[tenth == part], minlength=4)
        assert inside.max() - inside.min() <= 1


def test_labels_of_several_are_each_in_every_fold():
    random = np.random.default_rng(2)
    marks = (random.random((90, 3)) < [0.5, 0.2, 0.06]).astype(int)
    table = [dict(zip("pqr", map(str, row), strict=True)) for row in marks]
    found = folds.assign(of("multilabel", ("p", "q", "r"), ("p", "q", "r")), table, unlike(90), None, 3, 0)
    for label in range(3):
        inside = np.bincount(found[marks[:, label] == 1], minlength=3)
        assert inside.max() - inside.min() <= 2 and inside.min() > 0


def test_copies_and_groups_are_in_one_fold():
    texts = unlike(40)
    for copy, first in ((7, 3), (21, 3), (30, 12)):
        texts[copy] = (f"  text \n {first} ",)  # blanks make no other text
    groups = [number // 3 for number in range(40)]
    found = folds.assign(of("binary", ("0", "1")), rows([n % 2 for n in range(40)], g=groups), texts, "g", 4, 0)
    for group in range(14):
        assert len({found[at] for at in range(40) if groups[at] == group}) == 1
    assert found[7] == found[3] == found[21] and found[30] == found[12]
    assert set(found) == {0, 1, 2, 3}


def test_the_seed_alone_decides():
    table = rows([n % 3 for n in range(60)])
    target = of("multiclass", ("0", "1", "2"))
    first, same, other = (folds.assign(target, table, unlike(60), None, 5, seed).tolist() for seed in (3, 3, 4))
    assert first == same != other


def test_a_class_in_one_fold_alone_is_said():
    table = rows(["a"] * 9 + ["b"] + ["c"] * 4)
    target = of("multiclass", ("a", "b", "c"))
    found = folds.assign(target, table, unlike(14), None, 2, 0)
    said = folds.described(target, table, found)
    assert said[0] == "2 folds of 7 rows" and "'b'" in said[1] and "'a'" not in said[1] and "'c'" not in said[1]


@pytest.mark.parametrize(
    ("target", "values", "expected"),
    [
        (of("binary", ("No", "Yes"), variants={" yes": "Yes"}), ["No", " yes"], ["No", "Yes"]),
        (of("regression", ("y",)), ["1.5", "-2"], [[1.5], [-2.0]]),
        (of("regression", ("y",), log=True), ["0", "2"], [[0.0], [float(np.log1p(2))]]),
        (of("ordinal", ("1", "2", "3")), ["3", "1"], [[3.0], [1.0]]),
    ],
)
def test_labels_are_what_a_run_learns(target, values, expected):
    assert inputs.labels(target, rows(values)) == expected


def test_several_labels_are_the_names_of_those_that_are_set():
    target = of("multilabel", ("p", "q"), ("p", "q"))
    assert inputs.labels(target, [{"p": "1", "q": "0"}, {"p": "0", "q": "0"}, {"p": "1", "q": "1"}]) == [
        ["p"],
        [],
        ["p", "q"],
    ]
