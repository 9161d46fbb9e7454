"""Several records in one row: little padding, and the same loss.

    row = document ‖ document ‖ … ‖ padding          segments 1 … 1 2 … 2 … 0 … 0

A document sees itself alone: attention stops at its first token, positions count from 0 in it, and its first token is never
predicted from the end of the one before. So the loss of a packed batch is that of its records one a row, and no gradient
crosses from one to another (kernels/attention.py, models/decoder.py).

First fit decreasing: of some records the longest first, each into the first row with room for it. It is done over windows of a
shuffled order, so that a row holds a random mixture of lengths and texts, once for a run: the rows are a pure function of
records and seed, and their order in an epoch that of data.py, as if each were a record.

Does not do: cutting a record in two to fill a row.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from bidora_jax.training.records import Example

WINDOW = 64
"""Rows that are filled together: more leave less room unused, fewer mix better."""
MULTIPLE = 16
"""Rows hold a multiple of this many tokens, as padded lengths do."""


class Row(NamedTuple):
    tokens: Int32[np.ndarray, " T"]
    trained: Bool[np.ndarray, " T"]
    segments: Int32[np.ndarray, " T"]
    """1 for the tokens of the first document, 2 for those of the second, …"""
    documents: tuple[int, ...]
    """Numbers of the examples in it."""


def capacity(splits: Sequence[Sequence[Example]], max_length: int) -> int:
    """Tokens that a row may hold: max_length, or fewer if all of the larger split fits."""
    most = max(sum(len(example.tokens) for example in examples) for examples in splits)
    return -(-min(max_length, most) // MULTIPLE) * MULTIPLE


def pack(examples: Sequence[Example], room: int, *, seed: int, first: int = 0) -> list[Row]:
    """The examples in rows of at most `room` tokens, which every one of them fits; `first` is the number of examples[0]."""
    order = np.random.default_rng(seed).permutation(len(examples))
    lengths = np.array([len(examples[index].tokens) for index in order])
    windows = (np.cumsum(lengths) - lengths) // (WINDOW * room)
    rows = []
    for window in np.unique(windows):
        chosen = order[windows == window]
        for members in first_fit([len(examples[index].tokens) for index in chosen], room):
            rows.append(_row([int(chosen[member]) for member in members], examples, first))
    return rows


def pack_all(
    splits: Mapping[str, Sequence[Example]], max_length: int, *, seed: int
) -> tuple[dict[str, list[Row]], int]:
    """Every split in rows of the same room, and that room; records are numbered through all splits."""
    room, rows, first = capacity(list(splits.values()), max_length), {}, 0
    for name, examples in splits.items():
        rows[name], first = pack(examples, room, seed=seed, first=first), first + len(examples)
    return rows, room


def count(examples: Sequence[Example | Row]) -> int:
    """The records that stand in rows, or the examples themselves."""
    return sum(len(item.documents) if isinstance(item, Row) else 1 for item in examples)


def describe(rows: Sequence[Row], room: int) -> str:
    """How full the rows are, in words."""
    return (
        f"{count(rows)} records packed into {len(rows)} rows of {room} tokens, {unused(rows, room):.1%} of them unused"
    )


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Numbers of the lengths that go into each row, the longest first, each into the first row that has room for it."""
    left = np.full(len(lengths), room)
    rows: list[list[int]] = []
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        row = int(np.argmax(left[: len(rows) + 1] >= lengths[index]))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        left[row] -= lengths[index]
    return rows


def unused(rows: Sequence[Row], room: int) -> float:
    """The share of the rows' room that holds no token."""
    return 1 - sum(len(row.tokens) for row in rows) / (room * len(rows))


def _row(members: list[int], examples: Sequence[Example], first: int) -> Row:
    parts = [examples[member] for member in members]
    return Row(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.trained for part in parts]),
        np.repeat(np.arange(1, len(parts) + 1, dtype=np.int32), [len(part.tokens) for part in parts]),
        tuple(first + member for member in members),
    )
