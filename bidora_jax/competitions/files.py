"""A competition's files: train, test and, if there is one, a sample submission. Every cell is a text as it stands in the file.

Ids keep their zeros and "NA" is a word; only an empty cell is missing. Names are found whatever their letters' case:

    train.csv, test.csv       .tsv too
    sample_submission.csv     any one *sample*submission*; else the one *submission* that no run wrote: gender_submission.csv
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from bidora_jax.data.sources import tables
from bidora_jax.data.sources.rows import Fault
from bidora_jax.data.sources.sources import TABLES, unusable
from bidora_jax.errors import InputError, listing, program

MOST_COLUMNS = 1000
"""More are no table of texts, and a template of so many cells is cut long before its end."""
OWN = ("submission", "submission_encoder")
"""What a run writes, maybe into the same folder."""
OTHER_DELIMITERS = ",;\t|~^:"
EXPECTED = "expected train.csv and test.csv in it (.tsv too), and sample_submission.csv if there is one"


class Table(NamedTuple):
    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, str]]

    def cells(self, column: str) -> list[str]:
        """A column's cells that are not empty, without the blanks around them."""
        return [cell for row in self.rows if (cell := row[column].strip())]


class Files(NamedTuple):
    train: Table
    test: Table
    sample: Table | None


def read(folder: Path | str) -> Files:
    """The files of a competition. InputError for what is missing or can't be read; nothing is written."""
    folder = Path(folder).expanduser()
    there = _tables(folder)
    train, test = (table(_one(folder, there, name)) for name in ("train", "test"))
    for one, other in ((train, test), (test, train)):
        if len(one.columns) == 1 and not (one is test and one.columns[0] in other.columns):
            raise InputError(_undivided(one))
    sample = _sample(folder, there)
    return Files(train, test, None if sample is None else table(sample))


def table(path: Path) -> Table:
    """A file's header and rows. InputError for a file without rows, with a row that can't be read, or with too many columns."""
    rows: list[dict[str, str]] = []
    faults: list[str] = []
    for item in tables.delimited(path, TABLES[path.suffix.lower()]):
        if isinstance(item, Fault):
            faults.append(f"{item.place}: {item.why}")
            continue
        rows.append(item.value)
        if len(item.value) > MOST_COLUMNS:
            raise InputError(
                f"{path} has {len(item.value):,} columns, expected at most {MOST_COLUMNS:,}: {program('kaggle')} is for texts; "
                "leave out the columns that are none, or use gradient boosting, which suits such tables"
            )
    if faults:
        raise InputError(unusable([str(path)], faults, len(rows) + len(faults), "as long as the header"))
    if not rows:
        raise InputError(f"{path} has no row below its header; expected rows; get the file anew")
    return Table(path, tuple(rows[0]), rows)


def _tables(folder: Path) -> list[Path]:
    """The folder's .csv and .tsv files."""
    if folder.is_file():
        what = "a zip file; unpack it" if folder.suffix.lower() == ".zip" else "a file; name the folder that it is in"
        raise InputError(f"{folder} is {what}, and call {program('kaggle')} with the folder: {EXPECTED}")
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: {EXPECTED}; a relative path starts from {Path.cwd()}")
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in TABLES and path.is_file())


def _one(folder: Path, there: list[Path], name: str) -> Path:
    """The table of this name. InputError that says what is there instead."""
    found = [path for path in there if path.stem.casefold() == name]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(path.name for path in found)
        raise InputError(f"{folder} has {names}, expected one file of train and one of test; move the others away")
    others = sorted(path.name for path in folder.iterdir())
    zips = [other for other in others if other.lower().endswith(".zip")]
    remedy = f"unpack it first: unzip {folder / zips[0]} -d {folder}" if zips else "get or rename the file"
    if not others:
        raise InputError(f"{folder} is empty: {EXPECTED}; {remedy}")
    raise InputError(f"{folder} has no {name}.csv: {EXPECTED}; found\n{listing(others)}\n{remedy}")


def _sample(folder: Path, there: list[Path]) -> Path | None:
    """The sample submission, or None. InputError where several could be it."""
    named = [path for path in there if "submission" in path.stem.casefold() and path.stem.casefold() not in OWN]
    found = [path for path in named if "sample" in path.stem.casefold()] or named
    found = [path for path in found if path.name == "sample_submission.csv"] or found
    if len(found) > 1:
        raise InputError(
            f"{folder} has several sample submissions: {', '.join(path.name for path in found)}; expected one; leave the right one"
        )
    return found[0] if found else None


def _undivided(one: Table) -> str:
    """What is said of a file whose header is one column."""
    (header,) = one.columns
    suffix = one.path.suffix.lower()
    known = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
    expected = ", ".join(known[mark] for mark in TABLES[suffix])
    counts = Counter(mark for mark in header if mark in OTHER_DELIMITERS)
    mark = counts.most_common(1)[0][0] if counts else ""
    remedy = f"it holds {mark!r}: write the file anew with commas between the columns" if mark else (
        "write the file anew with commas between the columns, and a header"
    )  # fmt: skip
    if mark in TABLES[".csv"] and suffix == ".tsv":
        remedy = f"{known[mark]} divide it: name the file {one.path.stem}.csv"
    return f"{one.path} has one column, {header!r}, expected several, divided by {expected}; {remedy}"
