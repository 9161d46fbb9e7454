"""The classes of a run and their order, labels as numbers, and what is refused: data/labels.py's Labels from records."""

import numpy as np
import pytest

from bidora_jax.data.label_sets import Numbers, check, collect, vector
from bidora_jax.data.label_values import LabelReading
from bidora_jax.data.labelled_records import LabelledRecord
from bidora_jax.data.labels import Labels
from bidora_jax.errors import InputError


def records(*targets) -> list[LabelledRecord]:
    found = []
    for number, target in enumerate(targets, 1):
        one = LabelledRecord({"text": "t"}, f"a.csv:{number}", {}, {})
        one.target = target
        found.append(one)
    return found


def reads(task: str, *columns: str, vectors: bool = False) -> LabelReading:
    return LabelReading(task, columns or ("label",), vectors, "")


def collected(task: str, *targets, columns=(), vectors: bool = False, names=None) -> tuple[Labels, list[str]]:
    return collect(records(*targets), reads(task, *columns, vectors=vectors), names)


def refused(task: str, *targets, **settings) -> str:
    with pytest.raises(InputError) as error:
        collected(task, *targets, **settings)
    return str(error.value)


# Order


@pytest.mark.parametrize(
    ("task", "targets", "names"),
    [
        ("classification", ["b", "B", "a"], ("B", "a", "b")),
        ("classification", ["10", "9", "-1", "9.5"], ("-1", "9", "9.5", "10")),
        ("classification", ["10", "9", "x"], ("10", "9", "x")),
        ("classification", [{"y": 1.0, "x": 0.0}, {"y": 0.5, "z": 0.5}], ("x", "y", "z")),
        ("multilabel", [["b"], [], ["c", "a"]], ("a", "b", "c")),
        ("tokens", [["B-PER", "O"], ["I-PER", "B-LOC"]], ("O", "B-LOC", "B-PER", "I-PER")),
        ("tokens", [["H", "C"], ["E", "O"]], ("O", "C", "E", "H")),
    ],
)
def test_numbers_by_size_and_words_by_the_alphabet(task, targets, names):
    assert collected(task, *targets)[0] == Labels(task, names)


def test_columns_and_places_keep_their_order():
    soft = [{"y": 0.0, "x": 1.0}, {"y": 1.0, "x": 0.0}]
    assert collected("classification", *soft, columns=("y", "x"))[0].names == ("y", "x")
    assert collected("multilabel", ["rude"], ["toxic"], columns=("toxic", "rude", "b"))[0].names == (
        "toxic",
        "rude",
        "b",
    )
    assert collected("multilabel", ["1"], ["10"], vectors=True)[0].names == tuple(map(str, range(11)))


def test_regression_has_the_mean_and_the_deviation_of_train():
    labels, notes = collected("regression", [1.0, 5.0], [3.0, 5.5], columns=("a", "b"))
    assert labels == Labels("regression", ("a", "b"), (2.0, 5.25), (1.0, 0.25))
    assert collected("regression", [1.0], [3.0], names=("dose",))[0].names == ("dose",)
    assert "task.labels names 2 values, 'a', 'b', and the records have 1" in refused(
        "regression", [1.0], [3.0], names=("a", "b")
    )
    assert notes[0] == "a: mean 2, standard deviation 1, from 1 to 3 in train"
    np.testing.assert_array_equal(vector(records([4.0, 5.0])[0], labels, Numbers(labels)), [2.0, -1.0])


# Numbers


def test_labels_become_vectors():
    def of(task, names, target):
        labels = Labels(task, names)
        return vector(records(target)[0], labels, Numbers(labels)).tolist()

    assert of("classification", ("a", "b", "c"), "b") == [0, 1, 0]
    assert of("classification", ("a", "b", "c"), {"a": 0.25, "c": 0.75, "gone": 0.0}) == [0.25, 0, 0.75]
    assert of("multilabel", ("a", "b", "c"), ["c", "a"]) == [1, 0, 1]
    assert of("multilabel", ("a", "b"), []) == [0, 0]
    assert np.isnan(of("classification", ("a", "b"), None)).all()


