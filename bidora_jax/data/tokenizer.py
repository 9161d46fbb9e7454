"""The tokenizer of a model folder, as transformers reads it."""

import os
from pathlib import Path
from typing import Any

from bidora_jax.errors import InputError

Tokenizer = Any  # transformers' PreTrainedTokenizerBase, whose import takes a second
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
"""A folder without any of these has no tokenizer."""


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
    """The pad token's id, or the end-of-text token's where there is none. Any id would do: padding is masked by position."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
