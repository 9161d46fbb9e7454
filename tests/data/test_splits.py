"""Splits: no record on two sides, every source as often as it weighs, and everything said about who stands twice.

data/preparation.py puts what is read, split, encoded and packed together.
"""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from runs import SMALL, inputs
from tiny import write_tokenizer

from bidora_jax.config import leaves, parse_train, read, resolve
from bidora_jax.data import splits
from bidora_jax.data.preparation import prepare
from bidora_jax.data.records import Record
from bidora_jax.data.settings import DataConfig
from bidora_jax.data.tokenizer import load_tokenizer
from bidora_jax.errors import InputError
from bidora_jax.runs.assembly import assemble


def write(path, texts) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def texts(part) -> list[str]:
    return [record["text"] for record in part.records]


@pytest.fixture
def files(tmp_path):
    """(train, val, test): val has two of train, one of them spelt otherwise; test one of train and one of val; train one twice."""
    return (write(tmp_path / "train.jsonl", ["a", "b  c", "d", "a\n", "é", "f"]),
            write(tmp_path / "val.jsonl", ["x", " b c ", "e\u0301"]), write(tmp_path / "test.jsonl", ["x", "f"]))  # fmt: skip


# Splitting


def test_a_fraction_is_taken_by_seed_and_every_record_once():
    keys = [str(i).encode() for i in range(23)]
    chosen = splits.held_out(keys, 0.2, seed=5)
    assert np.flatnonzero(chosen).tolist() == sorted(np.random.default_rng(5).permutation(23)[:5].tolist())
    assert (splits.held_out(keys, 0.2, seed=5) == chosen).all()
    assert (splits.held_out(keys, 0.2, seed=6) != chosen).any()


@pytest.mark.parametrize("seed", range(5))
def test_copies_go_to_one_side_together(seed):
    keys = [b"abcdefghijkl"[i % 12 : i % 12 + 1] for i in range(31)]
    chosen = splits.held_out(keys, 0.3, seed)
    sides = [{one for one, here in zip(keys, chosen, strict=True) if here is np.bool_(side)} for side in (True, False)]
    assert not sides[0] & sides[1]
    assert 7 <= chosen.sum() <= 9  # of 9.3, with groups of 2 and 3


@pytest.mark.parametrize(("keys", "fraction"), [("abc", 0.0), ("abc", 0.1), ("abc", 0.9), ("abc", 1.0), ("aaaa", 0.5)])
def test_a_split_that_leaves_a_side_empty_is_refused(keys, fraction):
    with pytest.raises(InputError, match="each needs at least one"):
        splits.held_out([one.encode() for one in keys], fraction, seed=0)


def test_a_fraction_of_a_file_with_copies_leaks_nothing(tmp_path):
    source = write(tmp_path / "all.jsonl", [str(i % 40) for i in range(60)])
    found = splits.load(DataConfig(train_file=source, val_fraction=0.25), seed=3)
    assert len(found.val.records) == 15
    assert sorted(texts(found.train) + texts(found.val), key=int) == sorted([str(i % 40) for i in range(60)], key=int)
    assert not set(texts(found.train)) & set(texts(found.val))
    assert all("stand there twice" in line for line in found.notes)


def test_all_chunks_of_a_document_are_on_one_side(tmp_path):
    """Documents of 30 to 50 characters, each with letters of its own, in chunks of at most 16 tokens."""
    folder = tmp_path / "texts"
    folder.mkdir()
    letters, random = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ"), np.random.default_rng(1)
    documents = ["".join(random.choice([next(letters) for _ in range(3)], random.integers(30, 50))) for _ in range(12)]
    for start in range(0, 12, 4):
        (folder / f"{start}.txt").write_text("<|endoftext|>\n".join(documents[start : start + 4]))
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    data = DataConfig(train_file=str(folder), val_fraction=0.25, max_length=16, token_cache="")
    found = splits.load(data, seed=3)
    ready = prepare(data, found, tokenizer, positions=16, vocab_size=len(tokenizer), seed=3)
    train, val = ({token for one in part.examples for token in one.tokens.tolist()} for part in ready.encoded.values())
    assert train & val == {tokenizer.eos_token_id}
    for name, part in ready.encoded.items():
        assert len(part.chunks) == {"train": 9, "val": 3}[name] and min(part.chunks) >= 2
        given = {record.place: record["text"] for record in getattr(found, name).records}
        whole = {place: [] for place in given}
        for one in part.examples:
            assert 2 <= len(one.tokens) <= 16
            whole[ready.places[one.record]] += one.tokens.tolist()
        assert {place: tokenizer.decode(ids) for place, ids in whole.items()} == {
            place: text + tokenizer.eos_token for place, text in given.items()
        }
    counts = {name: (len(part.chunks), sum(part.chunks)) for name, part in ready.encoded.items()}
    assert all(f", {one} of more than 16 tokens split into {chunks}" in line
               for line, (one, chunks) in zip(ready.notes, counts.values(), strict=True))  # fmt: skip


