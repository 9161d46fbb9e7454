"""What Kaggle's parser refuses of a submission, from its rules: nothing of the package is asked.

The header is the sample's to the letter; one column is the id; every row of test is there once and no other; no cell is empty or
no number where numbers are scored; labels are spelled as the solution spells them.
"""

import csv
import math
from pathlib import Path

from competitions import Answer


def refused(submission: Path, folder: Path, answer: Answer) -> list[str]:
    """Why it is refused, a line each; empty: it is accepted."""
    raw = submission.read_bytes()
    if raw.startswith(b"\xef\xbb\xbf"):
        return ["it opens with a byte-order mark"]
    rows = list(csv.reader(raw.decode("utf-8").splitlines(), strict=True))
    header, rows = rows[0], rows[1:]
    sample = folder / "sample_submission.csv"
    if sample.exists() and raw.splitlines()[0] != sample.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()[0]:
        return [f"its header is {header}"]
    if header != list(answer.header):
        return [f"its header is {header}, expected {answer.header}"]
    if any(len(row) != len(header) for row in rows):
        return ["a row has another number of cells"]
    with (folder / "test.csv").open(encoding="utf-8-sig", newline="") as file:
        ids = [row[answer.id] for row in csv.DictReader(file)]
    at = header.index(answer.id)
    found = [row[at] for row in rows]
    if sorted(found) != sorted(ids):
        return [f"{len(found)} ids, {len(set(found) & set(ids))} of them among the {len(ids)} of test"]
    faults = []
    for row in rows:
        cells = row[:at] + row[at + 1 :]
        faults += [f"{row}: {cell!r}" for cell in cells if not _accepted(cell, answer)]
        if answer.written == "probabilities" and not math.isclose(sum(map(float, cells)), 1, abs_tol=1e-3):
            faults.append(f"{row}: no distribution")
    return faults


def _accepted(cell: str, answer: Answer) -> bool:
    if answer.labels is not None:
        return cell in answer.labels
    try:
        value = float(cell)
    except ValueError:
        return False
    low, high = answer.bounds or (-math.inf, math.inf)
    return math.isfinite(value) and low <= value <= high
