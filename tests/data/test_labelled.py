"""Labelled files as a run takes them, and a file for a trained model: from the file to the batch."""

import encoder_tokenizers
import numpy as np
import pytest

from bidora_jax.data.batches import BatchForm, LabelForm, bucket_lengths, collate, full_pass
from bidora_jax.data.labelled import Room, prepare, read_file
from bidora_jax.data.labels import Labels
from bidora_jax.data.packing import PackedLabels
from bidora_jax.data.settings import DataConfig
from bidora_jax.errors import InputError

ROOM = Room(positions=40, vocab_size=70, types=True)
LINES = [f"{'good' if n % 3 else 'bad'} film {'a ' * (n % 7)},{'pos' if n % 3 else 'neg'},{n}" for n in range(30)]
CSV = "text,label,id\n" + "\n".join(LINES) + "\n"


@pytest.fixture
def bert(tmp_path):
    return encoder_tokenizers.bert(tmp_path)


@pytest.fixture
def train(tmp_path) -> str:
    (tmp_path / "train.csv").write_text(CSV)
    return str(tmp_path / "train.csv")


def test_a_run_has_rows_labels_and_a_form(bert, train, tmp_path):
    (tmp_path / "test.csv").write_text("text,label\ngood film,pos\nbad,neg\n")
    data = DataConfig(train_file=train, val_fraction=0.2, test_file=str(tmp_path / "test.csv"), max_length=16)
    ready = prepare(data, "auto", bert, ROOM, seed=0)
    assert ready.labels == Labels("classification", ("neg", "pos")) and ready.labels.text_columns == ("text",)
    assert ready.form == LabelForm("sequence", 2, 1, True)
    train_rows, val_rows = ready.rows["train"], ready.rows["val"]
    assert len(train_rows) + len(val_rows) == 30 and len(ready.test) == 2
    for rows in (train_rows, val_rows):  # a row, and the place it came from
        for row in rows:
            line = CSV.split("\n")[int(ready.places[row.record].rpartition(":")[2]) - 1]
            assert ("pos" in line) == bool(row.labels[1])
            assert bert.decode(row.tokens[1:-1].tolist()) == line.partition(",")[0].strip()
    assert [row.record for row in train_rows] == list(range(len(train_rows)))
    assert sum(ready.counts) == len(train_rows) and ready.counts[0] == sum(row.labels[0] for row in train_rows)
    notes = [note.replace(train, "train.csv") for note in ready.notes]
    tokens = sum(len(row.tokens) for row in train_rows)
    assert f"train: {len(train_rows)} records, {tokens} tokens, the longest 10" in notes
    assert "train: 'id' is not used: 30 records (train.csv:2, train.csv:3, train.csv:4, …)" in notes
    batch = collate(train_rows[:3], 16, BatchForm(2, 2, 0, labels=ready.form))
    assert batch["labels"].shape == (2, 2, 1, 2) and batch["weights"].sum() == 3


def test_packed_rows_hold_each_record_once_and_no_more_than_the_form_says(bert, train):
    data = DataConfig(train_file=train, val_fraction=0.2, max_length=32, packing=True)
    ready = prepare(data, "classification", bert, ROOM, seed=0)
    rows = [*ready.rows["train"], *ready.rows["val"]]
    assert sorted(number for row in rows for number in row.documents) == list(range(30))
    assert ready.form.slots == max(len(row.documents) for row in rows) > 2
    batch = collate(rows, 32, BatchForm(1, len(rows), 0, packed=True, labels=ready.form))
    assert batch["labels"].shape == (1, len(rows), ready.form.slots, 2) and batch["weights"].sum() == 30
    plain = prepare(DataConfig(train_file=train, val_fraction=0.2, max_length=32), "classification", bert, ROOM, seed=0)
    alone = {row.record: row for row in [*plain.rows["train"], *plain.rows["val"]]}
    for row in rows:
        assert isinstance(row, PackedLabels)
        for slot, number in enumerate(row.documents):
            np.testing.assert_array_equal(row.tokens[row.segments == slot + 1], alone[number].tokens)
            np.testing.assert_array_equal(row.labels[slot], alone[number].labels)


def test_tags_from_conll_to_the_batch(bert, tmp_path):
    text = "john B-PER\nlives O\nin O\nnew B-LOC\nyork I-LOC\n\nthe O\nfilm O\n\nzoe B-PER\n"
    (tmp_path / "train.conll").write_text(text)
    (tmp_path / "val.txt").write_text("john B-PER\n\nyork B-LOC\n")
    data = DataConfig(
        train_file=str(tmp_path / "train.conll"), val_file=str(tmp_path / "val.txt"), packing=True, max_length=32
    )
    ready = prepare(data, "auto", bert, ROOM._replace(types=False), seed=0)
    assert ready.labels == Labels("tokens", ("O", "B-LOC", "B-PER", "I-LOC")) and ready.counts == (4, 1, 2, 1)
    assert ready.form == LabelForm("token", 4, 3)
    (row,) = ready.rows["train"]
    batch = collate([row], 32, BatchForm(1, 1, 0, packed=True, labels=ready.form))
    assert list(batch) == ["tokens", "labels", "segments"]
    assert batch["labels"][0, 0].tolist()[:7] == [-1, 2, 0, 0, 1, 3, -1]


