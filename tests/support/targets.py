"""Targets of made-up competitions."""

from typing import Any

from bidora_jax.competitions.target import Kind, Target

NAMES: dict[str, tuple[str, ...]] = {
    "binary": ("no", "yes"),
    "multiclass": ("ant", "bee", "cat"),
    "multilabel": ("red", "green", "blue"),
    "regression": ("size", "age"),
    "ordinal": ("1", "2", "3", "4", "5"),
}


def target_of(kind: Kind, metric: str, names: tuple[str, ...] = (), **more: Any) -> Target:
    names = names or NAMES[kind]
    columns = names if kind in ("multilabel", "regression") else ("target",)
    written = {"multilabel": "probability", "regression": "values"}.get(kind, "label")
    values: dict[str, Any] = {"columns": columns, "written": written, "outputs": columns}
    return Target(kind=kind, names=names, metric=metric, **(values | more))
