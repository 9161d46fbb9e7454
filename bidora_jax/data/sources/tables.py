"""Tables -> rows: CSV and TSV, Parquet, a folder that `datasets` saved, a data set on the Hugging Face hub.

The place of a CSV row is the line it begins in; that of other rows is their number from 1. No code of a data set is ever run,
as `datasets` no longer can. Files are fetched from the hub only, and only for a data set that is named by its place there.
"""

import csv
import re
from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from bidora_jax.data.sources.rows import Fault, SourceRow
from bidora_jax.data.sources.text_files import (
    LONGEST_LINE,
    check_file,
    decoded,
    numbered_lines,
    too_long,
)
from bidora_jax.errors import InputError, did_you_mean

QUOTED = re.compile(r'"(?:[^"]|"")*"')
BATCH = 1000  # rows turned into Python objects at a time
CSV_FAULTS = {  # by what the csv module says
    "unexpected end of data": "a quote is opened in this row and never closed; nothing after it was read",
    "expected after": "text stands after a closing quote; write a quote within quotes twice",
    "new-line character": "a carriage return outside of quotes; let lines end in newlines",
    "field larger": "a field is larger than a record can be; is a quote never closed?",
}


# CSV


def delimited(
    path: Path, delimiters: str, longest: int = LONGEST_LINE, numbered: Collection[str] = ()
) -> Iterator[SourceRow | Fault]:
    """A table with a header. All values are texts.

    The delimiter is the one of `delimiters` that splits the header into most columns. Quotes are those of RFC 4180, doubled within
    quotes; in a file divided by tabs they are plain characters where they can't be that (_without_quoting), as in GLUE's files.
    `numbered` are columns that are asked for by number: where the first row does not name them, it is no header, and the columns
    are named 1, 2, …

    Raises InputError for a wrong header; a wrong row becomes a fault.
    """
    spoilt: dict[int, str] = {}
    lines = _text_lines(path, longest, spoilt)
    opening: list[str] = []
    for line in lines:
        opening.append(line)
        if line.strip():
            break
    unquoted = re.sub(r'"[^"]*"', "", opening[-1]) if opening else ""
    delimiter = max(delimiters, key=unquoted.count)
    if delimiter == "\t" and _without_quoting(path, longest):
        rows = _plain_rows(chain(opening, lines), spoilt)
    else:
        csv.field_size_limit(longest)
        rows = _csv_rows(csv.reader(chain(opening, lines), delimiter=delimiter, strict=True), spoilt)
    line, header, why = next(((line, fields, why) for line, fields, why in rows if fields or why), (1, [], ""))
    if numbered and header and not why and not set(numbered) <= {name.strip() for name in header}:
        rows = chain([(line, header, "")], rows)
        header = [str(number) for number in range(1, len(header) + 1)]
    header = [name.strip() for name in header]
    if problem := why or _header_problem(header):
        raise InputError(f"{path}: the header cannot be used: {problem}")
    for line, fields, why in rows:
        place = f"{path}:{line}"
        if not why and fields and len(fields) != len(header):
            why = (f"has {len(fields)} fields, and the header {len(header)}; put a text that holds {delimiter!r} or a "
                   "line break between quotes")  # fmt: skip
        if why:
            yield Fault(place, why)
        elif fields:
            yield SourceRow(place, dict(zip(header, fields, strict=True)))


def _without_quoting(path: Path, longest: int) -> bool:
    """Whether quotes are plain characters: a field opens with one that does not close it, and all lines have as many fields as the
    first, so that no quoted line break is there to be read."""
    count, lone = 0, False
    for _, line in numbered_lines(path, longest):
        if line is None or not line.strip():
            continue
        fields = line.decode("utf-8", "replace").rstrip("\r\n").split("\t")
        count = count or len(fields)
        if len(fields) != count:
            return False
        lone = lone or any(field.startswith('"') and not QUOTED.fullmatch(field) for field in fields)
    return lone and count > 1


def _plain_rows(lines: Iterator[str], spoilt: dict[int, str]) -> Iterator[tuple[int, list[str], str]]:
    """(line, fields, what is wrong) of each line that tabs divide; a blank line has no fields."""
    for number, line in enumerate(lines, 1):
        fields = line.rstrip("\r\n").split("\t") if line.strip() else []
        yield (number, [], spoilt[number]) if number in spoilt else (number, fields, "")


def _text_lines(path: Path, longest: int, spoilt: dict[int, str]) -> Iterator[str]:
    """Lines as text. A line that can't be read is noted in `spoilt` under its number, and the csv module reads on."""
    for number, line in numbered_lines(path, longest):
        text, wrong = ("", too_long(longest)) if line is None else decoded(line)
        if "\0" in text:
            wrong = "holds a NUL byte; remove it"
        if wrong:
            spoilt[number] = wrong
        yield text.replace("\0", "") or "\n"


