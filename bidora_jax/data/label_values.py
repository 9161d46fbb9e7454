"""Cells of a label column -> what a task learns of a row.

    classification   a class as it is written; shares of classes {class: share}, or a column each (soft labels)
    multilabel       a list of classes, as JSON text in a table, or divided by commas, semicolons or bars; a column of 0 and 1 each;
                     or lists of 0 and 1 that are all of one length, whose places are the classes '0', '1', …
    regression       a number, a list of them, or a column each
    tokens           a tag for each word: a list, or as JSON text, or divided by blanks; of a sequence of letters, a letter each

A class is the text of its cell without the blanks around it. A number in JSON or Parquet is written as such, 1.0 as 1, and true and
false as JSON has them. An empty cell, null and NaN of a frame are missing.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from bidora_jax.data.labels import TaskType
from bidora_jax.data.sources.rows import kind
from bidora_jax.data.turns import BadRecord
from bidora_jax.errors import InputError

Target: TypeAlias = str | dict[str, float] | list[str] | list[float] | None
"""By type: a class or shares of classes; classes; numbers; tags. None where the row has no label."""
MOSTLY = 0.9
"""Labels are numbers if so many are; the others are then refused by name, and are no classes."""
SUM = 1e-2
"""What shares may be off from a sum of 1, as tables round them; they are divided by their sum."""
DIVIDERS = re.compile(r"[,;|]")


class LabelReading(NamedTuple):
    """How the cells of the label columns are read."""

    type: TaskType
    columns: tuple[str, ...]
    vectors: bool
    """A list of labels is 0 or 1 for each class."""
    reason: str
    """Why the type is this one, in words."""
    letters: bool = False
    """The tags of a text are its letters."""


def reading(
    rows: Sequence[dict[str, Any]], columns: tuple[str, ...], words: bool, task: str, *, letters: bool = False
) -> LabelReading:
    """The type of the rows' labels, which `task` names or leaves to their values ("auto"). InputError where no row has one."""
    cells = [[decoded(row.get(column)) for column in columns] for row in rows]
    present = [[cell for cell in one if not _missing(cell)] for one in cells]
    if not any(present):
        raise InputError(f"no row of train has a label in {' or '.join(map(repr, columns))}: there is nothing to learn")
    inferred, reason = ("tokens", "words have a tag each") if words else infer_type(present, len(columns))
    chosen: Any = inferred if task == "auto" else task
    if chosen != inferred or task != "auto":
        reason = f"task.type is {chosen}"
    vectors = chosen == "multilabel" and len(columns) == 1 and are_flags([cell for one in present for cell in one])
    return LabelReading(chosen, columns, vectors, reason, letters)


def are_flags(cells: Sequence[Any]) -> bool:
    """Whether cells are lists of 0 and 1, all of one length: a place for each class."""
    lists = [found for cell in cells if isinstance(found := decoded(cell), list)]
    alike = len({len(one) for one in lists}) == 1 and all(len(one) > 1 for one in lists)
    return alike and all(_is_flag(item) for one in lists for item in one)


def infer_type(cells: Sequence[Sequence[Any]], columns: int = 1) -> tuple[TaskType, str]:
    """The type of task that labels speak of, and why. `cells` are those of each row that are not missing."""
    flat = [cell for one in cells for cell in one]
    numbers = [number for cell in flat if (number := _number(cell)) is not None]
    if columns > 1:
        if len(numbers) < len(flat):
            raise InputError(
                f"the label has {columns} columns, and {_first(flat)} in one of them is no number: several columns are 0 or 1 for "
                "each class, shares of classes, or numbers to predict"
            )
        if all(number in (0, 1) for number in numbers):
            return "multilabel", f"{columns} columns hold 0 or 1"
        sums = [sum(map(float, one)) for one in cells if one]
        if min(numbers) >= 0 and all(abs(total - 1) <= SUM for total in sums):
            return "classification", f"{columns} columns hold shares that sum to 1"
        return "regression", f"{columns} columns hold numbers"
    if any(isinstance(cell, dict) for cell in flat):
        return "classification", "labels are shares of classes"
    if lists := [cell for cell in flat if isinstance(cell, list)]:
        items = [item for one in lists for item in one]
        if any(isinstance(item, float) and not item.is_integer() for item in items):
            return "regression", "labels are lists of numbers that are not whole"
        return "multilabel", "labels are lists"
    broken = next((number for number in numbers if not float(number).is_integer()), None)
    if broken is not None and len(numbers) >= MOSTLY * len(flat):
        return "regression", f"labels are numbers such as {broken:g}, which is not whole"
    return "classification", f"{len({written(cell) for cell in flat})} different labels"


