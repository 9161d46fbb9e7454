"""Labelled records -> tokens, by the tokenizer's own call: with its special tokens, its template for pairs and its token types.

A text that is too long is cut: of a pair, tokens are taken one by one from the longer one (longest_first, transformers' default).
An empty text is legal; where a tokenizer has no template, as those of decoders, its end-of-text token stands for it.

    words   W words -> T tokens;  starts[w] = the first token of word w;  labels[starts[w]] = the number of its tag, −1 elsewhere

A word may have no token (control characters), or lose it to truncation. It has no label then, and its tag is predicted as O. A
tokenizer of bytes gets a blank before each word, as words in a text have one (add_prefix_space). A tokenizer that is written in
Python, such as ESM's, does not say which token is of which word; it tokenises each word for itself.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bidora_jax.data.encoding import Long
from bidora_jax.data.label_sets import Numbers, vector
from bidora_jax.data.labelled_records import LabelledRecord
from bidora_jax.data.labels import LabelledExample, Labels
from bidora_jax.data.records import in_records
from bidora_jax.data.tokenizer import Tokenizer, tokenize
from bidora_jax.errors import InputError, listing


class Encoded(NamedTuple):
    examples: list[LabelledExample]
    """In the order of the records; one each, but those that are left out."""
    n_truncated: int
    """Records of more than max_length tokens: cut, or left out."""
    remarks: list[str]
    """What a user should know of some records, in lines."""


class _Tokens(NamedTuple):
    """A record, or a cut one, in tokens."""

    ids: list[int]
    types: list[int]
    starts: list[int]


def encode_all(
    records: Sequence[LabelledRecord], labels: Labels, tokenizer: Tokenizer, *, max_length: int, long: Long, types: bool
) -> Encoded:
    """Every record. `types`: with token types, where the tokenizer gives them.

    Raises InputError where `max_length` leaves no room for a text, and for long records that are refused.
    """
    tokenize = _of_words if labels.type == "tokens" else _of_texts
    whole = tokenize(records, tokenizer, types, None)
    long_ones = [number for number, found in enumerate(whole) if len(found.ids) > max_length]
    _check_room(tokenizer, records, max_length)
    if long_ones and long == "refuse":
        places = listing(records[number].place for number in long_ones)
        raise InputError(
            f"{len(long_ones)} of {len(records)} records have more than data.max_length = {max_length} tokens, and data.long is "
            f"refuse; shorten them, raise max_length, or set long to truncate or drop:\n{places}"
        )
    cut = dict(zip(long_ones, tokenize([records[n] for n in long_ones], tokenizer, types, max_length), strict=True))
    number = Numbers(labels)
    examples = [
        _example(cut.get(index, found), record, labels, number, index in cut)._replace(record=index)
        for index, (found, record) in enumerate(zip(whole, records, strict=True))
        if long != "drop" or index not in cut
    ]
    if not examples:
        raise InputError(
            f"all of the {len(records)} records have more than data.max_length = {max_length} tokens; raise it"
        )
    return Encoded(examples, len(cut), list(_remarks(records, whole, cut, max_length)))


def _example(
    found: _Tokens, record: LabelledRecord, labels: Labels, number: Numbers, truncated: bool
) -> LabelledExample:
    ids, types, starts = (np.array(part, np.int32) for part in found)
    if labels.type != "tokens":
        return LabelledExample(ids, types, vector(record, labels, number), truncated)
    tags = np.full(len(ids), -1, np.int32)
    if isinstance(record.target, list):
        for start, tag in zip(found.starts, record.target, strict=True):
            if start >= 0:
                tags[start] = number.known(str(tag))
    return LabelledExample(ids, types, tags, truncated, starts=starts)


# The tokenizer's call


def _of_texts(
    records: Sequence[LabelledRecord], tokenizer: Tokenizer, types: bool, max_length: int | None
) -> list[_Tokens]:
    pairs = [record.get("text_pair") for record in records]
    texts = [record["text"] for record in records]
    found = _call(tokenizer, (texts, pairs) if pairs and pairs[0] is not None else (texts,), types, max_length)
    return [_Tokens(ids, of_second, []) for ids, of_second in _filled(found, tokenizer)]


def _of_words(
    records: Sequence[LabelledRecord], tokenizer: Tokenizer, types: bool, max_length: int | None
) -> list[_Tokens]:
    if not records:
        return []
    blank = " " if _glues_words(tokenizer) else ""
    texts = [[blank + word for word in record["words"]] for record in records]
    found = _call(tokenizer, (texts,), types, max_length, is_split_into_words=True)
    starts = _first_tokens if tokenizer.is_fast else _first_tokens_by_count
    filled = list(_filled(found, tokenizer))
    places = starts(found, texts, tokenizer)
    return [_Tokens(ids, of_second, at) for (ids, of_second), at in zip(filled, places, strict=True)]


def _call(tokenizer: Tokenizer, texts: tuple[Any, ...], types: bool, max_length: int | None, **settings: bool) -> Any:
    if not texts[0]:
        return {"input_ids": []}
    cut = {"truncation": "longest_first", "max_length": max_length} if max_length else {"truncation": False}
    asked = {"return_token_type_ids": types, "return_attention_mask": False, "return_special_tokens_mask": True}
    return tokenize(tokenizer, *texts, padding=False, **asked, **cut, **settings)


def _filled(found: Any, tokenizer: Tokenizer) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens and their types; a text without any token gets the one that ends a text."""
    types = found["token_type_ids"] if "token_type_ids" in found else [[0] * len(ids) for ids in found["input_ids"]]
    for ids, of_second in zip(found["input_ids"], types, strict=True):
        if not ids and tokenizer.eos_token_id is None:
            raise InputError(
                "a text without a word has no token in this tokenizer, which has no end-of-text token either"
            )
        yield (ids, of_second) if ids else ([tokenizer.eos_token_id], [0])


