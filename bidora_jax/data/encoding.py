"""Rows -> records -> tokens.

A record (its shapes: data/records.py) becomes one sequence, and `trained` says which of its tokens the loss predicts:

    {instruction, …}           chat template of the question (a plain template without one) ‖ output ‖ end of text;
                               with a history it is read as a conversation
    {prompt, completion}       prompt as it stands ‖ completion ‖ end of text
    {code}, {text}             all of it is trained ‖ end of text
    {messages}, conversations  the chat template's text of all turns; trained are the answers in it (data/chat_template.py):
                               loss_on = response the last one, turns every one of the assistant, all the whole text

Of the first two shapes, prompt and response are tokenised apart, so that no token straddles the border between them. They are
tokenised without special tokens, so that a template's own first token does not come twice. Text without a template opens with
the beginning-of-text token if the tokenizer adds one (Llama, Mistral). Whether a token is trained depends on its position, never
on its id: a model learns to stop even when its tokenizer pads with the end-of-text token.

    chunks     tokens = chunk ‖ chunk ‖ … ‖ chunk,    each of at most max_length tokens, all but the last two of just so many

A record of {code} or {text} that is too long is cut into consecutive chunks under long = split. No token is lost, and none
is repeated. Each chunk is a sequence of its own, so its first token has nothing before it and is not predicted. Only the first
chunk has the beginning-of-text token, and only the last one the end of text: so the model learns to end where the text does, as
in pretraining. (axolotl's completion does the same; unsloth's raw_text ends every full chunk and repeats tokens.) A record with
a question can't be split, as its later chunks would have no question; it is cut.

Does not do: packing several records into one sequence (data/packing.py); cutting a text at the ends of its lines.
"""

import os
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from bidora_jax.data import chat_template, records
from bidora_jax.data.prompts import encode_prompts, question_text, response_text, slot, token_ids
from bidora_jax.data.records import SHAPES_IN_WORDS, BadRecord, Record, in_records, is_conversation, is_text
from bidora_jax.data.sources import sources
from bidora_jax.data.sources.rows import Fault, SourceRow
from bidora_jax.data.sources.sources import Found
from bidora_jax.data.tokenizer import Tokenizer
from bidora_jax.data.turns import trained as is_trained
from bidora_jax.errors import InputError, listing

LossOn = Literal["response", "turns", "all"]
Long = Literal["split", "truncate", "drop", "refuse"]
SHORTEST = 64
"""The least tokens of a record's last chunk; it takes missing ones from the chunk before, so that an end is learned with some
text before it. That leaves 2 % of packed rows empty. Chunks of equal length would pack badly: for texts a tenth longer than a
row, they would leave 45 % empty."""


DOUBLED = "a token that begins or ends a text stands twice in a row, as the records hold what is added to them"


class Example(NamedTuple):
    tokens: Int32[np.ndarray, " T"]
    trained: Bool[np.ndarray, " T"]  # the tokens to be predicted; never the first, which has nothing before it
    truncated: bool
    record: int = 0  # number of the record that it is, or is a chunk of


class Split(NamedTuple):
    examples: list[Example]  # each has at least one trained token
    n_truncated: int  # records of more than max_length tokens: cut, or left out
    n_untrained: int  # records dropped because no token of theirs is trained
    remarks: dict[str, list[int]]
    """What a user should know of some records' tokens, and the numbers of those records."""

    @property
    def chunks(self) -> list[int]:
        """The number of chunks of each record that was split."""
        return [count for count in Counter(example.record for example in self.examples).values() if count > 1]


# Reading


def read_records(
    source: str | os.PathLike[str] | Sequence[str], columns: tuple[tuple[str, str], ...] = ()
) -> list[Record]:
    """The records of one source or several, each with the keys of its shape and no others.

    Raises InputError for a source that is missing or empty, and one that lists every bad row.
    """
    found = sources.rename({"": sources.scan_each(source)}, columns)[""]
    return [record for part in records_of(found).values() for record in part]