def target(row: dict[str, Any], how: LabelReading) -> Target:
    """What the row says. BadRecord for a label that is none of its type; None where all of it is missing."""
    cells = {column: decoded(row.get(column)) for column in how.columns}
    missing = [column for column, cell in cells.items() if _missing(cell)]
    if len(missing) == len(cells):  # or there is no column of labels
        return None
    if missing:
        raise BadRecord(f"has no label in {', '.join(map(repr, missing))}")
    column, cell = next(iter(cells.items()))
    if how.type == "regression":
        values = cell if isinstance(cell, list) and len(cells) == 1 else cells.values()
        if not values:
            raise BadRecord(f"{column!r} is an empty array, and regression needs a number")
        return [_value(column, value) for column, value in zip(names_of(how, len(values)), values, strict=True)]
    if how.type == "tokens":
        return _tags(column, cell, how.letters)
    if how.type == "multilabel":
        return list(_classes(how, cells))
    if len(cells) > 1 or isinstance(cell, dict):
        return _shares(cells if len(cells) > 1 else cell)
    if isinstance(cell, list):
        raise BadRecord(f"{column!r} is an array; a text of several classes is of task.type multilabel")
    return written(cell)


def names_of(how: LabelReading, count: int) -> tuple[str, ...]:
    """What `count` numbers, or the classes of that many flags, are called."""
    if len(how.columns) > 1:
        return how.columns
    return how.columns if how.type == "regression" and count == 1 else tuple(map(str, range(count)))


def written(cell: Any) -> str:
    """The text of a class, as its file has it."""
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return json.dumps(cell, ensure_ascii=False)


def decoded(cell: Any) -> Any:
    """The list or the object that a text holds as JSON, or in Python's single quotes as pandas writes lists; else the cell."""
    if isinstance(cell, str) and cell.strip()[:1] in ("[", "{"):
        for text in (cell, cell.replace("'", '"')):
            try:
                found = json.loads(text)
            except (ValueError, RecursionError):
                continue
            return found if isinstance(found, list | dict) else cell
    return cell


def _missing(cell: Any) -> bool:
    return cell is None or cell == "" or (isinstance(cell, str) and not cell.strip())


def _number(cell: Any) -> float | None:
    """The number that a cell holds; None of anything else, and of true and false. Infinity where it is too large for a float."""
    if isinstance(cell, bool) or not isinstance(cell, int | float | str) or (isinstance(cell, str) and "_" in cell):
        return None
    try:
        return float(cell)
    except ValueError:
        return None
    except OverflowError:
        return math.inf


def _is_flag(item: Any) -> bool:
    return isinstance(item, bool) or (isinstance(item, int | float) and item in (0, 1))


def _value(column: str, cell: Any) -> float:
    number = _number(cell)
    if number is None:
        raise BadRecord(f"{column!r} is {_first([cell])}, and regression needs a number")
    if not math.isfinite(number):
        raise BadRecord(
            f"{column!r} is {number}, which nothing can be learned from; write a number, or take the row out"
        )
    return float(number)


def _classes(how: LabelReading, cells: dict[str, Any]) -> Iterator[str]:
    """The classes of a text, each once."""
    column, cell = next(iter(cells.items()))
    if len(cells) > 1 or how.vectors:
        flags = list(cells.values()) if len(cells) > 1 else cell
        if not isinstance(flags, list):
            raise BadRecord(f"{column!r} is {_first([cell])}; in other rows it is a list of 0 and 1")
        numbers = [float(flag) if isinstance(flag, bool) else _number(flag) for flag in flags]
        for name, flag, number in zip(names_of(how, len(flags)), flags, numbers, strict=True):
            if number not in (0, 1):
                raise BadRecord(f"{name!r} is {_first([flag])}; each class should be 0 or 1")
            if number:
                yield name
        return
    if isinstance(cell, dict):
        raise BadRecord(f"{column!r} is an object; expected a list of classes")
    items = cell if isinstance(cell, list) else DIVIDERS.split(cell) if isinstance(cell, str) else [cell]
    if wrong := [item for item in items if isinstance(item, list | dict) or _missing(item)]:
        raise BadRecord(f"{column!r} holds {_first(wrong)}; expected a list of classes")
    yield from dict.fromkeys(map(written, items))


def _shares(cells: dict[str, Any]) -> dict[str, float]:
    numbers = {name: _number(cell) for name, cell in cells.items()}
    wrong = [name for name, number in numbers.items() if number is None or not 0 <= number < math.inf]
    if wrong:
        raise BadRecord(f"the share of {wrong[0]!r} is {_first([cells[wrong[0]]])}; expected a number from 0 to 1")
    total = sum(number or 0.0 for number in numbers.values())
    if not abs(total - 1) <= SUM:
        raise BadRecord(f"the shares of its classes sum to {total:g}, and should to 1")
    return {name.strip(): (number or 0.0) / total for name, number in numbers.items()}


def _tags(column: str, cell: Any, letters: bool) -> list[str]:
    if isinstance(cell, str):
        cell = split_words(cell, letters)
    if not isinstance(cell, list):
        raise BadRecord(f"{column!r} is {_first([cell])}; expected a tag for each word")
    if wrong := [tag for tag in cell if isinstance(tag, list | dict) or _missing(tag)]:
        raise BadRecord(f"{column!r} holds {_first(wrong)}; expected a tag for each word")
    return [written(tag) for tag in cell]


def split_words(text: str, letters: bool) -> list[str]:
    """The words of a text, or its letters without blanks."""
    return list("".join(text.split())) if letters else text.split()


def _first(cells: Sequence[Any]) -> str:
    return repr(cells[0][:40]) if isinstance(cells[0], str) else kind(cells[0])
