"""data/sources/in_memory.py: rows of a program are those that their file would hold, and what has no form in JSON is refused."""

import datetime
import decimal
import json

import datasets
import numpy as np
import pandas as pd
import pytest

from bidora_jax.data.sources import in_memory, sources
from bidora_jax.errors import InputError

CALL = {"name": "cut", "arguments": {"part": "lid", "depth": 3}}
ROWS = [
    {"instruction": "bohre ein Loch\u2028in Teil Ø", "input": "", "output": "done;\r\n", "n": 3},
    {"instruction": "no input", "input": None, "output": "x", "n": 4},
    {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}],
        "n": 5,
    },
]


def read_back(given, tmp_path) -> list[dict]:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(in_memory.json_lines("train", given))
    assert [row.place for row in sources.read(file)] == [f"{file}:{n}" for n in range(1, len(given) + 1)]
    return [row.value for row in sources.read(file)]


def test_a_list_is_what_its_json_lines_are(tmp_path):
    assert read_back(ROWS, tmp_path) == ROWS
    assert read_back(tuple(ROWS), tmp_path) == ROWS


def test_half_a_surrogate_pair_stays_what_it_is(tmp_path):
    rows = [{"text": "how big \ud83d"}, {"text": "Ø"}]
    assert read_back(rows, tmp_path) == rows
    assert "Ø".encode() in in_memory.json_lines("train", rows)


def test_a_data_set_is_what_its_saved_folder_is(tmp_path):
    keys = {key for row in ROWS for key in row}  # from_list takes those of the first row alone
    rows = [{**dict.fromkeys(sorted(keys)), **row} for row in ROWS]
    found = datasets.Dataset.from_list(rows).shuffle(seed=3).select([2, 0, 1])
    found.save_to_disk(str(tmp_path / "saved"))
    expected = [row.value for row in sources.read(tmp_path / "saved")]
    assert read_back(found, tmp_path) == expected
    # Arrow fills objects up with nulls; neither road keeps them.
    assert {len(turn) for row in expected for turn in row["messages"] or []} == {2, 3}


@pytest.mark.parametrize("nested", ["as it is", "read from Parquet"])
def test_a_frame_is_what_its_parquet_file_is(nested, tmp_path):
    frame = pd.DataFrame(ROWS, index=["a", "b", "c"])
    frame["share"] = np.array([0.5, np.nan, 2.0], np.float32)
    frame["whole"] = pd.array([1, None, 2**60], "Int64")
    frame["kind"] = pd.Categorical(["x", None, "y"])
    frame["vector"] = [np.arange(3), None, np.arange(2)]
    frame.to_parquet(tmp_path / "rows.parquet", index=False)
    expected = [row.value for row in sources.read(tmp_path / "rows.parquet")]
    if nested == "read from Parquet":  # lists are then arrays of numpy, and objects are filled up with nulls
        frame = pd.read_parquet(tmp_path / "rows.parquet")
        assert isinstance(frame["messages"][2], np.ndarray)
    assert read_back(frame, tmp_path) == expected
    assert expected[0]["messages"] is None and expected[1]["share"] is None and expected[2]["whole"] == 2**60


def test_numbers_of_numpy_missing_cells_and_dates_become_what_json_has(tmp_path):
    day = datetime.date(2026, 11, 29)
    row = {"i": np.int8(3), "f": np.float32(0.5), "b": np.bool_(True), "nan": float("nan"), "na": pd.NA, "nat": pd.NaT,
           "half": np.float16("nan"), "list": [np.int64(1), (2, [day])], "stamp": pd.Timestamp("2026-11-29 12:00"),
           "day": np.datetime64("2026-11-29"), "time": datetime.time(12, 5)}  # fmt: skip
    wanted = {"i": 3, "f": 0.5, "b": True, "nan": None, "na": None, "nat": None, "half": None,
              "list": [1, [2, ["2026-11-29"]]], "stamp": "2026-11-29T12:00:00", "day": "2026-11-29",
              "time": "12:05:00"}  # fmt: skip
    assert read_back([row], tmp_path) == [wanted]
    frame = pd.DataFrame({"stamp": [pd.Timestamp("2026-11-29 12:00"), pd.NaT]})
    assert read_back(frame, tmp_path) == [{"stamp": "2026-11-29T12:00:00"}, {"stamp": None}]
    assert json.loads(in_memory.json_lines("train", [row])) == wanted


