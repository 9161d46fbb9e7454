"""competitions/detection.py, competitions/labels.py, competitions/target.py: what kind of target a column's cells are, which
spellings are one class, what the submission holds, and the rows' truth as arrays."""

import competitions
import numpy as np
import pytest

from bidora_jax.competitions import detection, headers, labels
from bidora_jax.competitions import files as competition_files
from bidora_jax.competitions.columns import Chosen
from bidora_jax.competitions.detection import Asked
from bidora_jax.competitions.target import Target, truth
from bidora_jax.errors import InputError

NOTHING = Asked()


@pytest.fixture
def found(tmp_path):
    def find(cells, shown="", asked=NOTHING, **more) -> Target:
        competitions.simple(tmp_path, cells, shown, **more)
        files = competition_files.read(tmp_path)
        return detection.find(files, headers.find(files, Chosen()), asked)[0]

    return find


@pytest.mark.parametrize(
    ("cells", "name", "kind"),
    [
        (["a", "b"], "y", "binary"), ([2, 7], "y", "binary"), (["-1", "1"], "y", "binary"), (["a", "b", "c"], "y", "multiclass"),
        (list(range(12)), "y", "multiclass"), (list(range(13)), "y", "regression"),  # a tenth of 120 rows
        (["0.5", "1", "2"], "y", "regression"), (["1e3", "2.5e3", "7"], "y", "multiclass"), ([3, 1, 2], "rating", "ordinal"),
        (["1.0", "2.0", "5.0", "3.0", "4.0"], "Stars", "ordinal"), ([1, 2, 4], "rating", "multiclass"),
        ([2, 3, 4], "score", "multiclass"),
        (list(range(12)), "essayScore", "multiclass"), ([0, 1, 2], "underscore", "multiclass"), ([0, 1], "score", "binary"),
    ],
)  # fmt: skip
def test_the_kind_by_the_cells_and_the_name(found, cells, name, kind):
    assert found(cells, name=name).kind == kind


@pytest.mark.parametrize(
    ("asked", "shown", "kind", "written", "metric"),
    [
        (Asked(), "", "multiclass", "label", "accuracy"), (Asked("ordinal"), "", "ordinal", "label", "qwk"),
        (Asked("", "qwk"), "", "ordinal", "label", "qwk"), (Asked("", "rmse"), "", "regression", "values", "rmse"),
        (Asked("multiclass", "qwk"), "", "multiclass", "label", "qwk"), (Asked(), "2.37", "regression", "values", "rmse"),
        (Asked("ordinal"), "2.37", "ordinal", "values", "rmse"), (Asked("regression"), "2", "regression", "values", "rmse"),
        (Asked("", "macro_f1"), "3", "multiclass", "label", "macro_f1"),
    ],
)  # fmt: skip
def test_the_metric_the_task_and_the_sample_decide(found, asked, shown, kind, written, metric):
    target = found([1, 2, 3, 4], shown, asked)
    assert (target.kind, target.written, target.metric) == (kind, written, metric)


@pytest.mark.parametrize(
    ("cells", "shown", "metric", "written", "taken"),
    [
        ([0, 1], 0, "", "label", "accuracy"), ([0, 1], 0.5, "", "probability", "auc"), ([0, 1], 0, "auc", "probability", "auc"),
        ([0, 1], "", "logloss", "probability", "logloss"), (["no", "yes"], 0, "", "probability", "auc"),
        (["no", "yes"], "no", "", "label", "accuracy"), ([1, 2], 0, "", "probability", "auc"), ([1, 2], 1, "f1", "label", "f1"),
    ],
)  # fmt: skip
def test_a_binary_target_is_written_as_label_or_probability(found, cells, shown, metric, written, taken):
    target = found(cells, shown, Asked("", metric))
    assert (target.kind, target.written, target.metric) == ("binary", written, taken)


def test_numbers_among_words_are_classes_only_if_asked_for(found):
    with pytest.raises(InputError, match=r"holds 40 of 120 cells that are no number"):
        found([1, 2, "other"])
    assert found([1, 2, "other"], asked=Asked("multiclass")).names == ("1", "2", "other")
    assert found([1, "a", "b", "c"]).kind == "multiclass"  # mostly words


def test_rmsle_needs_values_from_zero_on(found):
    assert found([0.5, 2, 3], asked=Asked("", "rmsle")).log
    with pytest.raises(InputError, match=r"rmsle is for values from 0 on; 'label' of .* holds -0.5"):
        found([-0.5, 2, 3], asked=Asked("", "rmsle"))


