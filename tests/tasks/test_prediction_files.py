"""tasks/prediction_files.py: columns and objects of each task, read back by Python's own readers."""

import csv
import json

import pytest

from bidora_jax.data.labels import Labels
from bidora_jax.errors import InputError
from bidora_jax.tasks import prediction_files
from bidora_jax.tasks.prediction_files import Column

TRICKY = 'a, "b"\nü'
CLASSES = Labels("classification", ("no", TRICKY))
ANSWERS = [
    {"label": TRICKY, "probabilities": {"no": 0.25, TRICKY: 0.75}},
    {"label": "no", "probabilities": {"no": 1.0, TRICKY: 1e-9}},
]


def rows(path, delimiter=","):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file, delimiter=delimiter))


@pytest.mark.parametrize(("name", "delimiter"), [("p.csv", ","), ("p.TSV", "\t")])
def test_a_table_has_the_id_the_label_and_every_probability(tmp_path, name, delimiter):
    prediction_files.write(tmp_path / name, CLASSES, ANSWERS, [Column("PassengerId", ["007", "x,y"])])
    assert rows(tmp_path / name, delimiter) == [
        ["PassengerId", "label", "no", TRICKY], ["007", TRICKY, "0.25", "0.75"], ["x,y", "no", "1", "1e-09"]
    ]  # fmt: skip


def test_the_columns_of_labels_stay_where_they_are_for_a_model_that_has_them_in_another_order(tmp_path):
    other = {"label": "no", "probabilities": {TRICKY: 0.4, "no": 0.6}}
    prediction_files.write(
        tmp_path / "p.csv", CLASSES, [ANSWERS[0], other], [Column("id", [1, 2]), Column("adapter", ["x", "y"])]
    )
    assert rows(tmp_path / "p.csv")[0] == ["id", "adapter", "label", "no", TRICKY]
    assert rows(tmp_path / "p.csv")[2] == ["2", "y", "no", "0.6", "0.4"]


def test_without_an_id_the_rows_stand_in_their_order(tmp_path):
    prediction_files.write(tmp_path / "p.csv", CLASSES, ANSWERS)
    assert [row[0] for row in rows(tmp_path / "p.csv")] == ["label", TRICKY, "no"]


def test_a_label_that_is_called_like_another_column_is_told_apart(tmp_path):
    labels = Labels("classification", ("label", "id", "c"))
    found = [{"label": "id", "probabilities": {"label": 0.1, "id": 0.7, "c": 0.2}}]
    prediction_files.write(tmp_path / "p.csv", labels, found, [Column("id", [3])])
    assert rows(tmp_path / "p.csv") == [
        ["id", "label", "probability of label", "probability of id", "c"],
        ["3", "id", "0.1", "0.7", "0.2"],
    ]


@pytest.mark.parametrize(("labels", "answer", "expected"), [
    (Labels("multilabel", ("a", "b,c")), {"labels": ["a", "b,c"], "probabilities": {"a": 0.5, "b,c": 0.9}},
     [["labels", "a", "b,c"], ['["a", "b,c"]', "0.5", "0.9"]]),
    (Labels("regression", ("target",)), {"value": 1 / 3}, [["value"], ["0.333333333"]]),
    (Labels("regression", ("x", "y")), {"values": {"x": -1.5, "y": 12345678.25}}, [["x", "y"], ["-1.5", "12345678.2"]]),
    (Labels("tokens", ("O", "B-X")), {"tags": ["O", "B-X"], "spans": []}, [["tags"], ["O B-X"]]),
    (Labels("tokens", ("O", "B-a b")), {"tags": ["O", "B-a b"], "spans": []}, [["tags"], ['["O", "B-a b"]']]),
    (Labels("tokens", ("O", "B-X")), {"tags": [], "spans": []}, [["tags"], [""]]),
])  # fmt: skip
def test_columns_of_the_other_tasks(tmp_path, labels, answer, expected):
    prediction_files.write(tmp_path / "p.csv", labels, [answer])
    assert rows(tmp_path / "p.csv") == expected


def test_json_lines_hold_the_answers_themselves(tmp_path):
    answer = {"tags": ["B-X"], "spans": [{"type": "X", "start": 0, "end": 1, "text": "é"}]}
    prediction_files.write(tmp_path / "p.jsonl", Labels("tokens", ("O", "B-X")), [answer], [Column("id", [7])])
    text = (tmp_path / "p.jsonl").read_text()
    assert json.loads(text) == {"id": 7} | answer and "é" in text
    prediction_files.write(tmp_path / "p.ndjson", CLASSES, ANSWERS)
    assert list(map(json.loads, (tmp_path / "p.ndjson").read_text().splitlines())) == ANSWERS


@pytest.mark.parametrize(("name", "said"), [("p.xlsx", "end in .csv, .tsv, .jsonl, .ndjson, found .xlsx"), ("p", "found no ending"),
                                            ("no/p.csv", "there is no folder for")])  # fmt: skip
def test_a_file_that_cannot_be_written_is_refused_in_advance(tmp_path, name, said):
    with pytest.raises(InputError, match=said):
        prediction_files.check(tmp_path / name)
