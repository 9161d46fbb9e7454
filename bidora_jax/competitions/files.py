"""A competition's files: train, test and, if there is one, a sample submission. Every cell is a text as it stands in the file."""

from pathlib import Path
from typing import NamedTuple


class Table(NamedTuple):
    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    """Ids keep their zeros and "NA" is a word; only an empty cell is missing."""


class Files(NamedTuple):
    train: Table
    test: Table
    sample: Table | None
