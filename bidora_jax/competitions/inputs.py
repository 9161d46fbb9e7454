"""A competition's rows as a run takes them: {text, label}, or {text_a, text_b, label} of a pair.

binary, multiclass   label: the class as Target.names has it        multilabel   a list of the labels that are 1
regression           a list of numbers, or of their log1p           ordinal      a list of the level as a number
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bidora_jax.competitions.plan import Plan
from bidora_jax.competitions.target import Target, truth
from bidora_jax.competitions.texts import text_of

GROUP = "group"


def texts(plan: Plan, rows: Sequence[Mapping[str, str]]) -> list[tuple[str, ...]]:
    """The input of each row: a text or a pair."""
    return [text_of(row, plan.columns, plan.longest) for row in rows]


def unlabelled(inputs: Sequence[tuple[str, ...]]) -> list[dict[str, Any]]:
    """Rows to predict for."""
    return [dict(zip(("text",) if len(one) == 1 else ("text_a", "text_b"), one, strict=True)) for one in inputs]


def labelled(plan: Plan, rows: Sequence[Mapping[str, str]], inputs: Sequence[tuple[str, ...]]) -> list[dict[str, Any]]:
    """Rows to train on, with the group where there is one."""
    groups = [{GROUP: row[plan.columns.group]} if plan.columns.group else {} for row in rows]
    pairs = zip(unlabelled(inputs), labels(plan.target, rows), groups, strict=True)
    return [{**text, "label": label, **group} for text, label, group in pairs]


def labels(target: Target, rows: Sequence[Mapping[str, str]]) -> list[Any]:
    values = truth(target, rows)
    if target.kind in ("binary", "multiclass"):
        return [target.names[number] for number in values.tolist()]
    if target.kind == "multilabel":
        return [[target.names[label] for label in np.flatnonzero(row)] for row in values]
    columns = values.reshape(len(rows), -1)
    return (np.log1p(columns) if target.log else columns).tolist()


def outputs(target: Target) -> tuple[str, ...]:
    """Names of a head's outputs (task.labels)."""
    return target.columns if target.kind in ("regression", "ordinal") else target.names
