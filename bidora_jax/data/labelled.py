"""Labelled sources -> the rows that a task trains on; and a file, or rows of a program -> what a trained model scores or labels.

prepare     train, val and test of a run, with the labels collected from train
read_file   a file for a model whose labels are known: rows may lack labels, and keep their order and their own columns
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from bidora_jax.data import label_columns, label_sets, labelled_encoding, labelled_records, labelled_splits, packing
from bidora_jax.data import tokenizer as tokens
from bidora_jax.data.batches import Examples, LabelForm
from bidora_jax.data.label_values import LabelReading, are_flags
from bidora_jax.data.labelled_encoding import Encoded
from bidora_jax.data.labelled_records import LabelledRecord, Rows
from bidora_jax.data.labelled_splits import LabelledSplits
from bidora_jax.data.labels import LabelledExample, Labels
from bidora_jax.data.records import in_records, unused_keys
from bidora_jax.data.settings import DataConfig
from bidora_jax.data.sources import sources
from bidora_jax.data.sources.rows import SourceRow
from bidora_jax.data.tokenizer import Tokenizer
from bidora_jax.errors import InputError


class Room(NamedTuple):
    """What the data must know of a model."""

    positions: int
    """Tokens that a text may have."""
    vocab_size: int
    types: bool
    """Whether it has a table of token types."""


class PreparedLabels(NamedTuple):
    labels: Labels
    splits: LabelledSplits
    """The records, with keys that are equal for copies."""
    encoded: dict[str, Encoded]
    """train, val and test, as far as they are there."""
    rows: dict[str, Examples]
    """train, and val where there is one; packed with data.packing."""
    places: tuple[str, ...]
    """The places of the records of train and then of val. An example's `record` is an index into them."""
    notes: list[str]
    """What a user should know, in lines."""
    test: Examples
    """Not packed; `record` is an index into the records of test."""
    form: LabelForm
    counts: tuple[float, ...]
    """Records of train in each class, words with each tag; 0 of regression."""


class FileRows(NamedTuple):
    """A file for a trained model; the two lists have the same order, that of the file."""

    records: list[LabelledRecord]
    examples: list[LabelledExample]
    form: LabelForm
    notes: list[str]


def prepare(
    data: DataConfig, task: str, tokenizer: Tokenizer, room: Room, *, names: Sequence[str] | None = None, seed: int
) -> PreparedLabels:
    """Reads, splits, encodes and packs. `task` is a type of labels, or auto; `names` are the classes of a head that is kept.

    Raises InputError for data that can't be used, and for a record that is longer than the model's positions.
    """
    found = labelled_splits.load(data, task, seed)
    return encode(data, found, tokenizer, room, names=names, seed=seed)


def encode(
    data: DataConfig,
    found: LabelledSplits,
    tokenizer: Tokenizer,
    room: Room,
    *,
    names: Sequence[str] | None = None,
    seed: int,
) -> PreparedLabels:
    """The same of splits that are read already."""
    parts = {use: found.records(use) for use in ("train", "val", "test")}
    parts["test"] = parts["test"][: data.test_limit or None]
    labels, notes = label_sets.collect(parts["train"], found.how.labels, names)
    labels = replace(labels, text_columns=found.how.columns.texts)
    label_sets.check({use: parts[use] for use in ("val", "test")}, labels)
    notes, encoded = [*found.splits.notes, *notes], {}
    for use, records in parts.items():
        if records:
            encoded[use] = _encoded(use, records, labels, tokenizer, room, data)
            notes += [f"{use}: {line}" for line in (describe(encoded[use], data), *encoded[use].remarks)]
    places = tuple(record.place for use in ("train", "val") for record in parts[use])
    numbered = {
        use: _numbered(part.examples, len(parts["train"]) if use == "val" else 0)
        for use, part in encoded.items() if use != "test"
    }  # fmt: skip
    rows: dict[str, Examples] = {**numbered}
    slots = 1
    if data.packing:
        size = packing.capacity(list(numbered.values()), data.max_length)
        packed = {use: packing.pack_labelled(part, size, seed=seed) for use, part in numbered.items()}
        slots = max(len(row.documents) for part in packed.values() for row in part)
        notes += [f"{use}: {packing.describe(part, size)}" for use, part in packed.items()]
        rows = {**packed}
    form = _form(labels, room, slots)
    test = encoded["test"].examples if "test" in encoded else []
    counts = _counts(encoded["train"].examples, labels)
    return PreparedLabels(labels, found, encoded, rows, places, notes, test, form, counts)


