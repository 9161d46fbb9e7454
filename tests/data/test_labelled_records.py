"""Labelled rows as records: what a model reads, what is not used, and every row that can't be used with its line."""

import json

import pytest

from bidora_jax.data.labelled_records import expected_files, how_to_read, of_rows, read
from bidora_jax.data.records import unused_keys
from bidora_jax.data.settings import DataConfig
from bidora_jax.data.sources import sources
from bidora_jax.errors import InputError

PLAIN = DataConfig()


def records(path, data: DataConfig = PLAIN, task: str = "auto", *, labelled: bool = True):
    found = sources.scan_each(str(path), expected_files(data, task))
    how = how_to_read(found, data, task)
    return read(found, how, data, labelled=labelled)[str(path)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(path, rows, *settings) -> str:
    with pytest.raises(InputError) as error:
        records(write(path, rows), *settings)
    return str(error.value).replace(f"{path}:", ":").replace(str(path), "FILE")


def test_a_record_keeps_what_is_read_and_counts_the_rest(tmp_path):
    rows = [{"id": 7, "text": "a", "label": "x", "note": ""}, {"id": 8, "text": 12, "label": "y", "note": "n"}]
    found = records(write(tmp_path / "a.jsonl", rows))
    assert found == [{"text": "a"}, {"text": "12"}]
    assert [one.target for one in found] == ["x", "y"]
    assert [one.row for one in found] == rows
    assert [line.replace(str(tmp_path), "") for line in unused_keys(found)] == [
        "'id' is not used: 2 records (/a.jsonl:1, /a.jsonl:2)", "'note' is not used: 1 record (/a.jsonl:2)",
    ]  # fmt: skip


def test_pairs_words_and_letters(tmp_path):
    pair = records(
        write(
            tmp_path / "a.jsonl", [{"text_a": "p", "text_b": "", "label": 1}, {"text_a": "", "text_b": "", "label": 0}]
        )
    )
    assert pair == [{"text": "p", "text_pair": ""}, {"text": "", "text_pair": ""}]
    tagged = records(write(tmp_path / "b.jsonl", [{"tokens": ["EU", "a b"], "tags": ["B-ORG", "O"]}]))
    assert tagged == [{"words": ["EU", "a b"]}] and tagged[0].target == ["B-ORG", "O"]
    letters = records(write(tmp_path / "c.jsonl", [{"sequence": "MKV", "labels": "HHE"}]), task="tokens")
    assert letters == [{"words": ["M", "K", "V"]}] and letters[0].target == ["H", "H", "E"]
    found = records(
        write(tmp_path / "e.jsonl", [{"body": "MKV" * 9, "labels": "HHE" * 9}]),
        DataConfig(text_columns=("body",)),
        "tokens",
    )
    assert len(found[0]["words"]) == 27
    city = records(write(tmp_path / "f.jsonl", [{"text": "York", "tags": "B-LOC"}]), task="tokens")
    assert city == [{"words": ["York"]}] and city[0].target == ["B-LOC"]
    text = records(write(tmp_path / "d.jsonl", [{"text": "new york", "tags": "B-LOC I-LOC"}]), task="tokens")
    assert text == [{"words": ["new", "york"]}]


def test_files_as_glue_has_them(tmp_path):
    (tmp_path / "train.tsv").write_text('gj04\t1\t\tOur "friends\ngj04\t0\t*\tThey\n')
    data = DataConfig(text_columns=("4",), label_columns=("2",))
    found = records(tmp_path / "train.tsv", data)
    assert found == [{"text": 'Our "friends'}, {"text": "They"}] and [one.target for one in found] == ["1", "0"]
    mrpc = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t70\t71\tHe said\tHe, "foo\r\n'
    (tmp_path / "msr.tsv").write_bytes(mrpc.encode())
    (pair,) = records(tmp_path / "msr.tsv")
    assert (
        pair == {"text": "He said", "text_pair": 'He, "foo'}
        and pair.target == "1"
        and list(pair.unused) == ["#1 ID", "#2 ID"]
    )


def test_every_row_that_cannot_be_used_is_named_with_its_line(tmp_path):
    path = tmp_path / "a.jsonl"
    good = {"text": "a", "label": "x"}
    wrong = [{"text": "b"}, {"text": None, "label": "x"}, {"text": ["b"], "label": "x"}, {"text": "b", "label": None}]
    assert refused(path, [good, *wrong]) == (
        "4 of the 5 lines of FILE cannot be used; each should be a row with a text in 'text', and a label in 'label':\n"
        "  :2: has no label in 'label'\n"
        "  :3: has no text in 'text'\n"
        "  :4: 'text' should be text, found an array\n"
        "  :5: has no label in 'label'"
    )  # fmt: skip
    numbers = [{"text": "a", "score": 0.5}, {"text": "b", "score": "NaN"}, {"text": "c", "score": 2}] * 5
    assert ":2: 'score' is nan, which nothing can be learned from" in refused(path, numbers)
    words = {"tokens": ["a", "b"], "tags": ["O"]}
    assert (
        "each should be a row with words in 'tokens', and a label in 'tags':\n  :1: has 2 words and 1 tags; each word"
        in refused(path, [words])
    )
    assert ":1: 'tokens' holds no word" in refused(path, [{"tokens": [], "tags": []}])
    assert ":1: 'tokens[]' should be text, found the number 3" in refused(path, [{"tokens": [3], "tags": ["O"]}])
    assert ":1: has no group in 'who' (data.group_column)" in refused(
        path, [good | {"who": ""}], DataConfig(group_column="who")
    )
    (tmp_path / "b.jsonl").write_text("{x\n")
    with pytest.raises(InputError, match=r"each should be a labelled text:\n.*not JSON"):
        records(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(InputError, match=r"holds no record; expected labelled texts, such as rows \{text, label\}"):
        records(tmp_path / "b.jsonl")


def test_rows_to_be_labelled_may_lack_a_label_or_have_a_broken_one(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        [{"text": "a", "score": 0.5}, {"text": "b", "score": "?"}, {"text": "c"}] + [{"text": "d", "score": 1}] * 9,
    )
    assert [one.target for one in records(path, labelled=False)][:4] == [[0.5], None, None, [1.0]]
    how = how_to_read({"x": list(sources.scan(path))}, DataConfig(), "regression")
    (one,) = of_rows([{"text": "z", "id": 5}], how)
    assert one.place == "row 1" and one.row == {"text": "z", "id": 5} and one.target is None
