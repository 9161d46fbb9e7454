"""Several records in one row: little padding, and the same loss.

    row = document ‖ document ‖ … ‖ padding          segments 1 … 1 2 … 2 … 0 … 0

A document is a record or a chunk of one (encoding.py). Attention does not look beyond a document's first token, positions
count from 0 in each document, and its first token is never predicted from the end of the one before. So the loss of a packed
batch is the loss of its documents one a row, and no gradient crosses from one to another (kernels/attention.py,
models/decoder.py).

The algorithm is first fit decreasing: the longest document first, each into the first row with room for it. It runs over windows
of a shuffled order, so that a row holds a random mixture of lengths and texts. A run packs once: the rows are a pure function of
records and seed, and batches.py orders rows as it orders records.

Does not do: cutting a record in two to fill a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int32

from bidora_jax.data.encoding import Example
from bidora_jax.data.labels import LabelledExample

WINDOW = 64
"""Rows that are filled together: more leave less room unused, fewer mix better."""
MULTIPLE = 16
"""Rows hold a multiple of this many tokens, as padded lengths do."""


class PackedRow(NamedTuple):
    tokens: Int32[np.ndarray, " T"]
    trained: Bool[np.ndarray, " T"]
    segments: Int32[np.ndarray, " T"]
    """1 for the tokens of the first document, 2 for those of the second, …"""
    documents: tuple[int, ...]
    """Number of the record that each document is, or is a chunk of."""


class PackedLabels(NamedTuple):
    """A row of labelled texts."""

    tokens: Int32[np.ndarray, " T"]
    types: Int32[np.ndarray, " T"]
    segments: Int32[np.ndarray, " T"]
    labels: np.ndarray
    """(documents, C), or (T,) of token labels."""
    documents: tuple[int, ...]


Document = TypeVar("Document", Example, LabelledExample)


def capacity(splits: Sequence[Sequence[Document]], max_length: int) -> int:
    """Tokens that a row may hold: max_length, or fewer if one such row holds all of the larger split."""
    most = max(sum(len(example.tokens) for example in examples) for examples in splits)
    return -(-min(max_length, most) // MULTIPLE) * MULTIPLE


def pack(examples: Sequence[Example], room: int, *, seed: int) -> list[PackedRow]:
    """The examples in rows of at most `room` tokens. No example may be longer."""
    return [_row(parts) for parts in _together(examples, room, seed)]


def pack_labelled(examples: Sequence[LabelledExample], room: int, *, seed: int) -> list[PackedLabels]:
    """The same of labelled texts."""
    return [_labels_row(parts) for parts in _together(examples, room, seed)]


def _together(examples: Sequence[Document], room: int, seed: int) -> Iterator[list[Document]]:
    """The documents of each row."""
    order = np.random.default_rng(seed).permutation(len(examples))
    lengths = np.array([len(examples[index].tokens) for index in order])
    windows = (np.cumsum(lengths) - lengths) // (WINDOW * room)
    for window in np.unique(windows):
        chosen = order[windows == window]
        for members in first_fit([len(examples[index].tokens) for index in chosen], room):
            yield [examples[chosen[member]] for member in members]


def pack_all(
    splits: Mapping[str, Sequence[Example]], max_length: int, *, seed: int
) -> tuple[dict[str, list[PackedRow]], int]:
    """Every split in rows of the same room, and that room."""
    room = capacity(list(splits.values()), max_length)
    return {name: pack(examples, room, seed=seed) for name, examples in splits.items()}, room


def records_in(item: Example | PackedRow | LabelledExample | PackedLabels) -> tuple[int, ...]:
    """Numbers of the records that an example or a row holds, or holds chunks of."""
    return item.documents if isinstance(item, PackedRow | PackedLabels) else (item.record,)


def count(examples: Sequence[Example | PackedRow | LabelledExample | PackedLabels]) -> int:
    """How many records the examples or rows hold; the chunks of a record count as one."""
    return len({number for item in examples for number in records_in(item)})


def describe(rows: Sequence[PackedRow] | Sequence[PackedLabels], room: int) -> str:
    """How full the rows are, in words."""
    records, documents = count(rows), sum(len(row.documents) for row in rows)
    pieces = f" in {documents} pieces" * (documents > records)
    into = f"{len(rows)} rows of {room} tokens, {unused(rows, room):.1%} of them unused"
    return f"{records} records{pieces} packed into {into}"


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Rows of indices into `lengths`: the longest first, each in the first row that has room for it."""
    left = np.full(len(lengths), room)
    rows: list[list[int]] = []
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        row = int(np.argmax(left[: len(rows) + 1] >= lengths[index]))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        left[row] -= lengths[index]
    return rows


def unused(rows: Sequence[PackedRow] | Sequence[PackedLabels], room: int) -> float:
    """The share of the rows' room that holds no token."""
    return 1 - sum(len(row.tokens) for row in rows) / (room * len(rows))


def _row(parts: list[Example]) -> PackedRow:
    return PackedRow(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.trained for part in parts]),
        _segments(parts),
        tuple(part.record for part in parts),
    )


def _labels_row(parts: list[LabelledExample]) -> PackedLabels:
    of_tokens = parts[0].labels.dtype == np.int32
    return PackedLabels(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.types for part in parts]),
        _segments(parts),
        (np.concatenate if of_tokens else np.stack)([part.labels for part in parts]),
        tuple(part.record for part in parts),
    )


def _segments(parts: Sequence[Document]) -> Int32[np.ndarray, " T"]:
    return np.repeat(np.arange(1, len(parts) + 1, dtype=np.int32), [len(part.tokens) for part in parts])