def test_a_number_is_a_class_however_it_is_written_and_label_1_is_the_second():
    number = Numbers(Labels("classification", ("0", "1", "x")))
    assert [number.of(name) for name in ("1", "1.0", "x", "2", "X")] == [1, 1, 2, None, None]
    both = Numbers(Labels("classification", ("1", "1.0")))
    assert [both.of(name) for name in ("1", "1.0", "01")] == [0, 1, None]
    unnamed = Numbers(Labels("classification", ("LABEL_0", "LABEL_1")))
    assert [unnamed.of(name) for name in ("LABEL_1", "1", "0", "2")] == [1, 1, 0, None]


def test_the_names_of_a_kept_head_win():
    labels, notes = collected("classification", "no", "yes", names=("yes", "no", "maybe"))
    assert labels.names == ("yes", "no", "maybe")
    assert "classes that no row of train has: 'maybe'" in notes
    assert refused("classification", "no", "yess", names=("yes", "no")) == (
        "labels of train that the head does not have:\n  train: 'yess' (did you mean 'yes'?), 1 record (a.csv:2)\n"
        "the head has 'yes', 'no'; give the data these names, or set task.labels, or train a new head (--task.head new)"
    )


# What is refused, and said


def test_one_class_or_one_value_teaches_nothing():
    assert refused("classification", "x", "x") == (
        "every training row has the label 'x', so there is nothing to tell apart; give rows of another one, or name the right "
        "column with --data.label-columns"
    )
    assert "every training row has the tag 'O'" in refused("tokens", ["O", "O"])
    assert "every training row has the label 'none'" in refused("multilabel", [], [])
    assert "train has nothing to predict: b is 0.1 in every row" in refused(
        "regression", [1.0, 0.1], [2.0, 0.1], [3.0, 0.1], columns=("a", "b")
    )
    assert "1 record (a.csv:2) have fewer than 2 numbers" in refused("regression", [1.0, 2.0], [1.0])


def test_a_class_that_train_does_not_have_is_named_with_its_rows():
    labels = Labels("classification", ("neg", "pos"))
    check({"val": records("pos", None), "test": records({"neg": 1.0, "other": 0.0})}, labels)
    with pytest.raises(InputError) as error:
        check({"val": records("pos", "poss", "poss"), "test": records("x")}, labels)
    assert str(error.value) == (
        "labels of val and test that train does not have:\n"
        "  val: 'poss' (did you mean 'pos'?), 2 records (a.csv:2, a.csv:3)\n"
        "  test: 'x', 1 record (a.csv:1)\n"
        "train has 'neg', 'pos'; correct them, give train rows of these classes, or take the rows out"
    )
    with pytest.raises(InputError, match=r"val: 1 record .a.csv:1. have other than 2 numbers"):
        check({"val": records([1.0])}, Labels("regression", ("a", "b"), (0, 0), (1, 1)))


def test_a_tag_outside_the_scheme_is_named_and_iob1_is_said():
    assert refused("tokens", ["B-PER", "O"], ["PER", "O"]) == (
        "tags are O, or B- and I- before a type, such as B-PER; others are there:\n  'PER', 1 record (a.csv:2)\n"
        "correct them, or take those rows out"
    )
    iob1 = "spans begin with I- in 2 records (a.csv:2, a.csv:3) (IOB1): they are read as seqeval reads them"
    tags = [["B-PER", "I-PER", "O"], ["I-LOC", "O"], ["B-PER", "I-LOC"]]
    assert iob1 in collected("tokens", *tags)[1]
    assert not any("IOB1" in line for line in collected("tokens", tags[0])[1])
    assert "the tags are numbers: spans and their F1 need names such as B-PER" in collected("tokens", ["0", "3"])[1]


def test_classes_are_counted():
    _, notes = collected("classification", *"2212113")
    assert notes == [
        "3 classes in train: 2 3, 1 3, 3 1", "classes with one row in train, which no split can share: '3'",
        "the classes are numbers, and their order is not used; task.type regression predicts a number",
    ]  # fmt: skip
    together = "labels that are other labels put together: '1,2'; task.type multilabel takes them apart"
    assert together in collected("classification", "1", "2", "1,2", "4,5")[1]
    assert (
        "classes that differ in the letters' case alone: 'Pos', 'pos'" in collected("classification", "Pos", "pos")[1]
    )
    _, notes = collected("multilabel", ["a", "b"], ["a"], columns=("a", "b", "c"))
    assert notes[2:] == ["classes that no row of train has: 'c'", "classes that every row of train has: 'a'"]
