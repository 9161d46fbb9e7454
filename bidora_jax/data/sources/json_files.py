"""JSON lines and JSON documents -> rows, each with the line it begins in.

A line that cannot be read becomes a fault, and the next one is read. In a document nothing after a fault can be read, and the
fault says so. An object with the same key twice is a fault: json alone would drop one of the values.
"""

import json
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from bidora_jax import strict_json
from bidora_jax.data.sources.rows import Fault, SourceRow, kind
from bidora_jax.data.sources.text_files import (
    BOM,
    LONGEST_LINE,
    decoded,
    numbered_lines,
    opened,
    too_long,
    translated,
)
from bidora_jax.errors import InputError

RECORD_LISTS = {"messages", "conversations", "segments", "history", "tools"}  # lists that a single record has


# JSON lines


def json_lines(path: Path, longest: int = LONGEST_LINE) -> Iterator[SourceRow | Fault]:
    """One object a line; blank lines are skipped."""
    for number, line in numbered_lines(path, longest):
        if line is None:
            yield Fault(f"{path}:{number}", too_long(longest))
        elif stripped := line.strip():
            if number == 1 and stripped in (b"[", b"{"):
                what = "an array" if stripped == b"[" else "an object"
                raise InputError(
                    f"{path} is {what} over several lines, not one object a line; give it the ending .json"
                )
            yield _row(f"{path}:{number}", line)


def _row(place: str, line: bytes) -> SourceRow | Fault:
    text, wrong = decoded(line)
    if wrong:
        return Fault(place, wrong)
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        return Fault(place, f"not JSON ({error.msg} in column {error.colno})")
    except (ValueError, RecursionError) as error:  # a key twice, a number of thousands of digits, thousands of brackets
        return Fault(place, f"not JSON that can be read ({error})")
    return _object(place, value)


def _object(place: str, value: Any) -> SourceRow | Fault:
    if isinstance(value, dict):
        return SourceRow(place, value)
    hint = "; write the elements of the array one a line" if isinstance(value, list) else ""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        hint = " that holds an object itself: it was written as JSON twice"
    return Fault(place, f"expected an object, found {kind(value)}{hint}")


DECODER = json.JSONDecoder(object_pairs_hook=strict_json.unique)
"""NaN is read: it is how pandas writes a cell without a value."""


# JSON


def json_document(path: Path, longest: int = LONGEST_LINE) -> Iterator[SourceRow | Fault]:
    """The elements of an array of objects, or of the one list of objects in an object; JSON lines are taken as such."""
    opening = list(islice((line for _, line in numbered_lines(path, longest) if line is None or line.strip()), 2))
    if len(opening) == 2 and opening[0] and isinstance(_row("", opening[0]), SourceRow):
        yield from json_lines(path, longest)
        return
    text, fault = _whole(path)
    if fault:
        yield fault
        return
    seen, line = 0, 1
    try:
        for at, value in _elements(path, text):
            line, seen = line + text.count("\n", seen, at), at
            yield _object(f"{path}:{line}", value)
    except json.JSONDecodeError as error:
        rest = "; nothing after it was read"
        yield Fault(f"{path}:{error.lineno}", f"not JSON ({error.msg} in column {error.colno}){rest}")
    except (ValueError, RecursionError) as error:
        yield Fault(f"{path}:{line}", f"not JSON that can be read, here or below ({error})")


def _whole(path: Path) -> tuple[str, Fault | None]:
    with translated(path, lambda: ""), opened(path) as file:
        data = file.read().removeprefix(BOM)
    try:
        return data.decode("utf-8"), None
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        _, wrong = decoded(data[start : error.end])
        return "", Fault(f"{path}:{data.count(bytes([10]), 0, start) + 1}", wrong)


def _elements(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(start, row) of each row."""
    at = _next(text, 0)
    if not text[at : at + 1]:
        return
    if text[at] == "[":
        end = yield from _array(text, at)
    else:
        value, end = DECODER.raw_decode(text, at)
        lists = _row_lists(value)
        if len(lists) > 1:
            names = " and ".join(map(repr, lists))
            raise InputError(
                f"{path} holds {len(lists)} lists of objects, {names}; write the one that is meant to a file"
            )
        if lists:
            yield from _array(text, _member(text, at, lists[0]))
        else:
            yield at, value
    if _next(text, end) < len(text):
        raise json.JSONDecodeError("Extra data", text, _next(text, end))


def _row_lists(value: Any) -> list[str]:
    """The keys of an object whose values are lists of objects; the lists that a single record has are left out."""
    if not isinstance(value, dict):
        return []
    lists = {key: item for key, item in value.items() if isinstance(item, list) and key not in RECORD_LISTS}
    return [key for key, item in lists.items() if item and all(isinstance(row, dict) for row in item)]


def _array(text: str, at: int) -> Generator[tuple[int, Any], None, int]:
    """(start, element) of each element of the array that opens at `at`; returns where the array ends."""
    at = _next(text, at + 1)
    while text[at : at + 1] != "]":
        value, end = DECODER.raw_decode(text, at)
        yield at, value
        at = _next(text, end)
        if text[at : at + 1] == ",":
            at = _next(text, at + 1)
            if text[at : at + 1] == "]":
                raise json.JSONDecodeError("Comma before the end of the array", text, at)
        elif text[at : at + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' or the end of the array", text, at)
    return at + 1


def _member(text: str, at: int, name: str) -> int:
    """Where the value of the key `name` starts in the object, known to be whole, that opens at `at`."""
    while True:
        key, end = DECODER.raw_decode(text, _next(text, at + 1))
        start = _next(text, _next(text, end) + 1)
        if key == name:
            return start
        at = _next(text, DECODER.raw_decode(text, start)[1])


def _next(text: str, at: int) -> int:
    """The first index from `at` on that holds no JSON white space."""
    while at < len(text) and text[at] in " \t\n\r":
        at += 1
    return at
