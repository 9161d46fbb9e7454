"""Rows -> records -> tokens.

A record has one of four shapes; `prompt ‖ response ‖ end of text` is the sequence, and `trained` says which of its
tokens the loss predicts:

    {instruction, input?, output}   prompt = chat template of one user turn (a plain template without one)
    {prompt, completion}            prompt as it stands
    {code}, {text}                  no prompt, all of it is trained

Prompt and response are tokenised apart, so that no token straddles the border between them, and without special tokens,
so that a template's own first token does not come twice; text without a template opens with the beginning-of-text token
where the tokenizer has it so (Llama, Mistral). What is trained is decided by position, never by token id: a
model learns to stop even when its tokenizer pads with the end-of-text token.

Does not do: several turns, packing several records into one sequence.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from bidora_jax.errors import InputError, did_you_mean
from bidora_jax.training import sources
from bidora_jax.training.rows import Fault, Row, kind
from bidora_jax.training.sources import Found

Tokenizer = Any  # transformers' PreTrainedTokenizerBase, whose import takes a second
Record = dict[str, str]


class Shape(NamedTuple):
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


SHAPES = {  # by the key that marks the shape; the first one present decides; the last required key is the response
    "instruction": Shape(("instruction", "output"), ("input",)),
    "prompt": Shape(("prompt", "completion")),
    "code": Shape(("code",)),
    "text": Shape(("text",)),
}
SHAPES_IN_WORDS = "{instruction, input?, output}, {prompt, completion}, {code} or {text}"
PLAIN_TEMPLATE = "### Instruction:\n{instruction}\n\n### Response:\n"  # for a tokenizer without a chat template
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


class Example(NamedTuple):
    tokens: Int32[np.ndarray, " T"]
    trained: Bool[np.ndarray, " T"]  # the tokens to be predicted; never the first, which has nothing before it
    truncated: bool


class Split(NamedTuple):
    examples: list[Example]  # each has at least one trained token
    n_truncated: int  # records cut at max_length, among them dropped ones
    n_untrained: int  # records dropped because no token of theirs is trained


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
            except _BadLine as problem:
                problems.append(f"{row.place}: {problem}")
    if problems:
        total = sum(map(len, found.values()))
        raise InputError(sources.unusable(found, problems, total, f"one JSON object shaped {SHAPES_IN_WORDS}"))
    return read


class _BadLine(Exception):
    """What is wrong with one line."""


def _record(row: Row | Fault) -> Record:
    if isinstance(row, Fault):
        raise _BadLine(row.why)
    value = row.value
    shape = SHAPES[_shape_of(value)]
    optional = [key for key in shape.optional if value.get(key) not in (None, "")]
    record = {key: value[key] for key in (*shape.required, *optional)}
    for key, text in record.items():
        _check_text(key, text)
    if len(shape.required) > 1 and not record[shape.required[0]].strip():
        raise _BadLine(f"{shape.required[0]!r} is empty; records without a prompt are written {{text}} or {{code}}")
    return record


def _shape_of(value: dict[str, Any]) -> str:
    marker = next((key for key in SHAPES if key in value), None)
    if marker is None:
        raise _BadLine(f"has none of the keys {', '.join(map(repr, SHAPES))}; {_its_keys(value)}")
    missing = [key for key in SHAPES[marker].required if key not in value]
    if missing:
        raise _BadLine(f"has {marker!r} but lacks {', '.join(map(repr, missing))}; {_its_keys(value)}")
    return marker


def _its_keys(value: dict[str, Any], limit: int = 6) -> str:
    known = [key for shape in SHAPES.values() for key in shape.required + shape.optional]
    found = [repr(key) + ("" if key in known else did_you_mean(key, known)) for key in value]
    return "its keys: " + (", ".join(found[:limit]) + (", …" if len(found) > limit else "") or "none")


def _check_text(key: str, text: Any) -> None:
    if not isinstance(text, str):
        raise _BadLine(f"{key!r} should be text, found {kind(text)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise _BadLine(f"{key!r} holds {half}, one half of a surrogate pair, which is no character") from error


# Tokens


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a Hugging Face folder. Raises InputError when there is none or it has no end-of-text token."""
    if not any((Path(folder) / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"no tokenizer in {folder}: expected one of {', '.join(TOKENIZER_FILES)}")
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


def prompt_text(record: Record, tokenizer: Tokenizer) -> str:
    """What stands before the response; empty for {code} and {text}."""
    if "instruction" not in record:
        return record.get("prompt", "")
    content = "\n\n".join([record["instruction"], *filter(None, [record.get("input")])])
    if not tokenizer.chat_template:
        return PLAIN_TEMPLATE.format(instruction=content)
    turn = [{"role": "user", "content": content}]
    try:
        return tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program: it can raise anything
        raise InputError(f"the tokenizer's chat template refuses a single user turn: {error}") from error


def response_text(record: Record) -> str:
    """The text to be learned."""
    return record[SHAPES[_shape_of(record)].required[-1]]


def prompt_ids(record: Record, tokenizer: Tokenizer) -> list[int]:
    """Tokens to generate an answer from. Raises InputError for {code} and {text}, which ask nothing."""
    if not prompt_text(record, tokenizer):
        raise InputError("a {code} or {text} record has no prompt; use {instruction, output} or {prompt, completion}")
    return _prompts([record], tokenizer)[0]


def encode(record: Record, tokenizer: Tokenizer, *, max_length: int, loss_on: Literal["response", "all"]) -> Example:
    """One record's tokens, cut at the end to `max_length` (which takes the end-of-text token away first).

    A blank response is not trained, and its end of text neither: it would teach to answer nothing.
    """
    return _encode([record], tokenizer, max_length, loss_on)[0]


def encode_all(
    records: list[Record], tokenizer: Tokenizer, *, max_length: int, loss_on: Literal["response", "all"]
) -> Split:
    """Every record that has a trained token, and the number of the others. Raises InputError when none has."""
    encoded = _encode(records, tokenizer, max_length, loss_on)
    examples = [example for example in encoded if example.trained.any()]
    if not examples:
        blank = sum(not response_text(record).strip() for record in records)
        raise InputError(
            f"none of the {len(records)} records has a token to train on: {blank} have an empty response, "
            f"{len(records) - blank} have no response within max_length = {max_length} tokens; "
            "fill the responses in, raise data.max_length or set data.loss_on to all"
        )
    return Split(examples, sum(example.truncated for example in encoded), len(encoded) - len(examples))


def _encode(records: list[Record], tokenizer: Tokenizer, max_length: int, loss_on: str) -> list[Example]:
    prompts = _prompts(records, tokenizer)
    texts = [response_text(record) for record in records]
    responses = [
        [*ids, tokenizer.eos_token_id] if text.strip() else []
        for text, ids in zip(texts, _token_ids(texts, tokenizer), strict=True)
    ]
    pairs = zip(prompts, responses, strict=True)
    return [_example(prompt, response, max_length, loss_on == "all") for prompt, response in pairs]


def _prompts(records: list[Record], tokenizer: Tokenizer) -> list[list[int]]:
    """What stands before each response, in tokens."""
    texts = [prompt_text(record, tokenizer) for record in records]
    bos = tokenizer.bos_token_id
    opening = [bos] if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else []
    return [
        [*([] if "instruction" in record and tokenizer.chat_template else opening), *ids]
        for record, ids in zip(records, _token_ids(texts, tokenizer), strict=True)
    ]


def _example(prompt: list[int], response: list[int], max_length: int, train_prompt: bool) -> Example:
    tokens = np.array(prompt + response, dtype=np.int32)
    trained = np.arange(len(tokens)) >= (0 if train_prompt else len(prompt))
    trained[:1] = False
    return Example(tokens[:max_length], trained[:max_length], len(tokens) > max_length)


def _token_ids(texts: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
