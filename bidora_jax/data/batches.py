"""Examples -> batches of few fixed shapes, in an order that is a pure function of (seed, epoch, step).

    batch = {'tokens': int32 (M, B, T), 'loss_mask': float32 (M, B, T)}    and 'segments': int32 (M, B, T) of packed rows
    M micro-batches of an optimiser step, B records in each, T padded length, one of a few buckets

A row is one example, or several that data/packing.py put together, right-padded with mask 0 and segment 0. Where examples run
out, the remaining rows are all padding: so every batch of a bucket has the same shape, and a run compiles once a bucket.
Nothing here has state worth saving: a resumed run asks for the batch of its step.

Labelled texts (data/labels.py) have labels in the place of 'loss_mask':

    'lengths': int32 (M, B), or 'segments' of packed rows;  'types': int32 (M, B, T) where the form asks for them
    kind sequence   'labels': float32 (M, B, N, C), 'weights': float32 (M, B, N)      slot n is of the row's document n + 1
    kind token      'labels': int32 (M, B, T), −1 where nothing is trained

A slot of the weight 0 holds no document, or one without a label; its labels are 0.

Does not do: moving batches to a device.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from bidora_jax.data.encoding import Example
from bidora_jax.data.labels import LabelledExample
from bidora_jax.data.packing import PackedLabels, PackedRow

Batch = dict[str, np.ndarray]
Examples = Sequence[Example | PackedRow | LabelledExample | PackedLabels]
Item = TypeVar("Item")

WINDOW = 32  # steps whose records are sorted by length together: more saves padding, fewer mixes better


class LabelForm(NamedTuple):
    """The labels of a batch."""

    kind: Literal["sequence", "token"]
    width: int
    """C: classes, or values."""
    slots: int = 1
    """N: documents that a row holds at most; 1 of rows that are not packed."""
    types: bool = False
    """Whether the model has a table of token types."""


class BatchForm(NamedTuple):
    """What the shapes of a batch depend on, but for its length."""

    M: int
    """Micro-batches."""
    B: int
    """Rows of a micro-batch."""
    pad_id: int
    packed: bool = False
    """The rows hold several documents, and the batch says which token belongs to which."""
    labels: LabelForm | None = None
    """None of a language model's records."""


# Lengths