def _csv_rows(reader: Any, spoilt: dict[int, str]) -> Iterator[tuple[int, list[str], str]]:
    """(line, fields, what is wrong) of each row; a blank line has no fields."""
    while True:
        start, fields, why = reader.line_num + 1, [], ""
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            why = next((ours for theirs, ours in CSV_FAULTS.items() if theirs in str(error)), str(error))
        bad = next((number for number in range(start, reader.line_num + 1) if number in spoilt), 0)
        yield (bad, [], spoilt[bad]) if bad else (start, fields, why)


def _header_problem(header: list[str]) -> str:
    places: dict[str, list[str]] = {}
    for number, name in enumerate(header, 1):
        places.setdefault(name, []).append(str(number))
    twice = [f"columns {' and '.join(at)} are both named {name!r}" if name else f"columns {' and '.join(at)} have no name"
             for name, at in places.items() if len(at) > 1]  # fmt: skip
    return "; ".join(twice) + "; give each its own name, or delete it" if twice else ""


# Parquet


def parquet(path: Path) -> Iterator[SourceRow | Fault]:
    """The rows of a Parquet file, a batch at a time. Raises InputError for a file that is missing or damaged."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    check_file(path)
    count = 0
    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            if problem := _header_problem(names):
                raise InputError(f"{path}: its columns cannot be used: {problem}")
            for batch in file.iter_batches(BATCH):
                yield from _batch_rows(str(path), batch, count)
                count += batch.num_rows
    except (pa.ArrowException, OSError) as error:  # ArrowException: not Parquet, or cut short
        raise InputError(f"cannot read {path} as Parquet after row {count}: {_brief(error)}; make it anew") from None


def _batch_rows(name: str, batch: Any, before: int) -> Iterator[SourceRow | Fault]:
    """Rows of an Arrow table or batch; `before` of them came earlier."""
    try:
        values = batch.to_pylist()
    except UnicodeDecodeError:  # one text of the batch: row by row
        values = None
    for at in range(batch.num_rows):
        place = f"{name} row {before + at + 1}"
        try:
            row = values[at] if values is not None else batch.slice(at, 1).to_pylist()[0]
            yield SourceRow(place, {name: as_written(value) for name, value in row.items()})
        except UnicodeDecodeError as error:
            yield Fault(place, f"holds a text that is not UTF-8 (byte 0x{error.object[error.start]:02x})")


def as_written(value: Any) -> Any:
    """The value without the nulls that Arrow fills in: in a column of objects every object gets all keys of the others."""
    if isinstance(value, dict):
        return {key: as_written(item) for key, item in value.items() if item is not None}
    return [as_written(item) for item in value] if isinstance(value, list) else value


# Data sets


def saved(folder: Path, split: str) -> Iterator[SourceRow | Fault]:
    """The rows of a folder that `save_to_disk` of `datasets` wrote; `split` names one of its splits where it has several."""
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # Arrow's and json's errors, missing files
        raise InputError(f"cannot read {folder} as a saved data set: {_brief(error)}; save it anew") from None
    if isinstance(found, datasets.DatasetDict):
        yield from data_set_rows(
            f"{folder}@{split}" if split else str(folder), found[_chosen(folder, list(map(str, found)), split)]
        )
    elif split:
        raise InputError(f"{folder} is one split without a name, and {folder}@{split} asks for one; leave @{split} out")
    else:
        yield from data_set_rows(str(folder), found)


def hub(name: str, config: str, split: str) -> Iterator[SourceRow | Fault]:
    """The rows of a data set on the hub, through the cache of `datasets`. Without a split, its only one."""
    import datasets

    full = f"{name}:{config}" if config else name
    try:
        # Loading all splits fetches no more files than loading one, and works from the cache; `datasets` reads train[:100] itself.
        found = datasets.load_dataset(name, config or None, split=split if "[" in split else None)
        if isinstance(found, datasets.DatasetDict):
            split = _chosen(full, list(map(str, found)), split)
            found = found[split]
    except InputError:
        raise
    except Exception as error:  # of the network, of the hub, of a name, a configuration or a split that is not there
        raise InputError(
            f"no data file or folder at {full}, and as a data set on the hub it cannot be read: {_brief(error)}; "
            "check the path, or its ORG/NAME:CONFIGURATION@SPLIT; without a network, save it with save_to_disk where "
            "there is one, and name the folder"
        ) from None
    yield from data_set_rows(f"{full}@{split}", found)


def _chosen(name: Any, splits: list[str], split: str) -> str:
    """The split that is meant. Raises InputError when there is no such split, and when none is named and there are several."""
    if split in splits or (not split and len(splits) == 1):
        return split or splits[0]
    asked = f"has no split {split!r}{did_you_mean(split, splits)}" if split else "has several splits"
    raise InputError(f"{name} {asked}; name one of {', '.join(f'{name}@{one}' for one in splits)}")


def data_set_rows(name: str, found: Any) -> Iterator[SourceRow | Fault]:
    count = 0
    for batch in found.with_format("arrow").iter(BATCH):
        yield from _batch_rows(name, batch, count)
        count += batch.num_rows


def _brief(error: Exception) -> str:
    """An error of another package in one line, without its full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rstrip(".") if len(text) <= 300 else text[:299] + "…"
