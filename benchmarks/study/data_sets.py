"""Data sets of the study, each cut into a pool to train on, records that judge settings, and test records.

    python benchmarks/study/data_sets.py --glue glue_data --peptides deepB3P/data --out DATA

    bbb     peptides that cross the blood-brain barrier or not, as many of each: the FASTA files of DeepB3P
    rte, mrpc, cola, stsb   of GLUE, with its own file names and headers; dev.tsv is the test
    scad    instructions and the OpenSCAD code that answers them, which come with the package; val.jsonl judges

Writes DATA/NAME/{pool,judge,test}.csv with the columns text, pair (where there are pairs) and label, or instruction, input and
output. The order is drawn from a fixed seed. Nothing of it is shipped here: some of GLUE's parts are for research alone.
"""

import argparse
import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bidora_jax.quickstart import DATA as QUICKSTART

INSTRUCTION = ("instruction", "input", "output")


class DataSet(NamedTuple):
    metric: str
    """What judges, and what is reported."""
    lengths: tuple[int, ...]
    """Padded lengths, of which the last is the longest record that is trained on whole."""
    type: str = "classification"
    """Of the task; "" where answers are written."""
    pairs: bool = False
    judges: int = 200
    """Records that judge."""
    sizes: tuple[int, ...] = (100, 300, 1000)
    """Numbers of records that a run has."""
    columns: tuple[str | int, ...] = ()
    """Of GLUE's file: text, (pair,) label; numbers where it has no header."""
    folder: str = ""


DATA = {
    "scad": DataSet("accuracy", (128,), type="", judges=144, sizes=(100, 300)),
    "bbb": DataSet("accuracy", (32, 64), judges=120, sizes=(100, 300, 500)),
    "rte": DataSet("accuracy", (64, 128, 256), pairs=True, columns=("sentence1", "sentence2", "label"), folder="RTE"),
    "mrpc": DataSet("accuracy", (64, 128), pairs=True, columns=("#1 String", "#2 String", "Quality"), folder="MRPC"),
    "cola": DataSet("matthews", (16, 48), columns=(3, 1), folder="CoLA"),
    "stsb": DataSet(
        "pearson", (32, 64, 128), "regression", pairs=True, columns=("sentence1", "sentence2", "score"), folder="STS-B"
    ),
}
Row = tuple[str, ...]
"""A text, its pair where there is one, and the label; or an instruction, its input and the answer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", type=Path)
    parser.add_argument("--peptides", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    for name, data in DATA.items():
        if (parts := of_source(data, options.glue if data.folder else options.peptides)) is None:
            continue
        for part, rows in zip(("pool", "judge", "test"), parts, strict=True):
            write(options.out / name / f"{part}.csv", rows, data)
        pool, judge, test = map(len, parts)
        print(f"{name}: {pool} to train on, {judge} judge, {test} test")


def of_source(data: DataSet, folder: Path | None) -> tuple[list[Row], list[Row], list[Row]] | None:
    """Records to train on, that judge, and of the test; None where no folder was named."""
    if not data.type:
        train, judge, test = (instructions(QUICKSTART / f"{split}.jsonl") for split in ("train", "val", "test"))
        return train, judge, test
    if folder is None:
        return None
    train, test = glue(folder / data.folder, data) if data.folder else peptides(folder)
    random.Random(0).shuffle(train)
    return train[data.judges :], train[: data.judges], test


def instructions(file: Path) -> list[Row]:
    records = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return [tuple(record.get(name, "") for name in INSTRUCTION) for record in records]


def glue(folder: Path, data: DataSet) -> tuple[list[Row], list[Row]]:
    parts = [list(of_table(folder / f"{split}.tsv", data.columns)) for split in ("train", "dev")]
    tested = {row[:-1] for row in parts[1]}
    unique = {row[:-1]: row for row in parts[0] if row[:-1] not in tested}
    return list(unique.values()), parts[1]


def of_table(file: Path, columns: tuple[str | int, ...]) -> Iterator[Row]:
    lines = file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    header = [] if isinstance(columns[0], int) else lines.pop(0).split("\t")
    places = [column if isinstance(column, int) else header.index(column) for column in columns]
    for line in lines:
        cells = line.split("\t")
        if len(cells) > max(places):
            yield tuple(cells[place].strip() for place in places)


def peptides(folder: Path) -> tuple[list[Row], list[Row]]:
    """DeepB3P's: all peptides that cross but those of its test, and as many of the others; its test."""
    tests = [(sequence, label) for name, label in (("pos_test", "crosses"), ("neg_test", "stays"))
             for sequence in fasta(folder / f"{name}.fasta")]  # fmt: skip
    tested = {sequence for sequence, _ in tests}
    crossing, staying = (
        [sequence for sequence in dict.fromkeys(fasta(folder / f"{name}.fasta")) if sequence not in tested]
        for name in ("train_pos_org", "train_neg_org")
    )
    staying = random.Random(1).sample([one for one in staying if one not in {*crossing}], len(crossing))
    return [(one, "crosses") for one in crossing] + [(one, "stays") for one in staying], tests


def fasta(file: Path) -> Iterator[str]:
    for entry in file.read_text(encoding="utf-8").split(">")[1:]:
        yield "".join(entry.splitlines()[1:]).strip()


def columns(data: DataSet) -> tuple[str, ...]:
    if not data.type:
        return INSTRUCTION
    return ("text", "pair", "label") if data.pairs else ("text", "label")


def write(file: Path, rows: list[Row], data: DataSet) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([columns(data), *rows])


def read(file: Path) -> list[Row]:
    with file.open(newline="", encoding="utf-8") as rows:
        return [tuple(row) for row in list(csv.reader(rows))[1:]]


if __name__ == "__main__":
    main()
