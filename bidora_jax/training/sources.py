"""Files -> rows: where the data comes from, before anybody asks what a record is.

A row is one JSON object and its place, `data.jsonl:17`, which every later message about it names. What cannot be read is
handed on as a fault at its place, so that one message lists all of a file's bad rows together.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bidora_jax.errors import InputError, listing


class Row(NamedTuple):
    place: str
    value: dict[str, Any]


class Fault(NamedTuple):
    """What stands where a row should."""

    place: str
    why: str


def read(source: str | os.PathLike[str]) -> list[Row]:
    """The rows of a source. Raises InputError for one that is missing, and one that lists every row that can't be read."""
    found = list(scan(source))
    faults = [item for item in found if isinstance(item, Fault)]
    if faults:
        raise InputError(unusable(source, [f"{place}: {why}" for place, why in faults], len(found), "a JSON object"))
    return [item for item in found if isinstance(item, Row)]


def scan(source: str | os.PathLike[str]) -> Iterator[Row | Fault]:
    """Every row of a JSON lines file or the fault in its place, in order; blank lines are skipped.

    Raises InputError for a file that is missing or cannot be read.
    """
    for number, line in _numbered_lines(Path(source)):
        place = f"{source}:{number}"
        value = _json(line)
        yield Fault(place, value) if isinstance(value, str) else Row(place, value)


def unusable(source: str | os.PathLike[str], problems: list[str], total: int, expected: str) -> str:
    """The message about a source with bad rows; `problems` open with their places."""
    return (
        f"{len(problems)} of the {total} lines of {source} cannot be used; each should be {expected}:\n"
        f"{listing(problems)}"
    )


def kind(value: Any) -> str:
    """What a value is, in the words of JSON."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"the number {value}"
    return {list: "an array", dict: "an object", str: "a text"}.get(type(value), f"a {type(value).__name__}")


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if not path.is_file():
        what = " (it is a folder)" if path.is_dir() else ""
        raise InputError(f"no data file at {path}{what}; check the path: a relative one starts from {Path.cwd()}")
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _json(line: bytes) -> dict[str, Any] | str:
    """The object that a line holds, or what is wrong with it."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"not UTF-8 (byte 0x{line[error.start]:02x} in column {error.start + 1}); save it as UTF-8"
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} in column {error.colno})"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return f"not JSON that can be read ({error})"
    if not isinstance(value, dict):
        hint = "; write the elements of the array one a line" if isinstance(value, list) else ""
        return f"expected an object, found {kind(value)}{hint}"
    return value
