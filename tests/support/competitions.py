"""Fifteen small competitions, each with something that real ones have, and what is to be found in them.

    python tests/support/competitions.py DIR        writes them, a folder each

The answers are written here by hand: nothing of the package is asked.
"""

import csv
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TRAIN, TEST = 120, 37
WORDS = (
    "sky",
    "blue",
    "stone",
    "river",
    "old",
    "wood",
    "green",
    "paper",
    "night",
    "small",
    "lamp",
    "far",
    "salt",
    "road",
)
BOM = "﻿"
Rows = Sequence[Sequence[Any]]


class Answer(NamedTuple):
    """What a plan has to say, and what its submission may hold."""

    kind: str
    names: tuple[str, ...]
    written: str
    metric: str
    id: str
    targets: tuple[str, ...]
    texts: tuple[str, ...]
    header: tuple[str, ...]
    labels: frozenset[str] | None = None
    """Cells that are allowed; None: probabilities or numbers."""
    bounds: tuple[float, float] | None = None


def words(random: np.random.Generator, count: int = 8) -> str:
    return " ".join(random.choice(WORDS, count))


def table(path: Path, header: Sequence[str], rows: Rows, *, before: str = "", delimiter: str = ",") -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    path.write_text(before + text.getvalue(), encoding="utf-8")


def simple(
    folder: Path,
    labels: Sequence[Any],
    shown: Any,
    *,
    name: str = "label",
    before: str = "",
    ids: str = "{}",
    said: str = "",
) -> None:
    """id, text and a target with these values in turn; a sample that holds `shown` under the target's name, or the one `said`."""
    random = np.random.default_rng(0)
    train = [(ids.format(n), words(random), labels[n % len(labels)]) for n in range(TRAIN)]
    test = [(ids.format(n), words(random)) for n in range(TRAIN, TRAIN + TEST)]
    table(folder / "train.csv", ("id", "text", name), train, before=before)
    table(folder / "test.csv", ("id", "text"), test, before=before)
    table(folder / "sample_submission.csv", ("id", said or name), [(one[0], shown) for one in test], before=before)


def _answer(kind: str, names: Sequence[str], written: str, metric: str, **other: Any) -> Answer:
    usual = {"id": "id", "targets": ("label",), "texts": ("text",), "header": ("id", "label")}
    bounds = {"probability": (0.0, 1.0), "probabilities": (0.0, 1.0)}.get(written)
    labels = frozenset(names) if written == "label" else None
    return Answer(kind, tuple(names), written, metric, **(usual | {"labels": labels, "bounds": bounds} | other))


def true_and_false(folder: Path) -> Answer:
    simple(folder, ["True", "False", "False"], "False", name="Transported", ids="{:04d}_01")
    other = {"targets": ("Transported",), "header": ("id", "Transported")}
    return _answer("binary", ("False", "True"), "label", "accuracy", **other)


def ints_as_floats(folder: Path) -> Answer:
    simple(folder, ["0.0", "1.0", "2.0"], "0")
    return _answer("multiclass", ("0.0", "1.0", "2.0"), "label", "accuracy", labels=frozenset("012"))


def classes_from_one(folder: Path) -> Answer:
    simple(folder, [1, 2, 3, 4, 5], 1, name="Cover_Type")
    other = {"targets": ("Cover_Type",), "header": ("id", "Cover_Type")}
    return _answer("multiclass", "12345", "label", "accuracy", **other)


def spaces_and_case(folder: Path) -> Answer:
    simple(
        folder,
        ["very good", "not good", "very good", "Very  good", " not good ", "NOT GOOD", "not good", "so so"],
        "so so",
    )
    return _answer("multiclass", ("not good", "so so", "very good"), "label", "accuracy")


def several_labels(folder: Path) -> Answer:
    random, names = np.random.default_rng(1), ("toxic", "insult", "threat")
    rows = [(f"x{n}", words(random), *random.integers(0, 2, 3)) for n in range(TRAIN + TEST)]
    table(folder / "train.csv", ("id", "comment_text", *names), rows[:TRAIN])
    table(folder / "test.csv", ("id", "comment_text"), [row[:2] for row in rows[TRAIN:]])
    table(folder / "sample_submission.csv", ("id", *names), [(row[0], 0.5, 0.5, 0.5) for row in rows[TRAIN:]])
    other = {"targets": names, "texts": ("comment_text",), "header": ("id", *names)}
    return _answer("multilabel", names, "probability", "auc", **other)