def _first_tokens(found: Any, texts: Sequence[Sequence[str]], tokenizer: Tokenizer) -> Iterator[list[int]]:
    for row, words in enumerate(texts):
        starts = [-1] * len(words)
        for at, word in reversed(list(enumerate(found.word_ids(row)))):
            if word is not None:
                starts[word] = at
        yield starts


def _first_tokens_by_count(found: Any, texts: Sequence[Sequence[str]], tokenizer: Tokenizer) -> Iterator[list[int]]:
    for special, words in zip(found["special_tokens_mask"], texts, strict=True):
        opening = special.index(0) if 0 in special else len(special)
        end = opening + special.count(0)
        counts = [len(tokenizer.tokenize(word)) for word in words]
        places = opening + np.cumsum([0, *counts[:-1]])
        yield [int(at) if count and at < end else -1 for at, count in zip(places, counts, strict=True)]


def _glues_words(tokenizer: Tokenizer) -> bool:
    """Whether words that are given one by one lose the blank before them: the tokenizer is one of bytes, and adds none itself."""
    if not tokenizer.is_fast:
        return False
    before = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"] or {}
    steps = before.get("pretokenizers", [before])
    return any(step.get("type") == "ByteLevel" for step in steps) and not any(
        step.get("add_prefix_space") or step.get("type") == "Metaspace" for step in steps
    )


# What is said


def _check_room(tokenizer: Tokenizer, records: Sequence[LabelledRecord], max_length: int) -> None:
    pair = any("text_pair" in record for record in records)
    special = tokenizer.num_special_tokens_to_add(pair=pair)
    if max_length < special + 1 + pair:
        raise InputError(
            f"data.max_length = {max_length} leaves no room beside the {special} special tokens of a {'pair' if pair else 'text'}; "
            f"it should be at least {special + 1 + pair}"
        )


def _remarks(
    records: Sequence[LabelledRecord], whole: Sequence[_Tokens], cut: dict[int, _Tokens], max_length: int
) -> Iterator[str]:
    def places(test: Callable[[int], bool]) -> list[str]:
        return [record.place for number, record in enumerate(records) if test(number)]

    if empty := places(lambda number: not any(text.strip() for text in records[number].values() if isinstance(text, str))
                       and "words" not in records[number]):  # fmt: skip
        yield f"the text is empty: {in_records(empty)}"
    if blank := places(lambda number: -1 in whole[number].starts):
        count = sum(found.starts.count(-1) for found in whole)
        yield f"{count} words have no token, and are predicted as O: {in_records(blank)}"
    lost = {number: found.starts.count(-1) - whole[number].starts.count(-1) for number, found in cut.items()}
    if any(lost.values()):
        where = in_records(places(lambda number: lost.get(number, 0) > 0))
        yield f"{sum(lost.values())} words stand after the cut at {max_length} tokens, and are predicted as O: {where}"
