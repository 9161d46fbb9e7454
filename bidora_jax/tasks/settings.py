"""What `task.*` means in a configuration."""

from dataclasses import dataclass
from typing import Literal

TaskType = Literal["language_modeling", "classification", "multilabel", "regression", "tokens"]


@dataclass(frozen=True)
class TaskConfig:
    """What is asked of the model."""

    type: Literal["auto", "language_modeling", "classification", "multilabel", "regression", "tokens"] = "auto"
    """language_modeling: the next token; classification: one label of a text; multilabel: any of them; regression: a number, or
    several; tokens: a tag for each word. auto: language_modeling of a decoder without label columns; else what the labels are."""
    labels: tuple[str, ...] = ()
    """The labels in their order, as they are written; of regression, names for the values. Without it, those of the training
    records."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each label weighs n/(C·n_c), so that rare ones count as much as frequent ones; of multilabel, a positive weighs
    n₋/n₊."""
    label_smoothing: float = 0.0
    """Share of the probability that is spread over all labels; classification and tokens."""
    head: Literal["keep", "new"] = "keep"
    """keep: go on from the head in the model's folder, where it has one for these labels; new: draw a new one."""
