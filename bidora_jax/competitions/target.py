"""What is to be predicted, and how submission.csv writes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Kind = Literal["binary", "multiclass", "multilabel", "regression", "ordinal"]
Written = Literal["label", "probability", "probabilities", "values"]


@dataclass(frozen=True)
class Target:
    """What train says of a row, and a submission has to say of each row of test."""

    kind: Kind
    columns: tuple[str, ...]
    """Of train: one, or several (multilabel, several regressions, classes of which each row has a 1 in its own column)."""
    names: tuple[str, ...]
    """Classes as train writes them (binary: the second is the positive one), labels, names of the values, or an ordinal target's
    levels ascending, as written."""
    written: Written
    """What the submission holds: label; probability of the positive class, or of each label of multilabel; one column a class;
    numbers."""
    metric: str
    """A name of measures.py."""
    outputs: tuple[str, ...]
    """The submission's columns beside the id, in order."""
    log: bool = False
    """A regression that is trained on log1p of its values, for rmsle."""
    variants: Mapping[str, str] = field(default_factory=dict)
    """Other spellings of a class in train (" yes", "YES") -> the one in `names`."""


def named(target: Target, cell: str) -> str:
    """The class or level that a cell of train means."""
    return target.variants.get(cell, cell)


def truth(target: Target, rows: Sequence[Mapping[str, str]]) -> np.ndarray:
    """What the rows say: binary and multiclass class numbers (N,) int; multilabel (N, C) of 0 and 1, int; regression (N, K) and
    ordinal (N,), its levels, float64. The rows must have a target: plan.labelled leaves out those without."""
    if target.kind in ("binary", "multiclass") and len(target.columns) == 1:
        number = {name: at for at, name in enumerate(target.names)}
        return np.array([number[named(target, row[target.columns[0]])] for row in rows], np.int64)
    if target.kind == "ordinal":
        return np.array([float(row[target.columns[0]]) for row in rows], np.float64)
    values = [[float(row[column]) for column in target.columns] for row in rows]
    found = np.array(values, np.float64).reshape(len(rows), len(target.columns))
    if target.kind in ("binary", "multiclass"):
        return found.argmax(1)
    return found.astype(np.int64) if target.kind == "multilabel" else found
