"""Statistics of a run's tokens: which tokens of a record are trained, how long records are, and the share of padding.

    padding = 1 − Σ real tokens / Σ_steps M·B·T         over one epoch of the search, T the padded length of the step

In a bidora search both batches of a step have the same T (batches.py), and both are counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bidora_jax.data import batches as batching
from bidora_jax.data.bilevel_rows import bilevel_rows
from bidora_jax.data.encoding import Example
from bidora_jax.data.records import Record, is_conversation, turns
from bidora_jax.data.settings import DataConfig
from bidora_jax.data.tokenizer import Tokenizer

BINS = 8


class Bin(NamedTuple):
    first: int
    last: int
    records: int


class Epoch(NamedTuple):
    """One epoch of the search."""

    steps: int
    tokens: int
    """Tokens of the records, on both levels."""
    computed: int
    """The same with padding."""
    lengths: tuple[int, ...]
    """Padded lengths."""

    @property
    def padding(self) -> float:
        return 1 - self.tokens / self.computed


def pieces(example: Example, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """The text of a record's tokens, cut where trained and masked tokens meet, and whether each piece is trained.

    Each piece is decoded together with all tokens before it: some tokenizers drop a blank at the beginning of a text.
    """
    borders = [*np.flatnonzero(np.diff(example.trained.astype(np.int8))) + 1, len(example.tokens)]
    found, shown = [], ""
    for border in borders:
        text = tokenizer.decode(example.tokens[:border].tolist(), clean_up_tokenization_spaces=False)
        found.append((text[len(shown) :], bool(example.trained[border - 1])))
        shown = text
    return found


def histogram(lengths: Sequence[int], bins: int = BINS) -> list[Bin]:
    """At most `bins` ranges from the shortest length to the longest, all of one width, which is a round number."""
    width = _round_up(-(-(max(lengths) + 1) // bins))
    counts = np.bincount(np.asarray(lengths) // width)
    filled = np.flatnonzero(counts)
    return [Bin(i * width, (i + 1) * width - 1, int(counts[i])) for i in range(filled[0], filled[-1] + 1)]


def _round_up(width: int) -> int:
    """The next of 1, 2, 5, 10, 20, 50, …"""
    power = 10 ** (len(str(width)) - 1)
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width)


def several_answers(records: Sequence[Record]) -> int:
    """Conversations with more than one answer that may be learned."""
    count = 0
    for record in records:
        if is_conversation(record):
            spoken, first = turns(record)
            count += sum(turn["role"] == "assistant" for turn in spoken[first:]) > 1
    return count


def epoch(
    train: batching.Examples,
    val: batching.Examples,
    data: DataConfig,
    *,
    splits: str = "fixed",
    lower_steps: int,
    seed: int,
) -> Epoch:
    """The first steps, as many as pass over `train` once, with a batch of the upper level in every `lower_steps`-th. `val` is empty
    for a search of one level. `splits` is search.splits."""
    size = data.batch_size * data.accumulation
    of_train, of_val = ([len(example.tokens) for example in part] for part in (train, val))
    assert data.padded_lengths or data.buckets != "auto", "data.buckets auto is settled by planning/padded_lengths.py"
    buckets = data.padded_lengths or batching.bucket_lengths([*of_train, *of_val], int(data.buckets))
    alone = batching.Stream(of_train, size, seed=seed, stream=batching.TRAIN)
    rows = bilevel_rows(splits, of_train, of_val, size, lower_steps, seed) if val else None
    lengths, tokens, computed = [*of_train, *of_val], 0, 0
    for step in range(alone.steps_per_epoch):
        if rows is None:
            met = [alone.indices(step)]
        else:
            lower, upper = rows(step // lower_steps)
            met = [lower[step % lower_steps], *([upper] if (step + 1) % lower_steps == 0 else [])]
        longest = max(lengths[row] for level in met for row in level)
        tokens += sum(lengths[row] for level in met for row in level)
        computed += len(met) * size * min(bucket for bucket in buckets if bucket >= longest)
    return Epoch(alone.steps_per_epoch, tokens, computed, buckets)