def test_regression_is_standardised_by_train(bert, tmp_path):
    (tmp_path / "a.csv").write_text("sentence1,sentence2,score\na,b,1.5\na,c,2.5\n")
    (tmp_path / "b.csv").write_text("sentence1,sentence2,score\nb,c,4\n")
    data = DataConfig(train_file=str(tmp_path / "a.csv"), val_file=str(tmp_path / "b.csv"))
    ready = prepare(data, "auto", bert, ROOM, seed=0)
    assert ready.labels == Labels("regression", ("score",), (2.0,), (0.5,))
    assert [row.labels.tolist() for row in [*ready.rows["train"], *ready.rows["val"]]] == [[-1], [1], [4]]
    assert ready.counts == (0.0,)


def test_what_does_not_fit_the_model_or_train_is_refused(bert, train, tmp_path):
    def refused(task="auto", room=ROOM, names=None, **settings) -> str:
        with pytest.raises(InputError) as error:
            prepare(DataConfig(train_file=train, **settings), task, bert, room, names=names, seed=0)
        return str(error.value)

    assert "train: 4 records (" in refused(room=ROOM._replace(positions=9))
    long = refused(room=ROOM._replace(positions=9))
    assert (
        "have more than the 9 tokens that the model has positions for, up to 10; cut them with --data.max-length 9"
        in long
    )
    assert "hold tokens that the model has no embedding for" in refused(room=ROOM._replace(vocab_size=6))
    (tmp_path / "val.csv").write_text("text,label\ngood,poss\n")
    assert "labels of val that train does not have:\n  val: 'poss' (did you mean 'pos'?)" in refused(
        val_file=str(tmp_path / "val.csv")
    )
    assert "labels of train that the head does not have" in refused(names=("a", "b"))
    assert "'label' is 'neg', and regression needs a number" in refused("regression")


# A file for a model


CLASSES = Labels("classification", ("neg", "pos"))


def test_a_file_keeps_its_order_and_its_columns_and_may_lack_labels(bert, tmp_path):
    (tmp_path / "a.csv").write_text("id,text,label\n07,a good film,pos\n08,bad,\n09,,odd\n")
    found = read_file(str(tmp_path / "a.csv"), CLASSES, bert, ROOM, DataConfig())
    assert [one.row["id"] for one in found.records] == ["07", "08", "09"]
    assert [one.record for one in found.examples] == [0, 1, 2]
    assert [one.target for one in found.records] == ["pos", None, None]
    assert [note.replace(str(tmp_path), "") for note in found.notes] == [
        "'id' is not used: 3 records (/a.csv:2, /a.csv:3, /a.csv:4)",
        "labels that the model does not have, taken for none: 1 record (/a.csv:4)",
        "3 records, 10 tokens, the longest 5",
        "the text is empty: 1 record (/a.csv:4)",
    ]
    lengths = [len(one.tokens) for one in found.examples]
    (batch,) = full_pass(found.examples, bucket_lengths(lengths, 1), BatchForm(1, 4, 0, labels=found.form))
    assert batch["weights"][0, :, 0].tolist() == [0, 0, 1, 0] and batch["lengths"].tolist() == [[2, 3, 5, 0]]
    with pytest.raises(InputError, match=r":3: has no label in 'label'"):
        read_file(str(tmp_path / "a.csv"), CLASSES, bert, ROOM, DataConfig(), labelled=True)


def test_rows_of_a_program_and_labels_in_columns_of_the_models_names(bert, tmp_path):
    (one,) = read_file([{"text": "good"}], CLASSES, bert, ROOM, DataConfig()).records
    assert one.place == "row 1" and one.target is None
    (tmp_path / "a.csv").write_text("text,rude,toxic\ngood,0,1\n")
    several = Labels("multilabel", ("toxic", "rude"))
    found = read_file(str(tmp_path / "a.csv"), several, bert, ROOM, DataConfig(), labelled=True)
    assert found.records[0].target == ["toxic"] and found.examples[0].labels.tolist() == [1, 0]
    data = DataConfig(columns=(("toxic", "bad"), ("rude", "worse")))
    (tmp_path / "b.csv").write_text("text,worse,bad\ngood,0,1\n")
    assert read_file(str(tmp_path / "b.csv"), several, bert, ROOM, data, labelled=True).records[0].target == ["toxic"]
    of_body = Labels("classification", ("neg", "pos"), text_columns=("title", "body"))
    pair = {"text": "a b c", "title": "good", "body": "film"}
    assert read_file([pair], of_body, bert, ROOM, DataConfig()).records == [{"text": "good", "text_pair": "film"}]
    assert read_file([{"text": "good"}], of_body, bert, ROOM, DataConfig()).records == [{"text": "good"}]
    tags = Labels("tokens", ("O", "B-LOC"))
    (words,) = read_file([{"tokens": ["york", "is"]}], tags, bert, ROOM, DataConfig()).examples
    assert words.starts.tolist() == [1, 2] and set(words.labels) == {-1}
    flags = read_file([{"text": "a", "labels": [0, 1]}], Labels("multilabel", ("0", "1")), bert, ROOM, DataConfig())
    assert flags.examples[0].labels.tolist() == [0, 1]


def test_a_scored_file_needs_the_models_classes(bert, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,pos\nb,other\n")
    with pytest.raises(
        InputError,
        match=r"labels of the file that the model does not have:\n[^\n]*\nthe model has .*; give the file the model's names",
    ):
        read_file(str(tmp_path / "a.csv"), CLASSES, bert, ROOM, DataConfig(), labelled=True)
    (tmp_path / "a.csv").write_text("text,label\n")
    with pytest.raises(InputError, match="holds no record"):
        read_file(str(tmp_path / "a.csv"), CLASSES, bert, ROOM, DataConfig())
