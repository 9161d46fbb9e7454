"""Labels as files write them: what a cell says under each type of task, and the type that labels speak of."""

import pytest

from bidora_jax.data.label_values import LabelReading, infer_type, reading, target, written
from bidora_jax.data.turns import BadRecord
from bidora_jax.errors import InputError


def said(task: str, cell, vectors: bool = False):
    return target({"label": cell}, LabelReading(task, ("label",), vectors, ""))


def wrong(task: str, cell, vectors: bool = False) -> str:
    with pytest.raises(BadRecord) as error:
        said(task, cell, vectors)
    return str(error.value)


def of_columns(task: str, *cells):
    names = ("a", "b", "c")[: len(cells)]
    return target(dict(zip(names, cells, strict=True)), LabelReading(task, names, False, ""))


def test_a_class_is_what_is_written():
    cells = ["yes", " 01 ", "NA", 1, 1.0, 2.5, True, "1.0"]
    assert [said("classification", cell) for cell in cells] == ["yes", "01", "NA", "1", "1", "2.5", "true", "1.0"]
    assert said("classification", "[sic]") == "[sic]"
    assert written(False) == "false"


@pytest.mark.parametrize("cell", [None, "", "  "])
@pytest.mark.parametrize("task", ["classification", "multilabel", "regression", "tokens"])
def test_an_empty_cell_is_no_label(task, cell):
    assert said(task, cell) is None


def test_shares_of_classes_sum_to_one():
    assert said("classification", {"x": 1, "y": 3e-9}) == pytest.approx({"x": 1, "y": 3e-9})
    assert said("classification", '{"x": 0.25, "y": 0.75}') == {"x": 0.25, "y": 0.75}
    assert of_columns("classification", "0.333", "0.333", "0.333") == pytest.approx(dict.fromkeys("abc", 1 / 3))
    assert "the shares of its classes sum to 0.9" in wrong("classification", {"x": 0.4, "y": 0.5})
    assert "the share of 'y' is the number -1" in wrong("classification", {"x": 2, "y": -1})
    assert "the share of 'y' is 'much'" in wrong("classification", {"x": 1, "y": "much"})
    assert "a text of several classes is of task.type multilabel" in wrong("classification", ["x"])


def test_several_classes_are_a_list_a_text_or_columns():
    for cell in (["x", 2, "x"], '["x", 2]', "['x', '2']", "x, 2", "x|2", "x;2"):
        assert said("multilabel", cell) == ["x", "2"]
    assert said("multilabel", []) == [] and said("multilabel", 3) == ["3"]
    assert said("multilabel", [0, 1, True], vectors=True) == ["1", "2"]
    assert of_columns("multilabel", "0", 1, "1.0") == ["b", "c"]
    with pytest.raises(BadRecord, match="'b' is '2'; each class should be 0 or 1"):
        of_columns("multilabel", "0", "2")
    assert "'1' is the number 7; each class should be 0 or 1" in wrong("multilabel", [0, 7], vectors=True)
    assert "in other rows it is a list of 0 and 1" in wrong("multilabel", "x", vectors=True)
    assert "holds null; expected a list of classes" in wrong("multilabel", ["x", None])
    assert "is an object" in wrong("multilabel", {"x": 1})


def test_a_number_is_finite():
    assert said("regression", " 2.50 ") == [2.5] and said("regression", 3) == [3.0]
    assert said("regression", "[1, 2.5]") == [1.0, 2.5] and of_columns("regression", "1", 2) == [1.0, 2.0]
    assert wrong("regression", "nan") == (
        "'label' is nan, which nothing can be learned from; write a number, or take the row out"
    )
    assert "'label' is inf" in wrong("regression", "Infinity")
    assert "'label' is inf" in wrong("regression", 10**400)
    assert "'label' is an empty array, and regression needs a number" in wrong("regression", [])
    assert "'label' is 'high', and regression needs a number" in wrong("regression", "high")
    assert "'label' is true" in wrong("regression", True)
    assert "'label' is '1_000'" in wrong("regression", "1_000")
    with pytest.raises(BadRecord, match="has no label in 'b'"):
        of_columns("regression", "1", "")


def test_tags_are_a_list_or_a_text():
    for cell in (["O", "B-X", 3], '["O", "B-X", 3]', "O B-X 3"):
        assert said("tokens", cell) == ["O", "B-X", "3"]
    assert said("tokens", "B-PER") == ["B-PER"]
    sequences = LabelReading("tokens", ("label",), False, "", letters=True)
    assert target({"label": "HH E-C"}, sequences) == list("HHE-C")
    assert "'label' is the number 3; expected a tag for each word" in wrong("tokens", 3)
    assert "holds null; expected a tag for each word" in wrong("tokens", ["O", None])


@pytest.mark.parametrize(
    ("cells", "found", "why"),
    [
        (["a", "b", "a"], "classification", "2 different labels"),
        (["1", "2.0", 3], "classification", "3 different labels"),
        ([1, 0.5], "regression", "labels are numbers such as 0.5, which is not whole"),
        (["0.5"] * 9 + ["n/a"], "regression", "labels are numbers such as 0.5, which is not whole"),
        (["0.5", "n/a"], "classification", "2 different labels"),
        ([["a"], []], "multilabel", "labels are lists"),
        ([[1, 2], [0, 1]], "multilabel", "labels are lists"),
        ([[1.5, 2.0]], "regression", "labels are lists of numbers that are not whole"),
        ([{"a": 1.0}], "classification", "labels are shares of classes"),
        ([True, False], "classification", "2 different labels"),
    ],
)
def test_the_type_is_what_labels_speak_of(cells, found, why):
    assert infer_type([[cell] for cell in cells]) == (found, why)


@pytest.mark.parametrize(
    ("rows", "found"),
    [([["0", 1], [1, 1]], "multilabel"), ([["0.2", 0.8], [1, 0]], "classification"), ([[2, 0.8]], "regression")],
)
def test_several_columns_are_flags_shares_or_numbers(rows, found):
    assert infer_type(rows, 2)[0] == found


def test_columns_that_are_no_numbers_are_refused():
    with pytest.raises(InputError, match="the label has 2 columns, and 'x' in one of them is no number"):
        infer_type([["x", 1]], 2)
    with pytest.raises(InputError, match="no row of train has a label in 'label': there is nothing to learn"):
        reading([{"label": ""}, {}], ("label",), False, "auto")


def test_what_the_task_is_set_to_counts():
    rows = [{"label": 1}, {"label": 2}]
    assert reading(rows, ("label",), False, "auto").type == "classification"
    assert reading(rows, ("label",), False, "regression")[:4] == (
        "regression", ("label",), False, "task.type is regression",
    )  # fmt: skip
    flags = [{"label": [0, 1, 1]}, {"label": "[1, 0, 0]"}]
    assert reading(flags, ("label",), False, "auto").vectors
    assert not reading([*flags, {"label": [1, 0]}], ("label",), False, "auto").vectors
    assert not reading([{"label": [3, 1]}], ("label",), False, "auto").vectors
