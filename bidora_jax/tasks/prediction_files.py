"""Files of predictions, one row a row of the input, in its order.

.csv .tsv   the rows' id if they have one, then label and a column for each label with its probability; labels (a JSON list) and the
            same columns; value, or a column for each target; tags, with blanks between them     RFC 4180 quotes, UTF-8
.jsonl      the same as objects: {id, label, probabilities: {…}}, {id, tags, spans: [{type, start, end, text}]}
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bidora_jax.data.labels import Labels
from bidora_jax.errors import InputError
from bidora_jax.machine.files import write_whole
from bidora_jax.tasks.outputs import Answer

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
ENDINGS = (*DELIMITERS, *JSON_LINES)


class Column(NamedTuple):
    """What stands before the predictions, such as the rows' id."""

    name: str
    values: Sequence[Any]


def check(path: Path) -> None:
    """InputError for a file that `write` would not write."""
    if path.suffix.lower() not in ENDINGS:
        raise InputError(
            f"{path}: predictions are written to files that end in {', '.join(ENDINGS)}, found {path.suffix or 'no ending'}"
        )
    if not path.absolute().parent.is_dir():
        raise InputError(f"there is no folder for {path}; make it, or name another file")


def write(path: Path, labels: Labels, found: Sequence[Answer], before: Sequence[Column] = ()) -> None:
    """Writes the answers to the rows, whole or not at all. The columns `before` have a value for each of them."""
    check(path)
    suffix = path.suffix.lower()
    write_whole(
        path, _json_lines(found, before) if suffix in JSON_LINES else _table(labels, found, before, DELIMITERS[suffix])
    )


def _json_lines(found: Sequence[Answer], before: Sequence[Column]) -> str:
    named = [dict(zip([one.name for one in before], cells, strict=True)) for cells in _rows(before, len(found))]
    lines = (
        json.dumps(own | _short(answer), ensure_ascii=False, default=str)
        for own, answer in zip(named, found, strict=True)
    )
    return "".join(line + "\n" for line in lines)


def _table(labels: Labels, found: Sequence[Answer], before: Sequence[Column], delimiter: str) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
    own = [one.name for one in before]
    writer.writerow(own + _header(labels, own))
    for cells, answer in zip(_rows(before, len(found)), found, strict=True):
        writer.writerow([*cells, *_cells(labels, answer)])
    return stream.getvalue()


def _rows(before: Sequence[Column], count: int) -> Sequence[Sequence[Any]]:
    return list(zip(*(one.values for one in before), strict=True)) if before else [()] * count


def _header(labels: Labels, own: Sequence[str]) -> list[str]:
    """The columns of the predictions. A label that is called like another column has `probability of` before its name."""
    if labels.type == "tokens":
        return ["tags"]
    names = list(labels.names)
    if labels.type == "regression":
        return ["value"] if len(names) == 1 else [f"value of {name}" if name in own else name for name in names]
    first = "label" if labels.type == "classification" else "labels"
    return [first, *(f"probability of {name}" if name in (first, *own) else name for name in names)]


def _cells(labels: Labels, answer: Answer) -> list[str]:
    if "tags" in answer:
        tags = answer["tags"]
        split = any(tag.split() != [tag] for tag in tags)
        return [json.dumps(tags, ensure_ascii=False) if split else " ".join(tags)]
    if "value" in answer:
        return [_number(answer["value"])]
    if "values" in answer:
        return [_number(answer["values"][name]) for name in labels.names]
    first = answer["label"] if "label" in answer else json.dumps(answer["labels"], ensure_ascii=False)
    return [first, *(_number(answer["probabilities"][name]) for name in labels.names)]


def _number(value: float) -> str:
    """Nine digits, which tell any two float32 apart."""
    return f"{value:.9g}"


def _short(value: Any) -> Any:
    """The answer with its numbers in as many digits as a table has."""
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    return float(_number(value)) if isinstance(value, float) else value
