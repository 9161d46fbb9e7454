"""The model that a competition is trained on: the one that is named, or the first of a short list that is in the local cache."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bidora_jax.competitions.columns import Columns, Guess
from bidora_jax.competitions.texts import text_of
from bidora_jax.data.tokenizer import load_tokenizer, tokenize
from bidora_jax.errors import InputError, listing
from bidora_jax.models.formats.hf_config import cached, read_config, resolve_folder

LIST = (
    "microsoft/deberta-v3-base", "microsoft/deberta-v3-small", "answerdotai/ModernBERT-base", "FacebookAI/roberta-base",
    "google/electra-base-discriminator", "google-bert/bert-base-uncased", "distilbert/distilbert-base-uncased",
    "sentence-transformers/all-MiniLM-L6-v2",
)  # fmt: skip
"""Encoders that do well in text competitions, the best first."""
LOOKED_AT = 1000
"""Rows whose tokens are counted."""
FULL = 0.98
"""Share of the rows that are to fit whole."""


class BaseModel(NamedTuple):
    name: str
    """As it is given to `train`."""
    folder: Path
    width: int
    """Of its layers, in floats."""
    positions: int
    size: int
    """Bytes of the weights, as far as they are here."""


class Lengths(NamedTuple):
    tokens: int
    """Within which most rows fit, the special tokens included."""
    characters: float
    """Of a token, on average."""


def find(model: str) -> tuple[BaseModel, Guess]:
    """The model. Nothing but a named model of the hub asks the network. InputError where there is none."""
    there = {name: folder for name in LIST if not model and (folder := cached(name))}
    if not model and not there:
        raise InputError(
            "no model is named, and of those that are looked for in the local Hugging Face cache none is there; name a folder or a "
            f"model of the hub: --model {LIST[0]}\nlooked for:\n{listing(LIST)}"
        )
    name, folder = (model, resolve_folder(model)) if model else next(iter(there.items()))
    config = read_config(folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    reason = "named" if model else "the first of its list in the local Hugging Face cache"
    return BaseModel(name, folder, config.hidden_size, config.max_positions, size), Guess(
        "model", name, reason, "--model"
    )


def lengths(model: BaseModel, rows: Sequence[Mapping[str, str]], columns: Columns) -> Lengths:
    """What the model's tokenizer makes of the rows' inputs."""
    tokenizer = load_tokenizer(model.folder, ends=False)
    seen = rows[:: -(-len(rows) // LOOKED_AT)]
    inputs = [text_of(row, columns, 0) for row in seen]
    tokens = [
        sum(len(tokenize(tokenizer, part, add_special_tokens=False)["input_ids"]) for part in one) for one in inputs
    ]
    special = 2 + max(map(len, inputs))
    most = sorted(tokens)[int(FULL * (len(tokens) - 1))] + special
    return Lengths(most, sum(len(part) for one in inputs for part in one) / max(sum(tokens), 1))
