"""What the files of a run's history must hold before anything reads them: a kill, a disk or a hand may have changed them.

A shape is a type, [shape] of a list, Maybe(shape) of what may be null or missing, or {name: shape} of an object, where `...` stands
for all other names; without it these are free.
"""

from typing import Any, NamedTuple


class Maybe(NamedTuple):
    """Null, missing, or of this shape."""

    shape: Any


Number = float
SCORES = {"loss": Number, ...: Maybe(Number)}
PLACE = {"phase": str, "step": int}
LINE = {**PLACE, ...: Maybe(Number)}
CHANGE = {**PLACE, "magnitude": Maybe({...: [Maybe(Number)]}), "direction": Maybe({...: [Maybe(Number)]})}
SAMPLE = {**PLACE, "samples": [{"prompt": str, "answer": str, "expected": Maybe(str)}]}
FACTS = {
    "started": Maybe(str), "device": Maybe(str), "versions": Maybe({...: str}),
    "parameters": Maybe({"frozen": Number, ...: Number}), "records": Maybe({...: Number}), "peak_memory": Maybe({...: Number}),
    "validation_before": Maybe(SCORES), "test": Maybe({"before": SCORES, "after": SCORES}),
    "criterion": Maybe({"name": str, "higher_is_better": bool}), "result_loss": Maybe(Number), "result_accuracy": Maybe(Number),
    "last_step_kept": Maybe(bool), "exact_matches": Maybe({"before": Number, "after": Number, "of": Number}),
}  # fmt: skip
BY_LABEL = {"label": str, "precision": Number, "recall": Number, "f1": Number, "support": Number}
OUTCOMES = {
    ...: {
        "type": str, "names": [str], "metrics": {...: Maybe(Number)}, "notes": [str], "labels": Maybe([BY_LABEL]),
        "confusion": Maybe([[Number]]), "reliability": Maybe([{"probability": Number, "right": Number, "rows": Number}]),
        "points": Maybe([[[Number]]]),
    }
}  # fmt: skip
WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def fault(value: Any, shape: Any, name: str = "") -> str | None:
    """Where and how the value has not this shape: "test.before.loss is a list, expected a number"; None where it has."""
    if isinstance(shape, Maybe):
        return None if value is None else fault(value, shape.shape, name)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _differs(value, name, "a list")
        found = (fault(one, shape[0], f"{name}[{place}]") for place, one in enumerate(value))
        return next(filter(None, found), None)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return _differs(value, name, "an object")
        named = {one for one in shape if one is not ...}
        rest = {one: shape[...] for one in value if one not in named} if ... in shape else {}
        found = (
            fault(value.get(one), inner, _joined(name, one))
            for one, inner in {**shape, **rest}.items()
            if one is not ...
        )
        return next(filter(None, found), None)
    fits = isinstance(value, int | float if shape is float else shape) and (
        shape is bool or not isinstance(value, bool)
    )
    return None if fits else _differs(value, name, WORDS[shape])


def _joined(name: str, inner: str) -> str:
    return f"{name}.{inner}" if name else inner


def _differs(value: Any, name: str, expected: str) -> str:
    found = "nothing" if value is None else WORDS.get(type(value)) or {list: "a list", dict: "an object"}[type(value)]
    return f"{name or 'it'} is {found}, expected {expected}"
