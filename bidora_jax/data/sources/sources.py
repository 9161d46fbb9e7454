"""Sources -> rows: reads files, folders and data sets of the hub; what a record is, is decided later (data/records.py).

    data.jsonl, .ndjson      one object a line                       .json       an array, or the one list in an object
    data.csv, .tsv           with a header                           .parquet    any row groups
    data.conll, .bio, .iob   a word and its tag a line: {tokens, tags}
    data.fasta, .fa, .faa    {id, description, sequence}
    corpus.txt               a document to the end of the file, or to <|endoftext|>: {text}
    any text file .gz .bz2 .xz                                       folder/     of .txt files, each at least a document
    saved/  saved/@train     `save_to_disk` of datasets, and its split
    ORG/NAME:CONFIG@SPLIT    on the Hugging Face hub; CONFIG and SPLIT where it has several

A row that cannot be read becomes a fault with its place, so that one message lists all bad rows together. The network is used
only where no file has the source's name, and no folder the part of it before the slash.
"""

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bidora_jax.data.sources import json_files, sequence_files, tables, tagged_files, text_files
from bidora_jax.data.sources.rows import Fault, SourceRow
from bidora_jax.errors import InputError, did_you_mean, listing

Scan = Callable[[Path], Iterator[SourceRow | Fault]]
Found = dict[str, list[SourceRow | Fault]]  # by source
Columns = tuple[tuple[str, str], ...]  # (key of a record, name of the column that holds it)
READERS: dict[str, Scan] = {  # by ending; a file without one is taken for JSON lines
    "": json_files.json_lines,
    ".jsonl": json_files.json_lines,
    ".ndjson": json_files.json_lines,
    ".json": json_files.json_document,
    ".csv": lambda path: tables.delimited(path, TABLES[".csv"]),
    ".tsv": lambda path: tables.delimited(path, TABLES[".tsv"]),
    ".parquet": tables.parquet,
    ".txt": text_files.documents,
    **dict.fromkeys(tagged_files.ENDINGS, tagged_files.sentences),
    **dict.fromkeys(sequence_files.ENDINGS, sequence_files.proteins),
}
TABLES = {".csv": ",;\t|", ".tsv": "\t"}
"""Delimiters by ending."""
ON_THE_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@(.+))?")


class Expected(NamedTuple):
    """What a reader of labelled texts knows of its files."""

    tagged: bool = False
    """Tables and text files may be words with their tags (tagged_files.py)."""
    numbered: tuple[str, ...] = ()
    """Columns that are asked for by number, of tables without a header."""


PLAIN = Expected()


def read(source: str | os.PathLike[str]) -> list[SourceRow]:
    """The rows of a source. Raises InputError for one that is missing, and one that lists every row that can't be read."""
    found = list(scan(source))
    faults = [item for item in found if isinstance(item, Fault)]
    if faults:
        problems = [f"{place}: {why}" for place, why in faults]
        raise InputError(unusable([os.fspath(source)], problems, len(found), "an object"))
    return [item for item in found if isinstance(item, SourceRow)]


def scan(source: str | os.PathLike[str], expected: Expected = PLAIN) -> Iterator[SourceRow | Fault]:
    """Every row of a source, or the fault in its place, in order.

    Raises InputError for a source that is not there, or no part of which can be read.
    """
    name = os.fspath(source)
    path, (stem, _, split) = Path(name).expanduser(), name.rpartition("@")
    if path.is_dir():
        return _folder(path, "")
    if stem and not path.exists() and Path(stem).expanduser().is_dir():
        return _folder(Path(stem).expanduser(), split)
    on_the_hub = ON_THE_HUB.fullmatch(name)
    if (
        on_the_hub
        and not os.path.lexists(path)
        and not path.parent.exists()
        and _ending(path) not in READERS.keys() - {""}
    ):
        return tables.hub(*(part or "" for part in on_the_hub.groups()))
    return _file(path, expected)


def scan_each(given: str | os.PathLike[str] | Sequence[str], expected: Expected = PLAIN) -> Found:
    """The rows and faults of one source or of several, by name. Raises InputError for a source that is given twice."""
    names = [os.fspath(given)] if isinstance(given, str | os.PathLike) else list(given)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"{', '.join(twice)} is given twice; name a source once, and give it a weight of 2 (data.weights)"
        )
    return {name: [item for one in _matching(name) for item in scan(one, expected)] for name in names}


def _matching(name: str) -> list[str]:
    """The files that a pattern (data/*.jsonl) stands for, in order; the name itself where it is none, or is a file's own."""
    path = os.path.expanduser(name)
    if os.path.lexists(path) or os.path.isdir(path.rpartition("@")[0]):
        return [name]
    if glob.has_magic(name) and not ON_THE_HUB.fullmatch(name):
        if found := sorted(glob.glob(path, recursive=True)):
            return found
        raise InputError(f"no file matches {name}; check the pattern: a relative one starts from {Path.cwd()}")
    parts = name.split(",")
    if len(parts) > 1 and all(os.path.lexists(os.path.expanduser(part)) for part in parts):
        raise InputError(f"{name} is several sources in one: give them one after the other, {' '.join(parts)}")
    return [name]


