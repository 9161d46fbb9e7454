"""A tokenizer as keys of a GGUF file.

llama.cpp has two tokenizers for the families that are trained here, and a fast tokenizer is one of them by its own steps:

    "gpt2"    byte-level BPE: merges by rank, and the name of how texts are split before (gguf_splits.py)
    "llama"   SentencePiece's BPE: scores instead of merges (gguf_sentencepiece.py)

A tokenizer that is neither is refused by name, and so is what a GGUF file has no room for. What differs in rare texts alone is
said in a note (`Written.notes`).
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bidora_jax.errors import InputError, listing
from bidora_jax.models.formats import gguf_sentencepiece, gguf_splits
from bidora_jax.models.formats.gguf_architecture import Key

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""llama.cpp's types of tokens. User-defined ones are found in every text, control ones where special tokens are looked for."""

DECOMPOSED = "an é that is written as e and an accent"


class Tokenizer(NamedTuple):
    """A fast tokenizer as it is in training."""

    steps: dict[str, Any]
    """What tokenizer.json holds of it once it is loaded."""
    bos: int | None
    eos: int
    unknown: int | None
    pad: int | None
    adds_bos: bool
    """Whether it begins a text with bos, and below, ends it with eos."""
    adds_eos: bool
    template: str | None
    """The chat template."""
    ends: Sequence[int]
    """Tokens that end an answer."""


class Written(NamedTuple):
    """The keys, and what a user should know of them."""

    keys: list[Key]
    notes: list[str]


class _Form(NamedTuple):
    """What one of llama.cpp's two tokenizers needs beside the tokens."""

    name: str
    pre: str
    types: dict[int, int]
    """Of the tokens that are neither normal nor added."""
    keys: list[Key]
    notes: list[str]


def written(tokenizer: Tokenizer, vocab_size: int) -> Written:
    """The keys of a tokenizer whose model has `vocab_size` rows; InputError for what llama.cpp can't express."""
    model, added = tokenizer.steps["model"], {one["id"]: one for one in tokenizer.steps["added_tokens"]}
    if wrong := [*_wrong_model(model), *_wrong_added(added.values())]:
        raise InputError(
            f"llama.cpp can't express this tokenizer:\n{listing(wrong)}\nuse --format merged with another engine"
        )
    vocabulary = {number: text for text, number in model["vocab"].items()}
    vocabulary |= {number: one["content"] for number, one in added.items()}
    if beyond := [number for number in vocabulary if number >= vocab_size]:
        raise InputError(
            f"the tokenizer has {len(beyond)} tokens from {min(beyond)} on, and the model {vocab_size} embeddings: take the "
            "tokenizer that belongs to it"
        )
    form = (
        _sentencepiece(tokenizer, vocab_size) if gguf_sentencepiece.is_one(tokenizer.steps) else _byte_level(tokenizer)
    )
    of_added = {number: CONTROL if one["special"] else USER_DEFINED for number, one in added.items()}
    types = dict.fromkeys(vocabulary, NORMAL) | of_added | form.types
    tokens = [vocabulary.get(n, f"[PAD{n}]") for n in range(vocab_size)]
    keys = [
        Key("tokenizer.ggml.model", "string", form.name),
        Key("tokenizer.ggml.pre", "string", form.pre),
        Key("tokenizer.ggml.tokens", "strings", tokens),
        Key("tokenizer.ggml.token_type", "int32s", [types.get(n, UNUSED) for n in range(vocab_size)]),
        *form.keys,
        *_special(tokenizer, tokens),
    ]
    return Written(keys, [*form.notes, *_notes_on_ends(tokenizer, tokens)])


def _byte_level(tokenizer: Tokenizer) -> _Form:
    model = tokenizer.steps["model"]
    pre = gguf_splits.name_of(tokenizer.steps["pre_tokenizer"], model)
    kinds = {step["type"] for step in gguf_splits.steps(tokenizer.steps["normalizer"])}
    if kinds - {"NFC"}:
        raise InputError(
            f"the tokenizer's normaliser {', '.join(sorted(kinds - {'NFC'}))} changes texts, and llama.cpp's byte-level BPE has no "
            "normaliser; use --format merged with another engine"
        )
    notes = {
        f"llama.cpp does not compose characters (NFC): {DECOMPOSED} gives other tokens": bool(kinds),
        f"llama.cpp's {pre} takes marks off their letters: {DECOMPOSED}, and Hindi, give other tokens": pre
        in gguf_splits.CASED,
    }
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    merges = merges or ["[no] [merges]"]  # the list may not be empty, and this pair never occurs
    return _Form(
        "gpt2", pre, {}, [Key("tokenizer.ggml.merges", "strings", merges)], [note for note, due in notes.items() if due]
    )


def _sentencepiece(tokenizer: Tokenizer, vocab_size: int) -> _Form:
    found = gguf_sentencepiece.read(tokenizer.steps, has_template=tokenizer.template is not None)
    types = dict.fromkeys(found.bytes, BYTE)
    types |= {} if tokenizer.unknown is None else {tokenizer.unknown: UNKNOWN}
    keys = [
        Key("tokenizer.ggml.scores", "float32s", [found.score(number) for number in range(vocab_size)]),
        Key("tokenizer.ggml.add_space_prefix", "bool", found.prefix),
    ]
    return _Form("llama", "default", types, keys, found.notes)


def _wrong_model(model: dict[str, Any]) -> list[str]:
    if model["type"] != "BPE":
        return [f"its model {model['type']} (BPE alone is written)"]
    parts = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")
    return [f"{part} {model[part]!r}" for part in parts if model[part]]


def _wrong_added(added: Iterable[dict[str, Any]]) -> list[str]:
    """llama.cpp finds an added token as it stands, and takes nothing around it."""
    flags = ("lstrip", "rstrip", "single_word")
    return [f"{flag} of the added token {one['content']!r}" for one in added for flag in flags if one[flag]]


def _special(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[Key]:
    first, *more = _ends(tokenizer, tokens)
    numbers = {
        "bos": tokenizer.bos,
        "eos": first,
        "eot": more[0] if more else None,
        "eom": more[1] if len(more) > 1 else None,
        "unknown": tokenizer.unknown,
        "padding": tokenizer.pad,
    }
    template = [] if tokenizer.template is None else [Key("tokenizer.chat_template", "string", tokenizer.template)]
    return [
        *(Key(f"tokenizer.ggml.{name}_token_id", "uint32", n) for name, n in numbers.items() if n is not None),
        Key("tokenizer.ggml.add_bos_token", "bool", tokenizer.adds_bos),
        Key("tokenizer.ggml.add_eos_token", "bool", tokenizer.adds_eos),
        *template,
    ]


def _ends(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[int]:
    """The tokens that end an answer, the tokenizer's own first, and a message's end (which goes on with a tool's) last."""
    others = sorted(set(tokenizer.ends) - {tokenizer.eos}, key=lambda number: (tokens[number] == "<|eom_id|>", number))
    return [tokenizer.eos, *others]


def _notes_on_ends(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[str]:
    beyond = [tokens[number] for number in _ends(tokenizer, tokens)[3:]]
    said = (
        "a GGUF file has room for three tokens that end an answer; left out, unless llama.cpp knows them by their text"
    )
    return [f"{said}: {', '.join(map(repr, beyond))}"] if beyond else []
