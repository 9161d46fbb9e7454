"""Splits of labelled texts: every class on both sides in its share, groups and copies on one."""

from collections import Counter

import numpy as np
import pytest

from bidora_jax.data.labelled_records import LabelledRecord
from bidora_jax.data.labelled_splits import held_out, load
from bidora_jax.data.settings import DataConfig
from bidora_jax.data.splits import Part
from bidora_jax.errors import InputError


def part(targets, texts=None, groups=None) -> Part:
    records = []
    for number, target in enumerate(targets):
        one = LabelledRecord({"text": str(number)}, f"a:{number + 1}", {}, {})
        one.target, one.group = target, groups[number] if groups else None
        records.append(one)
    keys = [str(text).encode() for text in (texts or range(len(records)))]
    return Part(records, ["a"] * len(records), keys)


def chosen(given: Part, task: str, fraction: float, seed: int = 0) -> np.ndarray:
    return held_out(given, task, fraction, seed)


@pytest.mark.parametrize("seed", range(3))
def test_each_class_has_its_share_in_val(seed):
    targets = ["a"] * 61 + ["b"] * 30 + ["c"] * 9
    in_val = chosen(part(targets), "classification", 0.2, seed)
    assert Counter(np.array(targets)[in_val]) == {"a": 12, "b": 6, "c": 2}
    assert (in_val == chosen(part(targets), "classification", 0.2, seed)).all()
    assert (in_val != chosen(part(targets), "classification", 0.2, seed + 7)).any()


def test_a_class_of_two_is_on_both_sides_and_a_class_of_one_in_train():
    targets = ["a"] * 95 + ["b"] * 2 + ["c"] * 2 + ["d"]
    found = Counter(np.array(targets)[chosen(part(targets), "classification", 0.1)])
    assert (found["b"], found["c"], found["d"]) == (1, 1, 0) and found["a"] in (9, 10)


@pytest.mark.parametrize("seed", range(4))
def test_copies_and_groups_stay_together(seed):
    random = np.random.default_rng(seed)
    groups = [str(group) for group in random.integers(0, 20, 120)]
    targets = random.choice(["a", "b", "c"], 120, p=[0.6, 0.3, 0.1]).tolist()
    texts = [number if number % 10 else 1000 + number // 40 for number in range(120)]  # copies join groups
    in_val = chosen(part(targets, texts, groups), "classification", 0.25, seed)
    for marks in (groups, texts):
        sides = [{one for one, here in zip(marks, in_val, strict=True) if here == side} for side in (True, False)]
        assert not sides[0] & sides[1]
    assert set(np.array(targets)[in_val]) == {"a", "b", "c"} and 15 <= in_val.sum() <= 45


def test_numbers_are_split_by_tenths():
    values = np.random.default_rng(0).permutation(200).astype(float)
    in_val = chosen(part([[value] for value in values]), "regression", 0.2)
    assert np.bincount((values[in_val] // 20).astype(int)).tolist() == [4] * 10
    few = chosen(part([[value] for value in values[:10]]), "regression", 0.2)
    assert few.sum() == 2


def test_every_label_of_several_and_every_kind_of_span_is_in_val():
    random = np.random.default_rng(1)
    targets = [[name for name, p in (("x", 0.5), ("y", 0.2), ("z", 0.04)) if random.random() < p] for _ in range(200)]
    in_val = chosen(part(targets), "multilabel", 0.2)
    for name in "xyz":
        count = sum(name in target for target in targets)
        inside = sum(name in target for target, here in zip(targets, in_val, strict=True) if here)
        assert abs(inside - 0.2 * count) <= max(2, 0.05 * count) and inside
    assert 35 <= in_val.sum() <= 45
    tags = [["O", "B-PER"]] * 20 + [["B-LOC", "I-LOC"]] * 2 + [["O"]] * 20
    found = [tags[index] for index in np.flatnonzero(chosen(part(tags), "tokens", 0.1))]
    assert ["B-LOC", "I-LOC"] in found and 4 <= len(found) <= 6


def test_train_keeps_every_class_that_a_record_has_beside_others():
    targets = [["x", "rare"], ["x"], ["x"], ["y", "x"], ["y"]]
    for seed in range(12):
        in_val = chosen(part(targets), "multilabel", 0.5, seed)
        assert not in_val[0] and in_val[3] != in_val[4]


def test_an_empty_side_is_refused():
    with pytest.raises(InputError, match="each needs at least one"):
        chosen(part(["a", "b", "c"]), "classification", 0.3)
    with pytest.raises(InputError, match="leaves 0 for validation and 8 for training"):
        chosen(part(["a", "b"] * 4, groups=["g"] * 8), "classification", 0.25)


def test_a_run_reads_splits_and_says_what_it_found(tmp_path):
    path = tmp_path / "a.csv"
    lines = [
        f"{n},text {n % 18},{'pos' if n % 4 else 'neg'},{n % 7}" for n in range(20)
    ]  # 18 and 19 are copies of 0 and 1
    path.write_text("id,text,label,who\n" + "\n".join([*lines, "20,text 20,rare,9"]) + "\n")
    data = DataConfig(train_file=str(path), val_fraction=0.2, group_column="who")
    found = load(data, "auto", seed=1)
    assert found.how.labels.type == "classification"
    groups = [{record.group for record in found.records(use)} for use in ("train", "val")]
    assert not groups[0] & groups[1] and len(found.records("train")) + len(found.records("val")) == 21
    notes = [note.replace(str(path), "a.csv") for note in found.splits.notes]
    assert notes[:3] == [
        "classification: 3 different labels",
        "train: 'id' is not used: 21 records (a.csv:2, a.csv:3, a.csv:4, …)",
        "val, split off train, has no record of 'rare'",
    ]
    assert any("stand there twice" in note for note in notes)
    assert any("copies of a text with different labels, in 2 records" in note for note in notes)
    (tmp_path / "b.csv").write_text("text,label\nnew,pos\n")
    both = load(DataConfig(train_file=str(path), val_file=str(tmp_path / "b.csv"), max_samples=6), "classification", 0)
    assert [len(both.records(use)) for use in ("train", "val", "test")] == [6, 1, 0]
    (tmp_path / "b.csv").write_text("body,label,who\nnew,pos,3\nold,neg,x\n")
    (tmp_path / "c.csv").write_text("body,label,who\ngood,pos,3\nbad,neg,4\n")
    files = {"train_file": str(tmp_path / "c.csv"), "val_file": str(tmp_path / "b.csv")}
    shared = load(DataConfig(**files, columns=(("text", "body"),), group_column="who"), "auto", 0)
    assert "groups in train and val: '3'" in shared.splits.notes
    assert both.splits.notes[:2] == ["train: the first 6 of 21 records", "classification: task.type is classification"]