def read_file(
    source: str | os.PathLike[str] | Sequence[str] | Sequence[Mapping[str, Any]],
    labels: Labels,
    tokenizer: Tokenizer,
    room: Room,
    data: DataConfig,
    *,
    labelled: bool = False,
) -> FileRows:
    """A file, or rows, for a model with these labels. `labelled`: each row must have one, and of a class that the model has.

    Otherwise a label that is missing or that the model does not have is none, and is counted. `data` says columns and max_length.
    """
    found = _rows(source, data, labels)
    if not any(found.values()):
        raise InputError(f"{' and '.join(found)} holds no record; expected a text a row")
    how = _how(labelled_records.rows_of(found), data, labels, labelled)
    records = [one for part in labelled_records.read(found, how, data, labelled=labelled).values() for one in part]
    notes = [*how.columns.notes, *unused_keys(records)]
    if labelled:
        label_sets.check({"the file": records}, labels, "the model")
    else:
        notes += _forget_unknown(records, labels)
    part = _encoded("file", records, labels, tokenizer, room, data)
    return FileRows(records, part.examples, _form(labels, room, 1), [*notes, describe(part, data), *part.remarks])


def describe(part: Encoded, data: DataConfig) -> str:
    """How much a split holds, and what became of long records."""
    lengths = [len(example.tokens) for example in part.examples]
    became = "left out for more than" if data.long == "drop" else "cut at"
    cut = f", {part.n_truncated} {became} {data.max_length} tokens" if part.n_truncated else ""
    return f"{len(lengths)} records, {sum(lengths):,} tokens, the longest {max(lengths)}{cut}"


def _encoded(
    use: str, records: list[LabelledRecord], labels: Labels, tokenizer: Tokenizer, room: Room, data: DataConfig
) -> Encoded:
    part = labelled_encoding.encode_all(
        records, labels, tokenizer, max_length=data.max_length, long=data.long, types=room.types
    )
    tokens.check_known((one.tokens for one in part.examples), tokenizer, room.vocab_size, f"the records of {use}")
    beyond = [records[one.record].place for one in part.examples if len(one.tokens) > room.positions]
    if beyond:
        raise InputError(
            f"{use}: {in_records(beyond)} have more than the {room.positions} tokens that the model has positions for, up to "
            f"{max(len(one.tokens) for one in part.examples)}; cut them with --data.max-length {room.positions}, or take a model "
            "for longer texts"
        )
    return part


def _numbered(examples: list[LabelledExample], first: int) -> list[LabelledExample]:
    return [one._replace(record=first + one.record) for one in examples]


def _form(labels: Labels, room: Room, slots: int) -> LabelForm:
    return LabelForm("token" if labels.type == "tokens" else "sequence", labels.count, slots, room.types)


def _counts(examples: Sequence[LabelledExample], labels: Labels) -> tuple[float, ...]:
    if labels.type == "regression":
        return (0.0,) * labels.count
    if labels.type == "tokens":
        tags = np.concatenate([one.labels[one.labels >= 0] for one in examples]).astype(int)
        return tuple(np.bincount(tags, minlength=labels.count).astype(float).tolist())
    return tuple(np.stack([one.labels for one in examples]).sum(axis=0, dtype=np.float64).tolist())


# A file for a model


def _rows(source: Any, data: DataConfig, labels: Labels) -> sources.Found:
    if not isinstance(source, str | os.PathLike) and any(isinstance(row, Mapping) for row in source):
        return {"rows": [SourceRow(f"row {number}", dict(row)) for number, row in enumerate(source, 1)]}
    found = sources.scan_each(source, labelled_records.expected_files(data, labels.type))
    return sources.rename({"": found}, data.columns)[""]


def _how(rows: Sequence[dict[str, Any]], data: DataConfig, labels: Labels, labelled: bool) -> Rows:
    """How the rows are read: the text from where train had it, labels from columns that are named like the model's, where they are
    there."""
    there = {key for row in rows for key in row}
    plain = labels.type != "tokens" and not any(
        name.isdecimal() for name in labels.names
    )  # "1" is a number of a column
    named = labels.names if plain and set(labels.names) <= there else ()
    texts = labels.text_columns if set(labels.text_columns) <= there else ()
    data = replace(data, text_columns=data.text_columns or texts, label_columns=data.label_columns or named)
    columns = label_columns.choose(rows, data, labels.type, labelled=labelled)
    cells = [row.get(name) for row in rows for name in columns.labels[:1]]
    vectors = labels.type == "multilabel" and len(columns.labels) == 1 and are_flags(cells)
    return Rows(columns, LabelReading(labels.type, columns.labels, vectors, "", columns.letters))


def _forget_unknown(records: Sequence[LabelledRecord], labels: Labels) -> list[str]:
    if labels.type == "regression":
        return []
    number, places = label_sets.Numbers(labels), []
    for record in records:
        if record.target is not None and any(number.of(name) is None for name in label_sets.classes(record)):
            places.append(record.place)
            record.target = None
    return [f"labels that the model does not have, taken for none: {in_records(places)}"] * bool(places)
