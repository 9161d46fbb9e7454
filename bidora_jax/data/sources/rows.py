"""A row of a source: one JSON object, and its place (`data.jsonl:17`), which every message about it names."""

import json
from typing import Any, NamedTuple


class SourceRow(NamedTuple):
    place: str
    value: dict[str, Any]


class Fault(NamedTuple):
    """A row that can't be read, and why."""

    place: str
    why: str


def kind(value: Any) -> str:
    """What a value is, in the words of JSON; a table's own kinds (dates, bytes) by their names in Python."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"the number {value}"
    named = {list: "an array", dict: "an object", str: "a text"}
    return named.get(type(value), f"a value of kind {type(value).__name__}")
