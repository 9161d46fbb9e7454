"""Splits of records -> the rows that batches are made of, and what a user should know of them.

The data command and training both prepare their data here, so the command shows what the run will do.
"""

from typing import NamedTuple

from bidora_jax.data import chat_template, packing, token_cache
from bidora_jax.data import tokenizer as tokens
from bidora_jax.data.batches import Examples
from bidora_jax.data.encoding import Split, remarks_of
from bidora_jax.data.records import Record, is_conversation
from bidora_jax.data.settings import DataConfig
from bidora_jax.data.splits import Splits
from bidora_jax.data.tokenizer import Tokenizer
from bidora_jax.errors import InputError


class Prepared(NamedTuple):
    encoded: dict[str, Split]
    """train, and val where there is one."""
    rows: dict[str, Examples]
    """The same as rows: of one record or chunk each, or of several with data.packing."""
    places: tuple[str, ...]
    """The places of the records of train and then of val. An example's `record` is an index into them."""
    notes: list[str]
    """What a user should know, in lines."""
    test: Examples
    """The records to test on, a row each."""


def prepare(
    data: DataConfig, splits: Splits, tokenizer: Tokenizer, *, positions: int, vocab_size: int, seed: int
) -> Prepared:
    """The tokens of both splits, in rows. Raises InputError for a record that is longer than the model's `positions`, and for one
    with a token that is none of the model's `vocab_size`."""
    given = {"train": splits.train.records, "val": splits.val.records}
    test = splits.test.records[: data.test_limit or None]
    settings = {"max_length": data.max_length, "loss_on": data.loss_on, "long": data.long}
    places = tuple(record.place for part in given.values() for record in part)
    encoded, notes = {}, [*splits.notes]
    for name, part in (*given.items(), ("test", test)):
        if part:
            found, kept = token_cache.encode_all(part, tokenizer, data.token_cache, **settings)
            encoded[name] = _numbered(found, len(given["train"]) if name == "val" else 0)
            notes += [f"{name}: {describe(found, data.max_length, data.long)}", *([kept] if kept else [])]
            notes += [f"{name}: {line}" for line in remarks_of(found, part)]
    for name, part in encoded.items():
        tokens.check_known(
            (example.tokens for example in part.examples), tokenizer, vocab_size, f"the records of {name}"
        )
        longest = max(len(example.tokens) for example in part.examples)
        if longest > positions:
            raise InputError(
                f"{name}: the longest record has {longest} tokens, more than the {positions} positions of the model; "
                "lower data.max_length"
            )
    notes += _template_notes(given, tokenizer)
    tested = encoded.pop("test").examples if test else []
    examples = {name: part.examples for name, part in encoded.items()}
    if not data.packing:
        return Prepared(encoded, {**examples}, places, notes, tested)
    rows, room = packing.pack_all(examples, data.max_length, seed=seed)
    notes += [f"{name}: {packing.describe(part, room)}" for name, part in rows.items()]
    return Prepared(encoded, {**rows}, places, notes, tested)


def _template_notes(given: dict[str, list[Record]], tokenizer: Tokenizer) -> list[str]:
    """What a user should know of the chat template, where it writes the records."""
    talks = any(is_conversation(record) for part in given.values() for record in part)
    if not talks:
        return []
    notes, end = [], chat_template.end_of_turn(tokenizer)
    if end not in (None, tokenizer.eos_token_id):
        turn, text = tokenizer.convert_ids_to_tokens([end, tokenizer.eos_token_id])
        notes.append(
            f"the chat template ends an answer with {turn}, and the tokenizer a text with {text}: generate and a merged model "
            "stop at both"
        )
    if chat_template.has_own_opening(tokenizer):
        notes.append(
            "the chat template has no opening of an answer (add_generation_prompt): what it writes before one is taken as "
            "the opening, and is not trained; other programs that generate with this template will not write it"
        )
    return notes


def _numbered(part: Split, first: int) -> Split:
    """The same with its records counted from `first` on."""
    return part._replace(examples=[one._replace(record=first + one.record) for one in part.examples])


def describe(part: Split, max_length: int, long: str) -> str:
    """How much a split holds, and what became of the records that are too long or have nothing to train."""
    became = "left out for more than" if long == "drop" else "cut at"
    chunks = f", {len(part.chunks)} of more than {max_length} tokens split into {sum(part.chunks)}" * bool(part.chunks)
    cut = f", {part.n_truncated} {became} {max_length} tokens" if part.n_truncated else ""
    dropped = f", {part.n_untrained} dropped for want of a trained token" if part.n_untrained else ""
    tokens = sum(len(example.tokens) for example in part.examples)
    return f"{packing.count(part.examples)} records, {tokens:,} tokens{chunks}{cut}{dropped}"
