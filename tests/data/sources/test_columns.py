"""Columns under other names: data/sources/sources.py renames them for all files of a run at once."""

import pytest

from bidora_jax.data.encoding import read_records
from bidora_jax.data.sources import sources
from bidora_jax.data.sources.rows import SourceRow
from bidora_jax.errors import InputError


def test_columns_are_renamed_and_what_is_named_already_stays(tmp_path):
    (tmp_path / "a.csv").write_text("question,reply,instruction\nq,r,old\n")
    (tmp_path / "b.jsonl").write_text('{"instruction": "i", "output": "o"}\n{"instruction": "j", "reply": "r2"}\n')
    columns = (("instruction", "question"), ("output", "reply"))
    assert read_records([str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl")], columns) == [
        {"instruction": "q", "output": "r"}, {"instruction": "i", "output": "o"}, {"instruction": "j", "output": "r2"},
    ]  # fmt: skip


def test_a_renamed_column_is_not_there_twice():
    rows = {"a": [SourceRow("a:1", {"body": "x", "id": 1})]}
    assert sources.rename({"train": rows}, (("text", "body"),))["train"]["a"] == [
        SourceRow("a:1", {"id": 1, "text": "x"})
    ]


def test_columns_change_places_at_once(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "answer", "completion": "question"}')
    columns = (("prompt", "completion"), ("completion", "prompt"))
    assert read_records(tmp_path / "a.jsonl", columns) == [{"prompt": "question", "completion": "answer"}]


@pytest.mark.parametrize(
    ("columns", "said"),
    [((("text", "bdy"),), "the rows have 'body', 'id':\n  'bdy' for 'text' (did you mean 'body'?)"),
     ((("text", "body"), ("text", "id")), "the column mapping gives 'text' twice"),
     ((("prompt", "body"), ("completion", "note")), "'note' for 'completion'")],
)  # fmt: skip
def test_columns_that_are_not_there_are_refused(tmp_path, columns, said):
    (tmp_path / "a.csv").write_text("id,body\n1,x\n")
    with pytest.raises(InputError) as refused:
        read_records(tmp_path / "a.csv", columns)
    assert said in str(refused.value)


def test_a_row_without_a_column_that_others_have_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n{"bdy": "x"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl:2: lacks 'body' of the column mapping; it has 'bdy'"):
        read_records(tmp_path / "a.jsonl", (("text", "body"),))
