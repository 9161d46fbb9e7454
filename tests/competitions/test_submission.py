"""competitions/submission.py: the cells of each kind of target, and what is refused before a file has its name; and
support/kaggle_rules.py, which refuses what it should."""

import csv
from pathlib import Path

import competitions
import numpy as np
import pytest
from competitions import BOM, table
from kaggle_rules import refused

from bidora_jax.competitions import files as competition_files
from bidora_jax.competitions import submission
from bidora_jax.competitions.columns import Columns
from bidora_jax.competitions.cuts import Cuts
from bidora_jax.competitions.plan import Plan
from bidora_jax.competitions.target import Target
from bidora_jax.errors import InputError


def written(folder, target, predictions, sample, *, cuts=Cuts(), ids=("07", "3", "x")):  # noqa: B008 - frozen
    """The rows of a submission for three rows of test."""
    table(folder / "train.csv", ("id", "text", "y"), [(1, "a", 1)])
    table(folder / "test.csv", ("id", "text"), [(one, "a text") for one in ids])
    (folder / "sample_submission.csv").unlink(missing_ok=True)
    if sample:
        (folder / "sample_submission.csv").write_text(sample)
    files = competition_files.read(folder)
    plan = Plan(folder, folder, Columns("id", target.columns, ("text",)), target, (), "", 5, 0, None)
    path = folder / "submission.csv"
    submission.write(path, files, plan, np.array(predictions), cuts)
    assert submission.check(path, files, target) == []
    return list(csv.reader(path.read_text().splitlines()))


def target(kind, names, how, outputs=("y",), **more):
    return Target(kind, ("y",), names, how, "", outputs, **more)


def test_labels_are_spelled_as_the_sample_does_and_the_header_is_its_own_to_the_letter(tmp_path):
    found = written(
        tmp_path, target("binary", ("0.0", "1.0"), "label"), [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], BOM + "id, y \n9,0\n"
    )
    assert found == [["id", " y "], ["07", "0"], ["3", "1"], ["x", "1"]]


def test_cuts_move_a_label(tmp_path):
    one = target("binary", ("no", "yes"), "label")
    found = written(tmp_path, one, [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], "", cuts=Cuts((0.7,)))
    assert found == [["id", "y"], ["07", "no"], ["3", "yes"], ["x", "no"]]


def test_a_probability_is_that_of_the_second_class(tmp_path):
    found = written(
        tmp_path,
        target("binary", ("no", "yes"), "probability"),
        [[0.9, 0.1], [0, 1.0000001], [1 / 3, 2 / 3]],
        "y,id\n.5,9\n",
    )
    assert found == [["y", "id"], ["0.1", "07"], ["1", "3"], ["0.666666667", "x"]]


def test_probabilities_stand_under_their_class_and_one_that_train_lacks_has_none(tmp_path):
    one = target("multiclass", ("a", "Bb", "c"), "probabilities", ("c", "BB", "d", "a"))
    found = written(tmp_path, one, [[0.5, 0.3, 0.2]] * 3, "id,c,BB,d,a\n1,0,0,0,1\n")
    assert found[1] == ["07", "0.2", "0.3", "0", "0.5"]


def test_several_labels_and_values_and_levels(tmp_path):
    many = Target("multilabel", ("p", "q"), ("p", "q"), "label", "", ("p", "q"))
    assert written(tmp_path, many, [[0.9, 0.1], [0.5, 0.6], [0, 0]], "id,p,q\n1,0,0\n")[1:3] == [
        ["07", "1", "0"],
        ["3", "1", "1"],
    ]
    values = Target("regression", ("p", "q"), ("p", "q"), "values", "", ("q2", "p2"))
    assert written(tmp_path, values, [[1.5, -2e-7]] * 3, "id,q2,p2\n1,0,0\n")[1] == ["07", "1.5", "-2e-07"]
    levels = target("ordinal", ("1", "2", "3"), "label")
    assert [row[1] for row in written(tmp_path, levels, [[0.2], [2.4], [9.0]], "id,y\n1,1\n")[1:]] == ["1", "2", "3"]
    assert written(tmp_path, levels, [[0.2], [2.4], [9.0]], "id,y\n1,1.0\n")[1] == ["07", "1.0"]


def test_a_column_that_the_sample_takes_over_from_test_is_copied(tmp_path):
    found = written(tmp_path, target("regression", ("y",), "values"), [[1.0], [2.0], [3.0]], "id,text,y\n1,a,0\n")
    assert found[:2] == [["id", "text", "y"], ["07", "a text", "1"]]


@pytest.mark.parametrize(
    ("one", "predictions", "says"),
    [
        (target("regression", ("y",), "values"), [[1.0], [2.0]], "has 3 rows, and there are 2 predictions"),
        (target("regression", ("y",), "values"), [[1.0], [np.nan], [np.inf]], "2 of them no number"),
        (target("binary", ("0", "1"), "probability"), [[0.1, 0.9], [-1.0, 2.0], [0.5, 0.5]], "the probability 2.0, outside"),
        (target("multiclass", ("a", "b"), "probabilities", ("a", "b")), [[0.5, 0.4]] * 3, "have the sum 0.9, expected 1"),
    ],
)  # fmt: skip
def test_what_kaggle_would_refuse_is_not_written(tmp_path, one, predictions, says):
    with pytest.raises(InputError, match=says):
        written(tmp_path, one, predictions, "")
    assert [path.name for path in tmp_path.iterdir() if "submission" in path.name] == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: ["id,Label", *lines[1:]], "its header is"),
        (lambda lines: lines[:-1], "36 ids"),
        (lambda lines: [*lines, lines[-1]], "38 ids"),
        (lambda lines: [*lines[:-1], lines[-1].replace("156", "0156")], "37 ids, 36 of them"),
        (lambda lines: [*lines[:-1], "156,"], "['156', '']"),
        (lambda lines: [*lines[:-1], "156,nan"], "'nan'"),
        (lambda lines: [*lines[:-1], "156,1.0"], "'1.0'"),
        (lambda lines: [*lines[:-1], "156,1,"], "another number of cells"),
        (lambda lines: ["﻿" + lines[0], *lines[1:]], "byte-order mark"),
    ],
)  # fmt: skip
def test_the_independent_checker_and_the_packages_own_refuse_the_same(tmp_path, change, says):
    competitions.simple(tmp_path, [0, 1], 0)
    answer = competitions.stale_sample(tmp_path)
    lines = ["id,label", *(f"{n},{n % 2}" for n in range(120, 157))]
    path = Path(tmp_path / "submission.csv")
    path.write_text("\n".join(lines) + "\n")
    files, one = competition_files.read(tmp_path), Target("binary", ("label",), ("0", "1"), "label", "", ("label",))
    assert refused(path, tmp_path, answer) == [] and submission.check(path, files, one) == []
    path.write_text("\n".join(change(lines)) + "\n")
    assert says in refused(path, tmp_path, answer)[0]
    assert submission.check(path, files, one) != []