def two_regressions(folder: Path) -> Answer:
    random, names = np.random.default_rng(2), ("content", "wording")
    rows = [(f"s{n:03d}", words(random), words(random, 5), *random.normal(size=2)) for n in range(TRAIN + TEST)]
    columns = ("student_id", "text", "prompt")
    table(folder / "train.csv", (*columns, *names), rows[:TRAIN])
    table(folder / "test.csv", columns, [row[:3] for row in rows[TRAIN:]])
    table(folder / "sample_submission.csv", ("student_id", *names), [(row[0], 0.0, 0.0) for row in rows[TRAIN:]])
    other = {"id": "student_id", "targets": names, "texts": ("text", "prompt"), "header": ("student_id", *names)}
    return _answer("regression", names, "values", "mcrmse", **other)


def ordinal(folder: Path) -> Answer:
    simple(folder, [3, 2, 4, 1, 3, 5, 6, 3], 3, name="score")
    return _answer("ordinal", "123456", "label", "qwk", targets=("score",), header=("id", "score"))


def leading_zeros(folder: Path) -> Answer:
    simple(folder, [0, 1], 0, ids="{:07d}")
    return _answer("binary", "01", "label", "accuracy")


def unnamed_index(folder: Path) -> Answer:
    """Written by pandas with its index, twice; no sample."""
    random = np.random.default_rng(3)
    rows = [(n, n, f"q{n}", words(random), "ab"[n % 2]) for n in range(TRAIN)]
    tests = [(n, n, f"q{TRAIN + n}", words(random)) for n in range(TEST)]
    table(folder / "train.csv", ("", "Unnamed: 0", "qid", "text", "label"), rows)
    table(folder / "test.csv", ("", "Unnamed: 0", "qid", "text"), tests)
    return _answer("binary", ("a", "b"), "label", "accuracy", id="qid", header=("qid", "label"))


def byte_order_mark(folder: Path) -> Answer:
    simple(folder, ["no", "yes"], 0.5, before=BOM)
    return _answer("binary", ("no", "yes"), "probability", "auc")


def empty_text(folder: Path) -> Answer:
    simple(folder, ["NA", "None", "null"], "NA")
    lines = (folder / "test.csv").read_text().splitlines()
    for number in (1, 5, TEST):
        lines[number] = lines[number].partition(",")[0] + ","
    (folder / "test.csv").write_text("\n".join(lines) + "\n")
    return _answer("multiclass", ("NA", "None", "null"), "label", "accuracy")


def class_once(folder: Path) -> Answer:
    simple(folder, ["cat", "dog"] * (TRAIN // 2 - 1) + ["cat", "axolotl"], "cat")
    return _answer("multiclass", ("axolotl", "cat", "dog"), "label", "accuracy")


def stale_sample(folder: Path) -> Answer:
    simple(folder, [0, 1], 0)
    table(folder / "sample_submission.csv", ("id", "label"), [(n, 0) for n in range(TRAIN + 5, TRAIN + 9)])
    return _answer("binary", "01", "label", "accuracy")


def named_by_the_sample(folder: Path) -> Answer:
    simple(folder, [0.25, 1.5, 3.75, -2.5], 0, name="loss", said="prediction")
    return _answer("regression", ("loss",), "values", "rmse", targets=("loss",), header=("id", "prediction"))


def probability_for_each_class(folder: Path) -> Answer:
    """The sample's columns are in an order of their own, and train has columns that test lacks."""
    random, classes = np.random.default_rng(4), ("Return to owner", "Adoption", "Died")
    rows = [(f"A{n}", words(random), classes[n % 3], words(random, 2)) for n in range(TRAIN)]
    tests = [(n + 1, words(random)) for n in range(TEST)]
    table(folder / "train.csv", ("AnimalID", "Story", "OutcomeType", "OutcomeSubtype"), rows)
    table(folder / "test.csv", ("ID", "Story"), tests)
    table(folder / "sample_submission.csv", ("ID", *classes), [(one[0], 1, 0, 0) for one in tests])
    names, header = ("Adoption", "Died", "Return to owner"), ("ID", *classes)
    other = {"id": "ID", "targets": ("OutcomeType",), "texts": ("Story",), "header": header}
    return _answer("multiclass", names, "probabilities", "logloss", **other)


ALL: tuple[Callable[[Path], Answer], ...] = (
    true_and_false, ints_as_floats, classes_from_one, spaces_and_case, several_labels, two_regressions, ordinal, leading_zeros,
    unnamed_index, byte_order_mark, empty_text, class_once, stale_sample, named_by_the_sample, probability_for_each_class,
)  # fmt: skip


if __name__ == "__main__":
    for make in ALL:
        place = Path(sys.argv[1]) / make.__name__
        place.mkdir(parents=True)
        print(make.__name__, make(place))
