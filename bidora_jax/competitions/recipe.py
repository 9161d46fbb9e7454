"""Settings of `train` for a competition, by the kind of target, the number of rows and the size of the model.

Presets are those of adapter.preset: efficient for numbers, expressive for many classes, balanced for the others, and the base in
nf4 where rows are many and the model is large. A rate of 1e-3 to 2e-4, the smaller the wider the model, suits LoRA.
"""

from typing import Any, NamedTuple

from bidora_jax.competitions.base_models import BaseModel, Lengths
from bidora_jax.competitions.columns import Columns
from bidora_jax.competitions.target import Kind, Target
from bidora_jax.data.labels import TaskType

LONGEST = 256
"""Tokens; more only on request, since time grows with them."""
STEP = 32
"""Lengths are multiples of it."""
MANY = 100_000
"""Rows from which on a pass is long enough to save memory for it."""
LARGE = 2 * 2**30
"""Bytes of weights from which on quantising them frees memory that counts."""
TASKS: dict[Kind, TaskType] = {
    "binary": "classification", "multiclass": "classification", "multilabel": "multilabel", "regression": "regression",
    "ordinal": "regression",
}  # fmt: skip
STEPS = {  # by task and the competition's metric: what the best step has most or least of; else the task's own
    ("classification", "auc"): "auc", ("classification", "logloss"): "log_loss", ("classification", "f1"): "log_loss",
    ("classification", "macro_f1"): "f1_macro", ("classification", "mcc"): "matthews", ("classification", "qwk"): "log_loss",
    ("multilabel", "logloss"): "log_loss", ("multilabel", "auc"): "log_loss", ("multilabel", "macro_f1"): "log_loss",
    ("regression", "mae"): "mae", ("regression", "pearson"): "pearson",
}  # fmt: skip


class Wishes(NamedTuple):
    """Settings that the user names; empty or 0: by the recipe."""

    method: str = "lora"
    preset: str = ""
    batch_size: int = 0
    max_length: int = 0
    lr: float = 0.0
    epochs: float = 0.0


def settings(target: Target, rows: int, model: BaseModel, lengths: Lengths, wishes: Wishes) -> dict[str, Any]:
    """Settings of `train` by dotted name."""
    task = TASKS[target.kind]
    return {
        "task.type": task,
        "search.metric": STEPS.get((task, target.metric), "auto"),
        "adapter.method": wishes.method,
        "adapter.preset": wishes.preset or preset(target, rows, model),
        "data.max_length": wishes.max_length or max_length(model, lengths),
        "data.long": "truncate",
        "data.batch_size": wishes.batch_size or (16 if rows < 5000 else 32),
        "inner.learning_rate": wishes.lr or rate(model),
        "search.epochs": wishes.epochs or epochs(rows),
    }


def preset(target: Target, rows: int, model: BaseModel) -> str:
    if rows > MANY and model.size > LARGE:
        return "qlora_quality" if target.kind == "multiclass" else "qlora_memory"
    if target.kind in ("regression", "ordinal"):
        return "efficient"
    return "expressive" if target.kind == "multiclass" else "balanced"


def max_length(model: BaseModel, lengths: Lengths) -> int:
    """A multiple of 32 tokens within which most rows fit, within 256 and the model's positions."""
    return max(2, min(-(-lengths.tokens // STEP) * STEP, LONGEST, model.positions))


def rate(model: BaseModel) -> float:
    return 1e-3 if model.width < 512 else 5e-4 if model.width < 1024 else 2e-4


def epochs(rows: int) -> float:
    return 6.0 if rows < 2000 else 4.0 if rows < 10_000 else 3.0


def characters(max_length: int, lengths: Lengths, columns: Columns) -> int:
    """Characters of a template's input that fills the model's length; 0, any number, of a text alone or a pair, which the tokenizer
    cuts by tokens."""
    alone = len(columns.texts) <= 2 and not columns.categories and not columns.numbers
    return 0 if alone else max(int(max_length * lengths.characters), 1)
