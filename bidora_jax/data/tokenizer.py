"""The tokenizer of a model folder, as transformers reads it."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bidora_jax.errors import InputError
from bidora_jax.models.formats import tokenizer_files

Tokenizer = Any  # transformers' PreTrainedTokenizerBase, whose import takes a second
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
"""A folder without any of these has no tokenizer."""
PROBE = "a é 中 👍"
"""A text that a loaded tokenizer has to survive."""
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def has_tokenizer(folder: str | os.PathLike[str]) -> bool:
    return any((Path(folder) / name).is_file() for name in TOKENIZER_FILES)


def load_tokenizer(folder: str | os.PathLike[str], *, ends: bool = True) -> Tokenizer:
    """The tokenizer of a Hugging Face folder. Raises InputError when there is none, or where it `ends` texts and has no end-of-text
    token: an encoder's tokenizer has its own special tokens."""
    if not has_tokenizer(folder):
        raise InputError(
            f"no tokenizer in {folder}: expected one of {', '.join(TOKENIZER_FILES)}; copy them from the model that this one "
            "was made from"
        )
    auto = _auto_tokenizer()
    try:
        tokenizer = auto.from_pretrained(os.fspath(folder), local_files_only=True, trust_remote_code=False)
        with suppress(Exception):  # of a tokenizer that knows no such letters; what is damaged panics, which is none
            tokenizer(PROBE)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the Rust tokenizers raise Exception itself, and their panics are none
        if not (Path(folder) / "tokenizer.json").is_file() and (Path(folder) / "tokenizer.model").is_file():
            raise InputError(_needs_sentencepiece(folder)) from error
        raise InputError(f"cannot load the tokenizer in {folder}: {error}") from error
    for name, kinds, expected in TYPES:
        found = getattr(tokenizer, name)
        if not isinstance(found, kinds) or isinstance(found, bool):
            raise InputError(
                f"{name} of the tokenizer in {folder} must be {expected}, found {found!r:.60}; mend tokenizer_config.json"
            )
    if ends and tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer in {folder} has no end-of-text token; set eos_token in tokenizer_config.json")
    return tokenizer


def tokenize(tokenizer: Tokenizer, *texts: Any, **how: Any) -> Any:
    """tokenizer(*texts, **how). InputError for a text that it can't read, and has no token for what it doesn't know."""
    try:
        return tokenizer(*texts, verbose=False, **how)
    except Exception as error:
        if found := _no_character(texts):
            raise InputError(
                f"a text for the tokenizer in {tokenizer.name_or_path} holds {found!r}, which is no character: half of a pair of "
                "UTF-16, or a byte that is not UTF-8; mend the text, or the chat template that wrote it"
            ) from error
        if type(error) is not Exception:  # what the Rust tokenizers raise
            raise
        raise InputError(
            f"the tokenizer in {tokenizer.name_or_path} cannot read a text: {error}; mend the unk_token of its tokenizer.json, or "
            "leave out what it does not know"
        ) from error


def _no_character(texts: Any) -> str:
    """The first surrogate in a text or in lists of texts, or nothing."""
    if isinstance(texts, str):
        return next((letter for letter in texts if "\ud800" <= letter <= "\udfff"), "")
    return next(filter(None, map(_no_character, texts)), "") if isinstance(texts, list | tuple) else ""


TYPES: tuple[tuple[str, Any, str], ...] = (
    ("model_max_length", int | float, "a number"), ("chat_template", str | dict | None, "a text, or an object of texts"),
)  # fmt: skip
"""What transformers takes from tokenizer_config.json as it stands and reads later on."""


def folder_with_adapters(model: Path, adapters: Iterable[Path]) -> Path:
    """The folder whose tokenizer and chat template belong to a model under these adapters: the model's, or that of an adapter
    folder with others, which trainers put beside an adapter that learned new tokens or another template.

    InputError where the adapters do not agree: they answer in one program.
    """
    kinds: dict[tuple[tuple[str, bytes], ...], list[Path]] = {}
    for adapter in adapters:
        folder = adapter if any((adapter / name).is_file() for name in VOCABULARIES) else model
        kinds.setdefault(_contents(folder), []).append(folder)
    if len(kinds) > 1:
        found = "\n".join(f"  {', '.join(map(str, dict.fromkeys(folders)))}" for folders in kinds.values())
        raise InputError(
            f"the adapters come with different tokenizers or chat templates, those of\n{found}\nuse them one at a time, or take "
            "the tokenizer's files out of the adapter folders if they are alike"
        )
    of_adapters = next(iter(kinds), _contents(model))
    return model if of_adapters == _contents(model) else kinds[of_adapters][0]


def _contents(folder: Path) -> tuple[tuple[str, bytes], ...]:
    read = [*tokenizer_files.tokenizer_files(folder), *tokenizer_files.template_files(folder)]
    return tuple((str(name), (folder / name).read_bytes()) for name in read)


def _needs_sentencepiece(folder: str | os.PathLike[str]) -> str:
    what = f"cannot load the tokenizer in {folder}: it is tokenizer.model alone, in SentencePiece's format"
    if find_spec("sentencepiece") is None:
        return f"{what}; pip install sentencepiece, or put the model's tokenizer.json beside it"
    return f"{what}, and is damaged or of another kind; put the model's tokenizer.json beside it"


def _auto_tokenizer() -> Any:
    """transformers' AutoTokenizer, imported without its advice to install PyTorch, which this package does not use."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    return AutoTokenizer


def pad_id(tokenizer: Tokenizer) -> int:
    """The pad token's id, or the end-of-text token's where there is none, or 0. Any id would do: padding is masked by position."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(number for number in known if number is not None)


def check_known(rows: Iterable[Sequence[int] | np.ndarray], tokenizer: Tokenizer, vocab_size: int, what: str) -> None:
    """InputError for a token past the model's embeddings, in whose place the last row would be read without a word."""
    tokens = np.unique(np.concatenate([np.asarray(row, np.int64) for row in rows] or [np.zeros(0, np.int64)]))
    beyond = tokens[tokens >= vocab_size].tolist()
    if beyond:
        named = ", ".join(f"{token} ({tokenizer.convert_ids_to_tokens(token)!r})" for token in beyond[:4])
        raise InputError(
            f"{what} hold tokens that the model has no embedding for: {named}{', …' * (len(beyond) > 4)}; it has {vocab_size:,}, "
            f"and the tokenizer {len(tokenizer):,} tokens: resize the model's embeddings, or take the tokenizer that belongs to it"
        )
