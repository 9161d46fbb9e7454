"""What a text is labelled with: the classes, targets or tags of a task, and a labelled text in tokens.

    type            label of a text                                             names
    classification  one of C classes, or a share of each (soft labels)          the classes, as they are written
    multilabel      any of C classes                                            the classes, as they are written
    regression      K numbers; trained is (value − mean) / std, both of train   what the numbers are called
    tokens          a tag for each word                                         the tags, as they are written

Does not do: reading labels (data/label_values.py); losses and scores.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
from jaxtyping import Int32

from bidora_jax.errors import InputError

TaskType = Literal["classification", "multilabel", "regression", "tokens"]
TYPES: tuple[TaskType, ...] = get_args(TaskType)
OUTSIDE = "O"
"""The tag of a word that belongs to no entity."""


@dataclass(frozen=True)
class Labels:
    """What the outputs of a head stand for, in their order."""

    type: TaskType
    names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    """Of the regression targets of train; empty for the other types."""
    std: tuple[float, ...] = ()
    text_columns: tuple[str, ...] = field(default=(), compare=False)
    """The columns of train that held the text: a file to be labelled has it there too, if they are in it."""

    @property
    def count(self) -> int:
        """C classes or tags, or K values: the outputs of a head."""
        return len(self.names)

    @property
    def outside(self) -> int:
        """The number of the tag O, which words without a token get; −1 where there is none."""
        return self.names.index(OUTSIDE) if OUTSIDE in self.names else -1

    def to_json(self) -> dict[str, Any]:
        """The object that labels.json holds."""
        found: dict[str, Any] = {"type": self.type, "names": list(self.names)}
        found |= {"mean": list(self.mean), "std": list(self.std)} if self.type == "regression" else {}
        return found | ({"text_columns": list(self.text_columns)} if self.text_columns else {})

    @classmethod
    def from_json(cls, value: Any, place: str = "labels.json") -> Self:
        """Raises InputError for anything that `to_json` does not write."""
        wrong = _wrong_object(value)
        if wrong:
            raise InputError(f"{place} {wrong}; take the file that the run wrote")
        mean, std = (tuple(map(float, value.get(key) or ())) for key in ("mean", "std"))
        return cls(value["type"], tuple(value["names"]), mean, std, tuple(map(str, value.get("text_columns") or ())))


def _wrong_object(value: Any) -> str:
    if not isinstance(value, dict) or value.get("type") not in TYPES:
        return f"should be an object whose 'type' is one of {', '.join(TYPES)}"
    names = value.get("names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return "should have 'names', a list of texts"
    if len(set(names)) < len(names):
        return f"has {next(name for name in names if names.count(name) > 1)!r} twice in 'names'"
    if value["type"] != "regression":
        return ""
    for key in ("mean", "std"):
        numbers = value.get(key)
        if not isinstance(numbers, list) or len(numbers) != len(names):
            return f"should have {key!r}, a number for each of its {len(names)} names"
    return ""


class LabelledExample(NamedTuple):
    """A labelled text, or a pair of texts, in the model's tokens."""

    tokens: Int32[np.ndarray, " T"]
    """With the special tokens of the tokenizer's own template."""
    types: Int32[np.ndarray, " T"]
    """1 for the tokens of a pair's second text, else 0."""
    labels: np.ndarray
    """float32 (C,): shares of the classes, 0 or 1 for each, or standardised numbers; NaN of a text without a label.
    Of tokens, int32 (T,): the tag's number at the first token of each word, −1 elsewhere."""
    truncated: bool
    record: int = 0
    """Number of the record that it is."""
    starts: Int32[np.ndarray, " W"] = np.zeros(0, np.int32)
    """Of tokens: where each word's first token stands; −1 for a word that has none, or lost it to truncation."""