# Duplicates


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [({"text": "a b"}, {"text": " a\n\tb "}, True), ({"text": "é"}, {"text": "e\u0301"}, True),
     ({"text": "a"}, {"text": "A"}, False), ({"prompt": "a", "completion": "b"}, {"instruction": "a", "output": "b"}, True),
     ({"prompt": "a b", "completion": "c"}, {"prompt": "a", "completion": "b c"}, False), ({"text": "x2"}, {"text": "x²"}, False),
     ({"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"role": "user", "content": "a "}]}, True),
     ({"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"role": "system", "content": "a"}]}, False)],
)  # fmt: skip
def test_what_is_a_copy(one, other, same):
    assert (splits.key(Record(one)) == splits.key(Record(other))) == same


def test_copies_are_reported_with_their_places(files):
    train, val, test = files
    found = splits.load(DataConfig(train_file=train, val_file=val, test_file=test), seed=0)
    assert found.notes == [
        f"duplicates: 1 of 6 train records stand there twice: {train}:4 = {train}:1",
        f"duplicates: 2 of 6 train records are in val too: {train}:2 = {val}:2, {train}:5 = {val}:3",
        f"duplicates: 1 of 6 train records are in test too: {train}:6 = {test}:2",
        f"duplicates: 1 of 3 val records are in test too: {val}:1 = {test}:1",
    ]
    assert [len(part.records) for part in found[:3]] == [6, 3, 2]


def test_the_first_of_several_copies_is_named(tmp_path):
    train, val = write(tmp_path / "train.jsonl", ["a"]), write(tmp_path / "val.jsonl", ["b", "a", "a"])
    found = splits.load(DataConfig(train_file=train, val_file=val), seed=0)
    assert f"{train}:1 = {val}:2" in found.notes[0]


def test_drop_takes_copies_out_of_train_only(files):
    train, val, test = files
    found = splits.load(DataConfig(train_file=train, val_file=val, test_file=test, duplicates="drop"), seed=0)
    assert texts(found.train) == ["a", "d"]
    assert [len(found.val.records), len(found.test.records)] == [3, 2]
    assert "2 of 6 train records are in val too, and are left out: " in found.notes[1]
    assert "left out" not in found.notes[3]
    with pytest.raises(InputError, match="every training record is in another split too"):
        splits.load(DataConfig(train_file=val, val_file=write_copy(val), duplicates="drop"), seed=0)


def write_copy(path: str) -> str:
    with open(path) as file, open(path + ".jsonl", "w") as copy:
        copy.write(file.read())
    return path + ".jsonl"


def test_refuse_lists_every_kind_of_copy(files):
    train, val, test = files
    with pytest.raises(InputError) as refused:
        splits.load(DataConfig(train_file=train, val_file=val, test_file=test, duplicates="refuse"), seed=0)
    assert str(refused.value).count("\n  duplicates: ") == 4
    assert splits.load(DataConfig(train_file=test, duplicates="refuse"), seed=0).notes == []


def test_a_long_report_is_cut(tmp_path):
    found = splits.load(DataConfig(train_file=write(tmp_path / "a.jsonl", ["same"] * 9)), seed=0)
    assert found.notes[0].startswith("duplicates: 8 of 9 train records stand there twice: ")
    assert found.notes[0].count(" = ") == 3 and found.notes[0].endswith(", …")


# Mixing


@pytest.mark.parametrize("weight", [0.4, 1.0, 2.0, 2.4])
def test_a_weight_is_how_often_each_record_is_seen(weight):
    drawn = splits.repeated(15, weight, seed=3, number=1)
    assert len(drawn) == round(15 * weight)
    assert set(Counter(drawn).values()) <= {int(weight), int(weight) + 1}
    assert set(Counter(drawn)) == set(range(15)) or weight < 1
    assert drawn == splits.repeated(15, weight, seed=3, number=1)
    if weight % 1:
        assert drawn != splits.repeated(15, weight, seed=4, number=1)
        assert drawn != splits.repeated(15, weight, seed=3, number=2)


def test_sources_are_mixed_by_weight_and_said(tmp_path):
    one, two = write(tmp_path / "one.jsonl", ["a", "b", "c"]), write(tmp_path / "two.jsonl", map(str, range(8)))
    found = splits.load(DataConfig(train_file=(one, two), weights=(2.0, 0.5)), seed=1)
    assert texts(found.train)[:6] == ["a", "b", "c", "a", "b", "c"]
    assert len(texts(found.train)[6:]) == 4 == len(set(texts(found.train)[6:]))
    assert found.notes == [f"{one}: 3 records × 2 = 6 an epoch, 60%", f"{two}: 8 records × 0.5 = 4 an epoch, 40%"]
    assert texts(splits.load(DataConfig(train_file=(one, two)), seed=1).train) == ["a", "b", "c", *map(str, range(8))]
    with pytest.raises(InputError, match=r"data\.weights leave no training record"):
        splits.load(DataConfig(train_file=one, weights=(0.1,)), seed=1)


def test_what_is_held_out_or_left_out_is_not_weighted(tmp_path):
    one, two = write(tmp_path / "one.jsonl", "abcdef"), write(tmp_path / "two.jsonl", "gha")
    data = DataConfig(train_file=(one, two), weights=(3.0, 1.0), val_fraction=0.5, duplicates="drop")
    found = splits.load(data, seed=2)
    counts = Counter(texts(found.train))
    assert Counter(texts(found.val)).most_common(1)[0][1] <= 2
    assert all(count == (1 if text in "gh" else 3) for text, count in counts.items())
    assert not counts.keys() & set(texts(found.val))


# Settings


def test_one_source_and_several_are_read_from_a_file_and_from_flags(tmp_path):
    (tmp_path / "c.json").write_text(
        json.dumps({"data": {"train_file": "a.jsonl", "val_file": ["b.jsonl", "c.csv"], "columns": {"text": "body"}}})
    )
    data = resolve(read(str(tmp_path / "c.json"))).data
    assert (data.train_file, data.val_file, data.columns) == ("a.jsonl", ("b.jsonl", "c.csv"), (("text", "body"),))
    flags = ["--data.train-file", "x.jsonl", "y.csv", "--data.weights", "2", "0.5", "--data.columns", "prompt", "q",
             "completion", "a"]  # fmt: skip
    config, _ = parse_train(["--config", str(tmp_path / "c.json"), *flags])
    assert (config.data.train_file, config.data.weights) == (("x.jsonl", "y.csv"), (2.0, 0.5))
    assert config.data.columns == (("prompt", "q"), ("completion", "a"))
    assert parse_train(["--data.train-file", "x.jsonl"])[0].data.train_file == "x.jsonl"
    assert dict(leaves(config))["data.val_file"] == ("b.jsonl", "c.csv")


@pytest.mark.parametrize(
    ("data", "said"),
    [(DataConfig(train_file=("a", "b"), weights=(1.0,)), "1 weights for the 2 sources"),
     (DataConfig(train_file="a", weights=(0.0,)), "must be above 0, found 0"),
     (DataConfig(train_file="a", weights=(float("nan"),)), "must be above 0, found nan")],
)  # fmt: skip
def test_weights_that_cannot_be_meant_are_refused(data, said):
    assert said in splits.wrong_settings(data)[0]
    assert splits.wrong_settings(DataConfig(train_file=("a", "b"), weights=(1.0, 2.5))) == []
    (alone,) = splits.wrong_settings(DataConfig(train_file="a", group_column="who"))
    assert "data.group_column keeps groups on one side of a split, and there is none: set data.val_fraction" in alone
    assert splits.wrong_settings(DataConfig(train_file="a", group_column="who", val_fraction=0.2)) == []


# In a run


def test_a_run_reads_mixed_sources_and_says_what_it_left_out(model_folder, data_files, tmp_path, capsys):
    (tmp_path / "more.csv").write_text("question,answer\nrepeat 1,v1;\nrepeat 2," + "v2; " * 20)
    config, _ = parse_train([*inputs(model_folder, data_files, tmp_path / "run"), *SMALL, "--data.max-length", "70",
                             "--data.long", "drop"])  # fmt: skip
    files = (str(data_files[0]), str(tmp_path / "more.csv"))
    data = replace(
        config.data, train_file=files, weights=(1.0, 3.0), columns=(("instruction", "question"), ("output", "answer"))
    )
    parts = assemble(replace(config, data=data))
    said = capsys.readouterr().out
    assert f"{files[1]}: 2 records × 3 = 6 an epoch, 21%" in said
    assert "3 left out for more than 70 tokens" in said
    assert len(parts.problem.train) == 26
    with pytest.raises(InputError) as refused:
        assemble(replace(config, data=replace(data, long="refuse")))
    assert "3 of 29 records have more than data.max_length = 70 tokens, and data.long is refuse" in str(refused.value)
    assert str(refused.value).count(f"{files[1]}:3") == 1
