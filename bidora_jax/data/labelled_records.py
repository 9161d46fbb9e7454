"""Labelled rows -> records: the text or the pair of texts, or the words, and the label as the row says it.

    {text, label}    {text_a, text_b, label}    {tokens, tags}    {sequence, labels}    any columns by name (data/label_columns.py)

A record keeps what a model reads; every other column is counted as unused, which a run reports. It keeps the row too: predictions
are written beside the columns of the file. Of rows that are to be labelled the label may be missing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bidora_jax.data.label_columns import Columns, choose
from bidora_jax.data.label_values import LabelReading, Target, decoded, reading, split_words, target
from bidora_jax.data.records import Record, checksum
from bidora_jax.data.settings import DataConfig
from bidora_jax.data.sources import sources
from bidora_jax.data.sources.rows import Fault, SourceRow
from bidora_jax.data.sources.sources import Found
from bidora_jax.data.turns import BadRecord, check_text
from bidora_jax.errors import InputError


class LabelledRecord(Record):
    """The keys 'text', and 'text_pair' of a pair, or 'words'."""

    def __init__(self, values: dict[str, Any], place: str, unused: dict[str, int], row: dict[str, Any]) -> None:
        super().__init__(values, place, unused)
        self.row = row
        """All columns, as they are in the file."""
        self.target: Target = None
        """The label; None where it is missing."""
        self.group: str | None = None


class Rows(NamedTuple):
    """How the rows of a run, or of a file for its model, are read."""

    columns: Columns
    labels: LabelReading

    @property
    def expected(self) -> str:
        """A row in words."""
        if not self.columns.texts:
            return "a labelled text"
        texts = " and ".join(map(repr, self.columns.texts))
        what = "words" if self.labels.type == "tokens" else "a text"
        return f"a row with {what} in {texts}, and a label in {' and '.join(map(repr, self.labels.columns))}"


def expected_files(data: DataConfig, task: str) -> sources.Expected:
    """What a reader of labelled files should know of them before it opens one."""
    asked = [name for name in (*data.text_columns, *data.label_columns, data.group_column) if name]
    numbered = tuple(asked) if asked and all(name.isdecimal() for name in asked) else ()
    return sources.Expected(tagged=task in ("auto", "tokens"), numbered=numbered)


def rows_of(found: Found) -> list[dict[str, Any]]:
    """The rows that could be read."""
    return [row.value for part in found.values() for row in part if isinstance(row, SourceRow)]


def how_to_read(found: Found, data: DataConfig, task: str) -> Rows:
    """The columns, and the type of the labels, as the rows of train say. Raises InputError where that can't be told."""
    rows = rows_of(found)
    if not rows and not any(found.values()):
        raise InputError(
            f"{' and '.join(found)} holds no record; expected labelled texts, such as rows {{text, label}}"
        )
    if not rows:
        read(found, Rows(Columns((), (), False), LabelReading("classification", (), False, "")), data)
    columns = choose(rows, data, task)
    return Rows(columns, reading(rows, columns.labels, columns.words, task, letters=columns.letters))


def read(found: Found, how: Rows, data: DataConfig, *, labelled: bool = True) -> dict[str, list[LabelledRecord]]:
    """The record of every row, by source. Raises InputError that lists all rows which can't be used with their places."""
    records: dict[str, list[LabelledRecord]] = {source: [] for source in found}
    problems = []
    for source, rows in found.items():
        for row in rows:
            try:
                records[source].append(_record(row, how, data.group_column, labelled))
            except BadRecord as problem:
                problems.append(f"{row.place}: {problem}")
    if problems:
        raise InputError(sources.unusable(found, problems, sum(map(len, found.values())), how.expected))
    return records


def of_rows(rows: Sequence[Mapping[str, Any]], how: Rows) -> list[LabelledRecord]:
    """The records of rows that a program holds, to be labelled; their place is `row N`."""
    found: Found = {"rows": [SourceRow(f"row {number}", dict(row)) for number, row in enumerate(rows, 1)]}
    return read(found, how, DataConfig(), labelled=False)["rows"]


def _record(row: SourceRow | Fault, how: Rows, group: str, labelled: bool) -> LabelledRecord:
    if isinstance(row, Fault):
        raise BadRecord(row.why)
    columns, cells = how.columns, row.value
    lost = [name for name in columns.texts if cells.get(name) is None]
    if lost:
        raise BadRecord(f"has no text in {', '.join(map(repr, lost))}")
    if how.labels.type == "tokens":
        values: dict[str, Any] = {"words": _words(columns.texts[0], cells[columns.texts[0]], columns.letters)}
    else:
        values = dict(zip(("text", "text_pair"), (_text(name, cells[name]) for name in columns.texts), strict=False))
    used = {*columns.texts, *how.labels.columns, group}
    unused = {
        key: checksum([item]) for key, item in cells.items() if key not in used and item not in (None, "", [], {})
    }
    found = LabelledRecord(values, row.place, unused, cells)
    try:
        found.target = _target(cells, how, len(values.get("words", ())))
    except BadRecord:
        if labelled:
            raise
    if group:
        if cells.get(group) in (None, ""):
            raise BadRecord(f"has no group in {group!r} (data.group_column)")
        found.group = str(cells[group])
    return found


def _target(cells: dict[str, Any], how: Rows, words: int) -> Target:
    """The label. BadRecord where it is missing, or none of its type."""
    found = target(cells, how.labels)
    if found is None:
        raise BadRecord(f"has no label in {' or '.join(map(repr, how.labels.columns))}")
    if how.labels.type == "tokens" and len(found) != words:
        raise BadRecord(f"has {words} words and {len(found)} tags; each word needs one")
    return found


def _text(name: str, value: Any) -> str:
    text = str(value) if type(value) in (int, float) else value  # 2012 is a text too
    check_text(name, text)
    return text


def _words(name: str, value: Any, letters: bool) -> list[str]:
    words = decoded(value)
    if isinstance(words, str):
        words = split_words(words, letters)
    if not isinstance(words, list):
        check_text(name, words)
    if not words:
        raise BadRecord(f"{name!r} holds no word")
    for word in words:
        check_text(f"{name}[]", word)
    return words