def records_of(found: Found) -> dict[str, list[Record]]:
    """The record of every row, by source. Raises InputError as read_records does."""
    for source, rows in found.items():
        if not rows:
            expected = "one JSON object a line" if sources.one_a_line(source) else "rows"
            raise InputError(f"{source} holds no record; expected {expected}, shaped {SHAPES_IN_WORDS}")
    read: dict[str, list[Record]] = {source: [] for source in found}
    problems = []
    for source, rows in found.items():
        for row in rows:
            try:
                read[source].append(_record(row))
            except BadRecord as problem:
                problems.append(f"{row.place}: {problem}")
    if problems:
        total = sum(map(len, found.values()))
        what = "one JSON object " if all(map(sources.one_a_line, found)) else ""
        raise InputError(sources.unusable(found, problems, total, f"{what}shaped {SHAPES_IN_WORDS}"))
    return read


def _record(row: SourceRow | Fault) -> Record:
    if isinstance(row, Fault):
        raise BadRecord(row.why)
    return records.record(row.value, row.place)


def encode(record: Record, tokenizer: Tokenizer, *, max_length: int, loss_on: LossOn) -> Example:
    """One record's tokens, cut at the end to `max_length` (which takes the end-of-text token away first).

    Neither a blank response nor its end of text is trained: the model would learn to answer nothing.
    """
    return encode_each(record, tokenizer, max_length=max_length, loss_on=loss_on, long="truncate")[0]


def encode_each(record: Record, tokenizer: Tokenizer, *, max_length: int, loss_on: LossOn, long: Long) -> list[Example]:
    """The examples of one record: its chunks if it is split, else the one example that `encode` makes."""
    return _encode([record], tokenizer, max_length, loss_on, long)[0]


def encode_all(
    records: list[Record], tokenizer: Tokenizer, *, max_length: int, loss_on: LossOn, long: Long = "split"
) -> Split:
    """Every record that has a trained token, and the number of the others. `long` says what is done with records of more than
    `max_length` tokens.

    Raises InputError when no record has a trained token, for records that the chat template can't write, and for long ones
    that are refused; the last two messages name all of them.
    """
    encoded, remarks = _encode(records, tokenizer, max_length, loss_on, long)
    too_long = [records[example.record] for example in encoded if example.truncated]
    if too_long and long == "refuse":
        raise InputError(
            f"{len(too_long)} of {len(records)} records have more than data.max_length = {max_length} tokens, and data.long "
            f"is refuse; shorten them, raise max_length, or set long to split, truncate or drop:\n"
            f"{listing(dict.fromkeys(record.place or question_text(record)[:60] for record in too_long))}"
        )
    kept = [example for example in encoded if long != "drop" or not example.truncated]
    examples = [example for example in kept if example.trained.any()]
    if not examples:
        blank = sum(not response_text(record).strip() for record in records)
        raise InputError(
            f"none of the {len(records)} records has a token to train on: {blank} have an empty response, "
            f"{len(records) - blank} have no response within max_length = {max_length} tokens"
            f"{f' or are left out, as {len(too_long)} are longer' * (len(kept) < len(encoded))}; "
            "fill the responses in, raise data.max_length or set data.loss_on to all"
        )
    untrained = {example.record for example in kept} - {example.record for example in examples}
    return Split(examples, len(too_long), len(untrained), remarks)


def remarks_of(split: Split, records: Sequence[Record]) -> list[str]:
    """The remarks on the records that the split was made of, with the places of those records, in lines."""
    return [
        f"{what}: {in_records([records[number].place for number in found])}" for what, found in split.remarks.items()
    ]


