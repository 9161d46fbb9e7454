"""submission.csv as Kaggle's parser wants it: the sample's header, one row for each row of test, no value missing.

Rows are written for test in its order, whatever rows the sample has: a sample can be older than test. A class is spelled as the
sample spells it, else as train does. The file is read back and checked before it gets its name.
"""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bidora_jax.competitions import labels
from bidora_jax.competitions.cuts import Cuts, decided
from bidora_jax.competitions.detection import class_outputs, sample_spelling
from bidora_jax.competitions.files import Files, Table
from bidora_jax.competitions.plan import Plan
from bidora_jax.competitions.target import Target
from bidora_jax.data.sources.sources import TABLES
from bidora_jax.errors import InputError, listing
from bidora_jax.machine.files import whole_file

OFF_BY = 1e-4
"""What probabilities of all classes, written in nine digits, may miss a sum of 1 by."""


def write(path: Path, files: Files, plan: Plan, predictions: np.ndarray, cuts: Cuts) -> None:
    """Writes the predictions of test's rows. InputError where they can't become a submission; then no file is written."""
    target, test = plan.target, files.test
    predictions = np.asarray(predictions, np.float64)
    if len(predictions) != len(test.rows) or not np.isfinite(predictions).all():
        bad = int((~np.isfinite(predictions)).sum())
        raise InputError(
            f"{path} can't be written: {test.path} has {len(test.rows)} rows, and there are {len(predictions)} predictions, {bad} "
            "of them no number; train again, with a smaller --lr if the loss grew"
        )
    written = _outputs(files, target, predictions, cuts)
    before = {plan.columns.id: [row[plan.columns.id] for row in test.rows]} if plan.columns.id is not None else {}
    header = header_of(files, plan.columns.id, target)
    columns = [
        [str(cell) for cell in (before | written).get(name) or [row[name] for row in test.rows]]
        for name in map(str.strip, header)
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(zip(*columns, strict=True))
    with whole_file(path) as fresh:
        fresh.write_bytes(text.getvalue().encode())
        if faults := check(fresh, files, target):
            raise InputError(f"{path} would not be accepted, and is not written:\n{listing(faults)}")


def header_of(files: Files, id_column: str | None, target: Target) -> list[str]:
    """The submission's header: the sample's to the letter, or the id and the outputs."""
    if files.sample is not None:
        return _raw_header(files.sample)
    return [*([id_column] if id_column is not None else []), *target.outputs]


def _raw_header(sample: Table) -> list[str]:
    """The names with the blanks around them, which a parser compares too."""
    with sample.path.open(encoding="utf-8-sig", newline="") as file:
        line = next(line for line in file if line.strip())
    delimiter = max(TABLES[sample.path.suffix.lower()], key=line.count)
    found = next(csv.reader([line], delimiter=delimiter))
    return found if tuple(map(str.strip, found)) == sample.columns else list(sample.columns)


def _outputs(files: Files, target: Target, predictions: np.ndarray, cuts: Cuts) -> dict[str, Sequence[object]]:
    """Output -> its cells."""
    if target.written == "label":
        found = decided(target, predictions, cuts)
        if target.kind == "multilabel":
            spelling = _flags(files, target)
            return {name: [spelling[int(one)] for one in found[:, at]] for at, name in enumerate(target.outputs)}
        spelling = sample_spelling(files.sample, target)
        names = [target.names[one] for one in found] if target.kind != "ordinal" else _levels(target, found)
        return {target.outputs[0]: [spelling[name] for name in names]}
    if target.written != "values":
        near = (predictions > -OFF_BY) & (predictions < 1 + OFF_BY)  # a mean of float32 may be 1.0000001
        predictions = np.where(near, np.clip(predictions, 0, 1), predictions)
    if target.written == "probabilities":
        number = class_outputs(target)
        zeros = np.zeros(len(predictions))
        columns = {name: predictions[:, number[name]] if name in number else zeros for name in target.outputs}
    elif target.kind == "binary":
        columns = {target.outputs[0]: predictions[:, 1]}
    else:
        columns = {name: predictions[:, at] for at, name in enumerate(target.outputs)}
    return {name: [f"{value:.9g}" for value in column] for name, column in columns.items()}


def _levels(target: Target, found: np.ndarray) -> list[str]:
    by_value = {float(name): name for name in target.names}
    return [by_value[float(level)] for level in np.ravel(found)]


def _flags(files: Files, target: Target) -> tuple[str, str]:
    """How 0 and 1 of several labels are spelled."""
    shown = [cell for name in target.outputs for cell in files.sample.cells(name)] if files.sample else []
    found = labels.spelled(("0", "1"), shown)
    return found["0"], found["1"]


# Checking


def check(path: Path, files: Files, target: Target) -> list[str]:
    """What Kaggle would refuse of a submission, a line each; empty: nothing."""
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file, strict=True))
    names = [name.strip() for name in header]
    expected = header_of(files, None, target) if files.sample is not None else None
    if expected is not None and header != expected:
        return [f"the header is {','.join(header)}, expected {','.join(expected)}"]
    if lost := [name for name in target.outputs if name not in names]:
        return [f"the header lacks {', '.join(lost)}"]
    if uneven := [number for number, row in enumerate(rows, 2) if len(row) != len(header)]:
        return [f"line {number} has another number of cells than the header" for number in uneven]
    if len(rows) != len(files.test.rows):
        return [f"there are {len(rows)} rows, expected {len(files.test.rows)}, one for each of {files.test.path.name}"]
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    kept = [name for name in names if name not in target.outputs]
    faults = [
        f"{name!r} is not that of {files.test.path.name}, row by row"
        for name in kept
        if columns[name] != [row[name] for row in files.test.rows]
    ]
    return (
        faults
        + [fault for name in target.outputs for fault in _cell_faults(name, columns[name], files, target)]
        + _sums(columns, target)
    )


def _cell_faults(name: str, cells: list[str], files: Files, target: Target) -> list[str]:
    if target.written == "label":
        multilabel = target.kind == "multilabel"
        allowed = set(_flags(files, target) if multilabel else sample_spelling(files.sample, target).values())
        wrong = [cell for cell in cells if cell not in allowed]
        return [f"{name!r} holds {wrong[0]!r}, which is no class"] if wrong else []
    values = [labels.number(cell) for cell in cells]
    if any(value is None for value in values):
        return [f"{name!r} holds {cells[values.index(None)]!r}, which is no number"]
    outside = [value for value in values if target.written != "values" and not 0 <= (value or 0.0) <= 1]
    return [f"{name!r} holds the probability {outside[0]}, outside of 0 to 1"] if outside else []


def _sums(columns: dict[str, list[str]], target: Target) -> list[str]:
    if target.written != "probabilities":
        return []
    totals = [
        math.fsum(labels.number(cell) or 0.0 for cell in row)
        for row in zip(*(columns[name] for name in target.outputs), strict=True)
    ]
    wrong = [(number, total) for number, total in enumerate(totals, 2) if abs(total - 1) > OFF_BY]
    return (
        [f"line {wrong[0][0]}: the probabilities of all classes have the sum {wrong[0][1]:g}, expected 1"]
        if wrong
        else []
    )
