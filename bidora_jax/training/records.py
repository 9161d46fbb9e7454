"""Rows -> records -> tokens.

A record (its shapes: shapes.py) becomes one sequence, and `trained` says which of its tokens the loss predicts:

    {instruction, …}           chat template of the question (a plain template without one) ‖ output ‖ end of text;
                               with a history it is read as a conversation
    {prompt, completion}       prompt as it stands ‖ completion ‖ end of text
    {code}, {text}             all of it is trained ‖ end of text
    {messages}, conversations  the chat template's text of all turns; trained are the answers in it (answers.py):
                               loss_on = response the last one, turns every one of the assistant, all the whole text

Of the first two, prompt and response are tokenised apart, so that no token straddles the border between them, and without
special tokens, so that a template's own first token does not come twice; text without a template opens with the
beginning-of-text token where the tokenizer has it so (Llama, Mistral). What is trained is decided by position, never by
token id: a model learns to stop even when its tokenizer pads with the end-of-text token.

    chunks     tokens = chunk ‖ chunk ‖ … ‖ chunk,    each of at most max_length tokens, all but the last two of just so many

A record of {code} or {text} that is too long becomes its consecutive chunks under long = split: no token is lost, and none
stands twice. Each is a sequence of its own, so its first token has nothing before it and is not predicted. The first token
that the tokenizer opens a text with is the first chunk's alone, and the end of text the last one's: so the model learns to
end where the text does, and what it sees is what pretraining shows it. (axolotl's completion does the same; unsloth's
raw_text ends every full chunk and has tokens twice.) A record that asks can't be split, as its later chunks would answer to
nothing; it is cut.

Does not do: packing several records into one sequence (packing.py); cutting a text at the ends of its lines.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from bidora_jax.errors import InputError, listing
from bidora_jax.training import answers, shapes, sources
from bidora_jax.training.answers import Tokenizer
from bidora_jax.training.rows import Fault, Row
from bidora_jax.training.shapes import SHAPES_IN_WORDS, BadRecord, Record
from bidora_jax.training.sources import Found

LossOn = Literal["response", "turns", "all"]
Long = Literal["split", "truncate", "drop", "refuse"]
SHORTEST = 64
"""Tokens that the last chunk of a record takes from the one before if it has fewer: an end is learned with some text before
it, and two in a hundred places of packed rows stay empty. Chunks of even lengths would fit ill: of texts a tenth longer than
a row, 45 in a hundred would."""
PLAIN_TEMPLATE = "### Instruction:\n{instruction}\n\n### Response:\n"  # for a tokenizer without a chat template
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


class Example(NamedTuple):
    tokens: Int32[np.ndarray, " T"]
    trained: Bool[np.ndarray, " T"]  # the tokens to be predicted; never the first, which has nothing before it
    truncated: bool
    record: int = 0  # number of the record that it is, or is a chunk of


class Split(NamedTuple):
    examples: list[Example]  # each has at least one trained token
    n_truncated: int  # records of more than max_length tokens: cut, or left out
    n_untrained: int  # records dropped because no token of theirs is trained

    @property
    def chunks(self) -> list[int]:
        """Into how many chunks each record went that was split."""
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


def _record(row: Row | Fault) -> Record:
    if isinstance(row, Fault):
        raise BadRecord(row.why)
    return shapes.record(row.value, row.place)


# Tokens


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a Hugging Face folder. Raises InputError when there is none or it has no end-of-text token."""
    if not any((Path(folder) / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(
            f"no tokenizer in {folder}: expected one of {', '.join(TOKENIZER_FILES)}; copy them from the model that this one "
            "was made from"
        )
    auto = _auto_tokenizer()
    try:
        tokenizer = auto.from_pretrained(os.fspath(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust tokenizers raise Exception itself
        raise InputError(f"cannot load the tokenizer in {folder}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer in {folder} has no end-of-text token; set eos_token in tokenizer_config.json")
    return tokenizer


def _auto_tokenizer() -> Any:
    """transformers' AutoTokenizer, imported without its advice to install PyTorch, which this package does not use."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    return AutoTokenizer


def pad_id(tokenizer: Tokenizer) -> int:
    """Any id serves, as padding is masked by position: the pad token's, or the end-of-text token's without one."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def question_text(record: Record) -> str:
    """What is asked, for people to read: without template, and of a conversation the last turn before the answer."""
    if shapes.is_conversation(record):
        return _asked(record)[-1]["content"]
    return record.get("instruction", record.get("prompt", ""))


def prompt_text(record: Record, tokenizer: Tokenizer) -> str:
    """What stands before the response; empty for {code} and {text}. Raises InputError where the template refuses it."""
    if "instruction" not in record and not shapes.is_conversation(record):
        return record.get("prompt", "")
    if "instruction" in record and not tokenizer.chat_template:
        content = "\n\n".join(filter(None, [record.get("system"), shapes.asked(record)]))
        return PLAIN_TEMPLATE.format(instruction=content)
    try:
        return answers.render(_asked(record), tokenizer, record.get("tools"), ask=True)
    except BadRecord as problem:
        raise InputError(f"{_at(record)}{problem}") from problem


def response_text(record: Record) -> str:
    """The text to be learned; of a conversation, the last answer."""
    if shapes.is_conversation(record):
        return shapes.turns(record)[0][-1]["content"]
    return next(record[key] for key in ("output", "completion", "code", "text") if key in record)


def prompt_ids(record: Record, tokenizer: Tokenizer) -> list[int]:
    """Tokens to generate an answer from. Raises InputError for {code} and {text}, which ask nothing."""
    if not prompt_text(record, tokenizer):
        raise InputError("a {code} or {text} record has no prompt; use {instruction, output} or {prompt, completion}")
    return _prompts([record], tokenizer)[0]


def encode(record: Record, tokenizer: Tokenizer, *, max_length: int, loss_on: LossOn) -> Example:
    """One record's tokens, cut at the end to `max_length` (which takes the end-of-text token away first).

    A blank response is not trained, and its end of text neither: it would teach to answer nothing.
    """
    return encode_each(record, tokenizer, max_length=max_length, loss_on=loss_on, long="truncate")[0]


def encode_each(record: Record, tokenizer: Tokenizer, *, max_length: int, loss_on: LossOn, long: Long) -> list[Example]:
    """All that becomes of one record: the chunks of one that is split, else the one that `encode` makes."""
    return _encode([record], tokenizer, max_length, loss_on, long)


def encode_all(
    records: list[Record], tokenizer: Tokenizer, *, max_length: int, loss_on: LossOn, long: Long = "split"
) -> Split:
    """Every record that has a trained token, and the number of the others; `long` says what becomes of those of more than
    `max_length` tokens.

    Raises InputError when none has, where the chat template can't write some, and for long ones that are refused, with all
    of them.
    """
    encoded = _encode(records, tokenizer, max_length, loss_on, long)
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
    return Split(examples, len(too_long), len(untrained))


def _encode(records: list[Record], tokenizer: Tokenizer, max_length: int, loss_on: LossOn, long: Long) -> list[Example]:
    """What becomes of every record, in order; each has one example at least."""
    talks = [record for record in records if shapes.is_conversation(record)]
    texts = [record for record in records if not shapes.is_conversation(record)]
    of_talks, of_texts = iter(_of_talks(talks, tokenizer, loss_on)), iter(_of_texts(texts, tokenizer, loss_on))
    examples = []
    for number, record in enumerate(records):
        tokens, trained = next(of_talks if shapes.is_conversation(record) else of_texts)
        whole = long == "split" and shapes.is_text(record)
        lengths = chunk_lengths(len(tokens), max_length) if whole else [min(len(tokens), max_length)]
        ends = np.cumsum(lengths).tolist()
        for length, end in zip(lengths, ends, strict=True):
            part, mask = np.array(tokens[end - length : end], np.int32), np.array(trained[end - length : end], bool)
            mask[:1] = False
            examples.append(Example(part, mask, end == ends[-1] < len(tokens), number))
    return examples


def chunk_lengths(count: int, most: int) -> list[int]:
    """Lengths of the chunks that so many tokens go into, `most` each; see SHORTEST for the end."""
    full, rest = divmod(count, most)
    lengths = [most] * full + [rest] * (rest > 0 or not full)
    lacking = min(SHORTEST, (most + 1) // 2) - lengths[-1]
    if full and lacking > 0:
        lengths[-2:] = [lengths[-2] - lacking, lengths[-1] + lacking]
    return lengths


def _of_texts(records: list[Record], tokenizer: Tokenizer, loss_on: LossOn) -> list[answers.Tokens]:
    """Prompt and response of each record, tokenised apart."""
    texts = [response_text(record) for record in records]
    responses = [
        [*ids, tokenizer.eos_token_id] if text.strip() else []
        for text, ids in zip(texts, _token_ids(texts, tokenizer), strict=True)
    ]
    pairs = zip(_prompts(records, tokenizer), responses, strict=True)
    return [(prompt + answer, [loss_on == "all"] * len(prompt) + [True] * len(answer)) for prompt, answer in pairs]


def _of_talks(records: list[Record], tokenizer: Tokenizer, loss_on: LossOn) -> list[answers.Tokens]:
    """Each conversation as the chat template writes it, and the answers in it."""
    if records:
        answers.check(tokenizer)
    found = answers.tokens([_talk(record, loss_on) for record in records], tokenizer)
    problems = [f"{_at(record)}{one}" for record, one in zip(records, found, strict=True) if isinstance(one, BadRecord)]
    if problems:
        raise InputError(
            f"{len(problems)} of the {len(records)} conversations cannot be used with this model and loss_on = {loss_on}:\n"
            f"{listing(problems)}"
        )
    return [one for one in found if not isinstance(one, BadRecord)]


def _talk(record: Record, loss_on: LossOn) -> answers.Conversation:
    turns, first = shapes.turns(record)
    if loss_on == "all":
        return answers.Conversation(turns, None, record.get("tools"))
    of_assistant = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    numbers = of_assistant[-1:] if loss_on == "response" else [number for number in of_assistant if number >= first]
    return answers.Conversation(turns, numbers, record.get("tools"))


def _prompts(records: list[Record], tokenizer: Tokenizer) -> list[list[int]]:
    """What stands before each response, in tokens."""
    texts = [prompt_text(record, tokenizer) for record in records]
    bos = tokenizer.bos_token_id
    opening = [bos] if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else []
    return [
        [*([] if _templated(record, tokenizer) else opening), *ids]
        for record, ids in zip(records, _token_ids(texts, tokenizer), strict=True)
    ]


def _templated(record: Record, tokenizer: Tokenizer) -> bool:
    """Whether the prompt is the chat template's, which writes a first token itself."""
    return shapes.is_conversation(record) or ("instruction" in record and bool(tokenizer.chat_template))


def _asked(record: Record) -> list[shapes.Turn]:
    """The turns that ask: those of {instruction}, or of a conversation all but the last answer."""
    if shapes.is_conversation(record):
        turns, _ = shapes.turns(record)
        return turns[:-1] if turns[-1]["role"] == "assistant" else turns
    return shapes.asking(record)


def _at(record: Record) -> str:
    """The record's place, where it is known, for the head of a message."""
    return f"{record.place}: " if isinstance(record, Record) and record.place else ""


def _token_ids(texts: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