def _encode(
    records: list[Record], tokenizer: Tokenizer, max_length: int, loss_on: LossOn, long: Long
) -> tuple[list[Example], dict[str, list[int]]]:
    """The examples of every record, in order, each record's at least one; and the remarks of a Split."""
    talks = [record for record in records if is_conversation(record)]
    texts = [record for record in records if not is_conversation(record)]
    of_talks, of_texts = iter(_of_talks(talks, tokenizer, loss_on)), iter(_of_texts(texts, tokenizer, loss_on))
    examples, remarks = [], {}
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    for number, record in enumerate(records):
        tokens, trained, left_out = next(of_talks if is_conversation(record) else of_texts)
        for part in left_out:
            remarks.setdefault(f"{part}: not in the text that the chat template writes", []).append(number)
        if any(one == other and one in ends for one, other in pairwise(tokens)):
            remarks.setdefault(DOUBLED, []).append(number)
        whole = long == "split" and is_text(record)
        lengths = chunk_lengths(len(tokens), max_length) if whole else [min(len(tokens), max_length)]
        stops = np.cumsum(lengths).tolist()
        for length, stop in zip(lengths, stops, strict=True):
            part, mask = np.array(tokens[stop - length : stop], np.int32), np.array(trained[stop - length : stop], bool)
            mask[:1] = False
            examples.append(Example(part, mask, stop == stops[-1] < len(tokens), number))
    return examples, remarks


def chunk_lengths(count: int, most: int) -> list[int]:
    """Lengths of the chunks of `count` tokens: `most` each, and the last two by the rule of SHORTEST."""
    full, rest = divmod(count, most)
    lengths = [most] * full + [rest] * (rest > 0 or not full)
    lacking = min(SHORTEST, (most + 1) // 2) - lengths[-1]
    if full and lacking > 0:
        lengths[-2:] = [lengths[-2] - lacking, lengths[-1] + lacking]
    return lengths


def _of_texts(records: list[Record], tokenizer: Tokenizer, loss_on: LossOn) -> list[chat_template.Tokens]:
    """Prompt and response of each record, tokenised apart. An end of text that the response has already is not added again."""
    end = tokenizer.eos_token
    texts = [response_text(record) for record in records]
    texts = [text.rstrip().removesuffix(end) if text.rstrip().endswith(end) else text for text in texts]
    responses = [
        [*ids, tokenizer.eos_token_id] if text.strip() else []
        for text, ids in zip(texts, token_ids(texts, tokenizer), strict=True)
    ]
    pairs = zip(encode_prompts(records, tokenizer), responses, strict=True)
    return [
        chat_template.Tokens(prompt + answer, [loss_on == "all"] * len(prompt) + [True] * len(answer))
        for prompt, answer in (_opened_once(*pair, tokenizer.bos_token_id) for pair in pairs)
    ]


def _opened_once(prompt: list[int], answer: list[int], opening: int | None) -> tuple[list[int], list[int]]:
    """Prompt and answer with one beginning-of-text token where the record holds one too, and the tokenizer adds it."""
    return (prompt, answer[1:]) if prompt == [opening] and answer[:1] == [opening] else (prompt, answer)


def _of_talks(records: list[Record], tokenizer: Tokenizer, loss_on: LossOn) -> list[chat_template.Tokens]:
    """The tokens of each conversation as the chat template writes it; those of its answers are trained."""
    if records:
        chat_template.check_template(tokenizer)
    found = chat_template.tokens([_talk(record, loss_on) for record in records], tokenizer)
    problems = [
        f"{slot(record)}{one}" for record, one in zip(records, found, strict=True) if isinstance(one, BadRecord)
    ]
    if problems:
        raise InputError(
            f"{len(problems)} of the {len(records)} conversations cannot be used with this model and loss_on = {loss_on}:\n"
            f"{listing(problems)}"
        )
    return [one for one in found if not isinstance(one, BadRecord)]


def _talk(record: Record, loss_on: LossOn) -> chat_template.Conversation:
    turns, first = records.turns(record)
    if loss_on == "all":
        return chat_template.Conversation(turns, None, record.get("tools"))
    answers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    answers = answers[-1:] if loss_on == "response" else [number for number in answers if number >= first]
    return chat_template.Conversation(turns, [n for n in answers if is_trained(turns[n])], record.get("tools"))