def unusable(given: Iterable[str], problems: list[str], total: int, expected: str) -> str:
    """The message about sources with bad rows; each of `problems` begins with its place."""
    names = list(given)
    rows = "lines" if all(map(one_a_line, names)) else "rows"
    return (
        f"{len(problems)} of the {total} {rows} of {' and '.join(names)} cannot be used; each should be {expected}:\n"
        f"{listing(problems)}"
    )


def has_keys(source: str) -> bool:
    """Whether a file or folder is read as rows with keys, and not as text."""
    return _ending(Path(source)) in READERS.keys() - {"", ".txt"} or Path(source).expanduser().is_dir()


def one_a_line(source: str) -> bool:
    """Whether a source is read as JSON lines."""
    return READERS.get(_ending(Path(source))) is json_files.json_lines


def _ending(path: Path) -> str:
    """The ending that says what is in a file; that of its compression is taken off."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in text_files.PACKED else suffix


def _file(path: Path, expected: Expected) -> Iterator[SourceRow | Fault]:
    ending = _ending(path)
    if ending not in READERS:
        text_files.check_file(path)
        hint = {".xlsx": "; save the sheet as CSV", ".xls": "; save the sheet as CSV", ".zst": "; unpack it: zstd -d"}
        known = [name for name in READERS if name]
        raise InputError(
            f"{path}: data files end in {', '.join(known)}, text files also in {', '.join(text_files.PACKED)} after that, "
            f"found {ending}{hint.get(ending, did_you_mean(ending, known))}"
        )
    if expected.tagged and ending in (*TABLES, ".txt") and tagged_files.looks_tagged(path):
        return tagged_files.sentences(path)
    if expected.numbered and ending in TABLES:
        return tables.delimited(path, TABLES[ending], numbered=expected.numbered)
    return READERS[ending](path)


def _folder(folder: Path, split: str) -> Iterator[SourceRow | Fault]:
    """A saved data set, or every .txt file below."""
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return tables.saved(folder, split)
    if split:
        raise InputError(f"{folder} is no folder that datasets saved, so it has no split {split!r}; leave @{split} out")
    hidden = [path for path in folder.rglob("*") if any(p.startswith(".") for p in path.relative_to(folder).parts)]
    files = sorted({*folder.rglob("*")} - {*hidden})
    texts = [path for path in files if _ending(path) == ".txt"]
    if not texts:
        others = [str(path) for path in files if _ending(path) in READERS.keys() - {""}]
        instead = f"it has these data files; name those that are meant:\n{listing(others)}" if others else (
            "give a data file, a folder of .txt files, or one that save_to_disk of datasets wrote"
        )  # fmt: skip
        raise InputError(f"{folder} is a folder without .txt files; {instead}")
    return (item for path in texts for item in text_files.documents(path))


# Columns


def rename(found: dict[str, Found], columns: Columns) -> dict[str, Found]:
    """Sources, by use and by name, with each column of a (key, column) pair renamed to the record's key.

    A row that has the key already and not the column stays as it is, so that differing sources can be mixed. A row that has
    neither becomes a fault. Raises InputError for a column that is in no row.
    """
    if not columns:
        return found
    keys = [key for key, _ in columns]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise InputError(f"the column mapping gives {', '.join(map(repr, twice))} twice; give each key one column")
    rows = [row for part in found.values() for items in part.values() for row in items if isinstance(row, SourceRow)]
    there = {name for row in rows for name in row.value}
    lost = [f"{column!r} for {key!r}{did_you_mean(column, there)}" for key, column in columns if column not in there]
    if lost and there:
        names = ", ".join(map(repr, sorted(there)[:20]))
        raise InputError(f"the column mapping names columns that no row has; the rows have {names}:\n{listing(lost)}")
    return {
        use: {
            name: [_renamed(row, columns) if isinstance(row, SourceRow) else row for row in items]
            for name, items in part.items()
        }
        for use, part in found.items()
    }


def _renamed(row: SourceRow, columns: Columns) -> SourceRow | Fault:
    value: dict[str, Any] = row.value
    missing = [column for key, column in columns if column not in value and key not in value]
    if missing:
        return Fault(row.place, f"lacks {', '.join(map(repr, missing))} of the column mapping; it has "
                                f"{', '.join(map(repr, list(value)[:6])) or 'nothing'}")  # fmt: skip
    moved = {key: value[column] for key, column in columns if column in value}
    gone = {column for _, column in columns} | moved.keys()
    return SourceRow(row.place, {name: item for name, item in value.items() if name not in gone} | moved)
