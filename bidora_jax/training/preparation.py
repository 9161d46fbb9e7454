"""Splits of records -> the rows that batches are made of, and what a user should know of them.

What the data command shows before a run and what the run then does are made here, once.
"""

from typing import NamedTuple

from bidora_jax.errors import InputError
from bidora_jax.training import packing, tokencache
from bidora_jax.training.answers import Tokenizer
from bidora_jax.training.data import Examples
from bidora_jax.training.records import Split
from bidora_jax.training.settings import DataConfig
from bidora_jax.training.splits import Splits


class Prepared(NamedTuple):
    encoded: dict[str, Split]
    """train, and val where there is one."""
    rows: dict[str, Examples]
    """The same with one record a row, or with data.packing several."""
    said: list[str]


def prepare(data: DataConfig, splits: Splits, tokenizer: Tokenizer, positions: int, seed: int) -> Prepared:
    """The tokens of both splits, in rows. Raises InputError for what can't be trained on by a model of so many positions."""
    given = {"train": splits.train.records, "val": splits.val.records}
    how = {"max_length": data.max_length, "loss_on": data.loss_on, "long": data.long}
    encoded, said = {}, [*splits.said]
    for name, part in given.items():
        if part:
            encoded[name], kept = tokencache.encode_all(part, tokenizer, data.token_cache, **how)
            said += [f"{name}: {describe(encoded[name], data)}", *([kept] if kept else [])]
    for name, part in encoded.items():
        longest = max(len(example.tokens) for example in part.examples)
        if longest > positions:
            raise InputError(
                f"{name}: the longest record has {longest} tokens, more than the {positions} positions of the model; "
                "lower data.max_length"
            )
    examples = {name: part.examples for name, part in encoded.items()}
    if not data.packing:
        return Prepared(encoded, {**examples}, said)
    rows, room = packing.pack_all(examples, data.max_length, seed=seed)
    said += [f"{name}: {packing.describe(part, room)}" for name, part in rows.items()]
    return Prepared(encoded, {**rows}, said)


def describe(part: Split, data: DataConfig) -> str:
    """How much a split holds, and what became of the records that are not all there."""
    became = "left out for more than" if data.long == "drop" else "cut at"
    cut = f", {part.n_truncated} {became} {data.max_length} tokens" if part.n_truncated else ""
    dropped = f", {part.n_untrained} dropped for want of a trained token" if part.n_untrained else ""
    return f"{len(part.examples)} records, {sum(len(e.tokens) for e in part.examples):,} tokens{cut}{dropped}"