ONE_HOT = ("id", "text", "wins_a", "wins_b", "tie")


@pytest.mark.parametrize(
    ("shown", "asked", "kind", "written"),
    [
        (0.333, Asked(), "multiclass", "probabilities"), (0, Asked("", "logloss"), "multiclass", "probabilities"),
        (0, Asked(), "multilabel", "label"), (0.333, Asked("multilabel"), "multilabel", "probability"),
        (0, Asked("multiclass"), "multiclass", "probabilities"), (0.333, Asked("", "rmse"), "regression", "values"),
    ],
)  # fmt: skip
def test_columns_of_which_each_row_has_one_are_classes_where_probabilities_are_wanted(
    tmp_path, shown, asked, kind, written
):
    rows = [(n, f"a text {n}", *(int(n % 3 == at) for at in range(3))) for n in range(60)]
    competitions.table(tmp_path / "train.csv", ONE_HOT, rows)
    competitions.table(tmp_path / "test.csv", ONE_HOT[:2], [row[:2] for row in rows])
    competitions.table(
        tmp_path / "sample_submission.csv", (ONE_HOT[0], *ONE_HOT[2:]), [(n, shown, shown, shown) for n in range(60)]
    )
    files = competition_files.read(tmp_path)
    target = detection.find(files, headers.find(files, Chosen()), asked)[0]
    assert (target.kind, target.written, target.names) == (kind, written, ONE_HOT[2:])
    if kind == "multiclass":
        assert truth(target, files.train.rows[:5]).tolist() == [0, 1, 2, 0, 1]
        assert detection.class_outputs(target) == {"wins_a": 0, "wins_b": 1, "tie": 2}


# Labels


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["b", "a", "A"], ["A", "a", "b"]), (["yes", "no"], ["no", "yes"]), (["True", "False"], ["False", "True"]),
        (["spam", "ham"], ["ham", "spam"]), (["10", "9", "-1"], ["-1", "9", "10"]), (["Yes", "yes", "yes ", "No"], ["No", "yes"]),
        (["1.0", "1", "1.0", "2"], ["1.0", "2"]), (["01", "1"], ["01", "1"]), (["N/A", "n/a", "NA"], ["N/A", "NA"]),
    ],
)  # fmt: skip
def test_classes_by_their_usual_spelling_and_in_order(cells, names):
    found, variants = labels.spellings(cells)
    assert found == names
    assert {variants.get(cell, cell) for cell in cells} == set(names)


@pytest.mark.parametrize(
    ("names", "sample", "spelled"),
    [
        (("0.0", "1.0"), ["0"], ("0", "1")), (("0", "1"), ["0.0"], ("0.0", "1.0")),
        (("True", "False"), ["false"], ("true", "false")),
        (("Yes", "No"), ["NO"], ("YES", "NO")), (("a", "b"), [], ("a", "b")), (("a", "b"), ["c"], ("a", "b")),
        (("A", "a"), ["a"], ("A", "a")),
    ],
)  # fmt: skip
def test_a_class_is_spelled_as_the_sample_spells_classes(names, sample, spelled):
    assert tuple(labels.spelled(names, sample).values()) == spelled


@pytest.mark.parametrize(
    ("cell", "value"),
    [("1", 1.0), (" -2.5e1 ", -25.0), (".5", 0.5), ("1_000", None), ("nan", None), ("1e999", None), ("٣", None)],
)
def test_what_is_a_number(cell, value):
    assert labels.number(cell) == value


# Truth


def test_truth_of_each_kind():
    rows = [{"y": "no", "a": "1", "b": "0", "v": "2.5"}, {"y": " YES", "a": "0.0", "b": "1", "v": "-1e-2"}]

    def of(kind, columns, names, **more):
        return truth(Target(kind, columns, names, "label", "", columns, **more), rows)

    for found, expected, dtype in (
        (of("binary", ("y",), ("no", "yes"), variants={" YES": "yes"}), [0, 1], np.int64),
        (of("multilabel", ("a", "b"), ("a", "b")), [[1, 0], [0, 1]], np.int64),
        (of("regression", ("v",), ("v",)), [[2.5], [-0.01]], np.float64),
        (of("ordinal", ("a",), ("0", "1")), [1.0, 0.0], np.float64),
    ):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == dtype