NONE_IN_JSON = [
    ([{"a": 1}, {"a": b"x"}], "train row 2, column 'a': a value of kind bytes has no form in JSON"),
    ([{"a": float("inf")}], "train row 1, column 'a': the number inf has no form in JSON"),
    ([{"a": [1, float("nan")]}], "train row 1, column 'a': the number nan has no form in JSON"),
    ([{"a": {3: 1}}], "train row 1, column 'a': the key 3 of an object must be a text"),
    ([{0: "x"}], "train row 1, column 0: the name of a column must be a text"),
    ([{"a": {1, 2}}, {"a": decimal.Decimal(1)}], "column 'a': a value of kind Decimal has no form in JSON"),
    (pd.DataFrame({"a": [1, 2], "b": ["x", b"y"]}), "train row 2, column 'b': a value of kind bytes has no form"),
    (pd.DataFrame({"a": [[1], [{2}]]}), "train row 2, column 'a': a value of kind set has no form in JSON"),
    (pd.DataFrame([["x", "y"]]), "train row 1, column 1: the name of a column must be a text"),
    (datasets.Dataset.from_dict({"a": [b"x"]}), "train row 1, column 'a': a value of kind bytes has no form"),
    (pd.DataFrame([["x", "y"]], columns=["a", "a"]), "train has several columns named a; give each its own name"),
    (datasets.DatasetDict({"one": datasets.Dataset.from_dict({"a": [1]})}), "train has the splits one: give one of them"),
    ([], "train holds no row; give a path, a list of dictionaries, a datasets.Dataset or a pandas frame"),
    (pd.DataFrame({"a": []}), "train holds no row"),
    ([{"a": 1}, "b"], "train must hold dictionaries, a row each; found others:\n  train row 2: a value of kind str"),
    (iter([{"a": 1}]), "train must be a path, a list of dictionaries, a datasets.Dataset or a pandas frame, found a value of"),
    (3, "found a value of kind int"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "says"), NONE_IN_JSON, ids=lambda value: value[:40] if isinstance(value, str) else ""
)
def test_what_has_no_form_in_json_is_refused_with_row_and_column(given, says):
    with pytest.raises(InputError) as refused:
        in_memory.json_lines("train", given)
    assert says in str(refused.value)


def test_all_such_cells_are_named_at_once():
    with pytest.raises(InputError) as refused:
        in_memory.json_lines("val", [{"a": b"x", "b": {1}}, {"a": 1}, {"b": b"x"}])
    said = str(refused.value).splitlines()
    assert [line.split(":")[0] for line in said[1:4]] == [
        "  val row 1, column 'a'", "  val row 1, column 'b'", "  val row 3, column 'b'",
    ]  # fmt: skip


def test_a_path_is_told_from_rows(tmp_path):
    assert in_memory.paths("a.jsonl") == "a.jsonl"
    assert in_memory.paths(tmp_path) == str(tmp_path)
    assert in_memory.paths(["a.jsonl", tmp_path]) == ("a.jsonl", str(tmp_path))
    assert in_memory.paths([]) is in_memory.paths(ROWS) is in_memory.paths([{"a": 1}, "b"]) is None


def test_an_error_speaks_of_rows_as_the_call_does():
    with (
        pytest.raises(InputError, match=r"^1 of the 3 lines of train cannot be used:\n  train row 2: no$"),
        in_memory.in_words_of_the_call({"r/data/train.jsonl": "train"}),
    ):
        raise InputError("1 of the 3 lines of r/data/train.jsonl cannot be used:\n  r/data/train.jsonl:2: no")
