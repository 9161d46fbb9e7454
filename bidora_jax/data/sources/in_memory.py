"""Rows that a program holds -> JSON lines, which hold what a file of those rows would have given.

    list of dictionaries       as they stand
    datasets.Dataset           as its save_to_disk folder is read
    pandas.DataFrame           as its Parquet file would be: a missing cell is null, and the index is left out

Numbers of numpy are plain numbers and its arrays lists. Dates and times become texts in ISO 8601, as a CSV file holds them. A
cell that is NaN is missing; within a list or an object JSON has no form for NaN. What JSON has no form for is refused, with its
row and column.
"""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, time
from typing import Any

import numpy as np

from bidora_jax.data.sources.rows import Fault, SourceRow, kind
from bidora_jax.data.sources.tables import as_written, data_set_rows
from bidora_jax.errors import InputError, listing

TAKEN = "a path, a list of dictionaries, a datasets.Dataset or a pandas frame"


class NoJson(Exception):
    """A value that JSON has no form for; the message names it."""


def paths(given: Any) -> str | tuple[str, ...] | None:
    """The path or the paths that `given` names; None where it holds rows itself."""
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    if isinstance(given, list | tuple) and given and all(isinstance(one, str | os.PathLike) for one in given):
        return tuple(map(os.fspath, given))
    return None


def json_lines(name: str, given: Any) -> bytes:
    """The rows as a JSONL file. InputError for what holds no rows, and one that lists every cell that has no form in JSON.

    `name` is what messages call the rows.
    """
    texts, wrong = [], []
    for number, row in enumerate(_rows(name, given), 1):
        if isinstance(row, Fault):
            wrong.append(f"{row.place}: {row.why}")
            continue
        cells = {}
        for column, value in row.items():
            try:
                cells[column] = _cell(column, value)
            except NoJson as problem:
                wrong.append(f"{name} row {number}, column {column!r}: {problem}")
        texts.append(_line(cells))
    if wrong:
        raise InputError(
            f"{name} cannot be kept as JSON:\n{listing(wrong)}\nchange those values, or leave the column out"
        )
    if not texts:
        raise InputError(f"{name} holds no row; give {TAKEN}")
    return b"".join(texts)


@contextmanager
def in_words_of_the_call(names: Mapping[str, str]) -> Iterator[None]:
    """An InputError of the block speaks of rows as the call does, {file: name}, and not of files that nobody has seen."""
    try:
        yield
    except InputError as error:
        message = str(error)
        for file, name in names.items():
            message = message.replace(f"{file}:", f"{name} row ").replace(file, name)
        raise InputError(message) from None


def _rows(name: str, given: Any) -> Iterator[dict[Any, Any] | Fault]:
    pandas, datasets = (sys.modules.get(module) for module in ("pandas", "datasets"))  # who has none, holds none of it
    if pandas is not None and isinstance(given, pandas.DataFrame):
        return _of_frame(name, given)
    if datasets is not None and isinstance(given, datasets.Dataset):
        return (as_row.value if isinstance(as_row, SourceRow) else as_row for as_row in data_set_rows(name, given))
    if datasets is not None and isinstance(given, datasets.DatasetDict):
        raise InputError(f"{name} has the splits {', '.join(map(str, given))}: give one of them, {name}=data[…]")
    if not isinstance(given, list | tuple):
        raise InputError(
            f"{name} must be {TAKEN}, found {_type(given)}; list(…) makes a list of what can be gone through"
        )
    if wrong := [f"{name} row {n}: {_type(row)}" for n, row in enumerate(given, 1) if not isinstance(row, dict)]:
        raise InputError(f"{name} must hold dictionaries, a row each; found others:\n{listing(wrong)}")
    return iter(given)


def _of_frame(name: str, frame: Any) -> Iterator[dict[Any, Any]]:
    columns = list(frame.columns)
    if twice := sorted({str(column) for column in columns if columns.count(column) > 1}):
        raise InputError(f"{name} has several columns named {', '.join(twice)}; give each its own name")
    arrays = [frame[column].array for column in columns]
    for at in range(len(frame)):
        yield {
            column: as_written(_plain(array[at], lenient=True)) for column, array in zip(columns, arrays, strict=True)
        }


def _cell(column: Any, value: Any) -> Any:
    if not isinstance(column, str):
        raise NoJson("the name of a column must be a text")
    value = value.item() if isinstance(value, np.generic) else value
    missing = type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value))
    return None if missing else _plain(value)


def _plain(value: Any, *, lenient: bool = False) -> Any:
    """The value in the kinds that JSON has. With `lenient` what it has none for stays as it is, for a later look."""
    if isinstance(value, np.datetime64):
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        if not lenient and (keys := [key for key in value if not isinstance(key, str)]):
            raise NoJson(f"the key {keys[0]!r} of an object must be a text")
        return {key: _plain(item, lenient=lenient) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, lenient=lenient) for item in value]
    if lenient or value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, date | time) and type(value).__name__ != "NaTType":
        return value.isoformat()
    raise NoJson(f"{kind(value)} has no form in JSON")


def _line(cells: dict[str, Any]) -> bytes:
    """A line, readable in any script; half a surrogate pair, which UTF-8 has no bytes for, stays escaped."""
    try:
        return (json.dumps(cells, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(cells) + "\n").encode()


def _type(value: Any) -> str:
    return f"a value of kind {type(value).__name__}"