def bucket_lengths(lengths: Sequence[int], count: int, multiple: int = 16) -> tuple[int, ...]:
    """At most `count` padded lengths, multiples of `multiple`, with the least padding; the last one holds the longest.

    Exact, by dynamic programming over the distinct lengths u_1 < … < u_k, where C_j examples are no longer than u_j:
    cost[j] = min over i < j of cost'[i] + u_j (C_j − C_i), cost' being that of one bucket fewer.
    """
    u, counts = np.unique(-(-np.asarray(lengths) // multiple) * multiple, return_counts=True)
    if count >= len(u):
        return tuple(map(int, u))
    C = np.concatenate([[0], np.cumsum(counts)])
    cost = np.concatenate([[0.0], np.full(len(u), np.inf)])
    choices = []
    for _ in range(count):
        totals = [cost[: j + 1] + u[j] * (C[j + 1] - C[: j + 1]) for j in range(len(u))]
        choices.append([int(total.argmin()) for total in totals])
        cost = np.array([np.inf, *(total.min() for total in totals)])
    buckets, j = [], len(u)
    for choice in reversed(choices):
        buckets.append(int(u[j - 1]))
        j = choice[j - 1]
    return tuple(reversed(buckets))


def length_for(examples: Examples, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds every one of `examples`."""
    longest = max((len(example.tokens) for example in examples), default=0)
    return min(bucket for bucket in buckets if bucket >= longest)


# Order


def epoch_order(lengths: Sequence[int], step_size: int, *, seed: int, epoch: int, stream: int) -> list[list[int]]:
    """One epoch's steps: lists of `step_size` indices, every index once; one list may be shorter.

    Shuffled, then sorted by length within windows, so that a step's records need little padding, then the steps are
    shuffled. The remainder that makes the short step is set aside before the sorting, so that it has no typical length.
    """
    random = np.random.default_rng([seed, epoch, stream])
    order = random.permutation(len(lengths))
    whole = len(order) - len(order) % step_size
    steps = [order[whole:].tolist()] if whole < len(order) else []
    for start in range(0, whole, WINDOW * step_size):
        window = order[start : min(start + WINDOW * step_size, whole)]
        window = window[np.argsort(np.asarray(lengths)[window], kind="stable")]
        steps += window.reshape(-1, step_size).tolist()
    return [steps[i] for i in random.permutation(len(steps))]


TRAIN, VAL, BOTH, OTHERS, FOLD = range(5)
"""Streams: of a split, of both in one, and on the levels of a turn (bilevel_rows.py)."""


class Stream:
    """An endless sequence of steps over one set of examples. Any step is computed without those before it.

    Streams with the same seed and another number `stream` are shuffled in another order.
    """

    def __init__(self, lengths: Sequence[int], step_size: int, *, seed: int, stream: int) -> None:
        self.steps_per_epoch = -(-len(lengths) // step_size)
        self._lengths, self._step_size, self._seed, self._stream = tuple(lengths), step_size, seed, stream
        self._current: tuple[int, list[list[int]]] = (-1, [])  # the last epoch asked for and its order: a cache

    def indices(self, step: int) -> list[int]:
        """The examples of a step counted from the run's first, across epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        known, order = self._current
        if known != epoch:
            order = epoch_order(self._lengths, self._step_size, seed=self._seed, epoch=epoch, stream=self._stream)
            self._current = (epoch, order)
        return order[position]


# Batches


def collate(examples: Examples, length: int, form: BatchForm) -> Batch:
    """At most M·B examples, none longer than `length`, as one batch; rows are filled micro-batch by micro-batch."""
    M, B, pad_id, packed, labels = form
    tokens = np.full((M * B, length), pad_id, dtype=np.int32)
    segments = np.zeros((M * B, length), dtype=np.int32)
    for row, example in enumerate(examples):
        tokens[row, : len(example.tokens)] = example.tokens
        if isinstance(example, PackedRow | PackedLabels):
            segments[row, : len(example.segments)] = example.segments
    trained = _trained(examples, tokens.shape) if labels is None else _labelled(examples, tokens.shape, packed, labels)
    batch = {"tokens": tokens} | trained | ({"segments": segments} if packed else {})
    return {name: part.reshape(M, B, *part.shape[1:]) for name, part in batch.items()}


def _trained(examples: Examples, shape: tuple[int, ...]) -> Batch:
    loss_mask = np.zeros(shape, dtype=np.float32)
    for row, example in enumerate(examples):
        assert isinstance(example, Example | PackedRow)
        loss_mask[row, : len(example.trained)] = example.trained
    return {"loss_mask": loss_mask}


def _labelled(examples: Examples, shape: tuple[int, ...], packed: bool, form: LabelForm) -> Batch:
    batch: Batch = {}
    if not packed:
        batch["lengths"] = np.zeros(shape[:1], dtype=np.int32)
    if form.types:
        batch["types"] = np.zeros(shape, dtype=np.int32)
    if form.kind == "token":
        batch["labels"] = np.full(shape, -1, dtype=np.int32)
    else:
        batch["labels"] = np.zeros((shape[0], form.slots, form.width), dtype=np.float32)
        batch["weights"] = np.zeros((shape[0], form.slots), dtype=np.float32)
    for row, example in enumerate(examples):
        assert isinstance(example, LabelledExample | PackedLabels)
        if not packed:
            batch["lengths"][row] = len(example.tokens)
        if form.types:
            batch["types"][row, : len(example.types)] = example.types
        if form.kind == "token":
            batch["labels"][row, : len(example.labels)] = example.labels
        else:
            labels = example.labels.reshape(-1, form.width)
            known = np.isfinite(labels).min(axis=1)
            batch["labels"][row, : len(labels)] = np.where(known[:, None], labels, 0)
            batch["weights"][row, : len(labels)] = known
    return batch


def joint(train: Examples, val: Examples, buckets: Sequence[int], form: BatchForm) -> tuple[Batch, Batch]:
    """The two batches of a bilevel step, padded to one length. So n buckets need n compilations, not n²."""
    length = length_for([*train, *val], buckets)
    return collate(train, length, form), collate(val, length, form)


def full_pass(examples: Examples, buckets: Sequence[int], form: BatchForm) -> Iterator[Batch]:
    """Every example once, from short to long, in batches of one micro-batch: for evaluation.

    Examples that are not packed give batches of such, though the form be that of packed rows: test records are not packed.
    """
    for rows in passes(examples, form.B):
        packed = isinstance(rows[0], PackedRow | PackedLabels)
        labels = form.labels if packed or form.labels is None else form.labels._replace(slots=1)
        yield collate(rows, length_for(rows, buckets), form._replace(M=1, packed=packed, labels=labels))


def passes(examples: Examples, B: int) -> Iterator[Examples]:
    """The rows of each batch of a full pass."""
    by_length = sorted(examples, key=lambda example: len(example.tokens))
    return (by_length[start : start + B] for start in range(0, len(by_length), B))


def prefetch(make_batch: Callable[[int], Item], start: int, stop: int, depth: int = 2) -> Generator[Item]:
    """make_batch(start), …, make_batch(stop − 1), each made in one background thread up to `depth` steps ahead.

    An exception of make_batch is raised at its step. The thread ends with the generator.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        pending = deque(pool.submit(make_batch, step) for step in range(start, min(start + depth, stop)))
        for step in range(start, stop):
            batch = pending.popleft().result()
            if step + depth < stop:
                pending.append(pool.submit(make_batch, step + depth))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
