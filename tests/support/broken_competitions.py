"""Competitions that can't be planned: what is wrong with each, and what a message about it has to say.

python tests/support/broken_competitions.py DIR        writes them, a folder each
"""

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from competitions import TEST, TRAIN, simple, table

Says = tuple[str, ...]
"""Parts of the message: the thing, what was expected, what was found, the remedy."""


def _rows(count: int, *more: object) -> list[tuple[object, ...]]:
    return [(n, f"a text of number {n}", *more) for n in range(count)]


def no_target(folder: Path) -> Says:
    table(folder / "train.csv", ("id", "text"), _rows(TRAIN))
    table(folder / "test.csv", ("id", "text"), _rows(TEST))
    return "train.csv has no target", "expected a column more", "'id', 'text'", "--target"


def two_ids(folder: Path) -> Says:
    train, test = ([(f"u{n}", f"r{n}", f"a text of {n}", n % 2)[:width] for n in range(TRAIN)] for width in (4, 3))
    table(folder / "train.csv", ("user_id", "row_id", "text", "label"), train)
    table(folder / "test.csv", ("user_id", "row_id", "text"), test)
    return "2 columns of", "could be the id: 'user_id', 'row_id'", "expected one", "--id-column user_id"


def empty_target(folder: Path) -> Says:
    simple(folder, [""], 0)
    return "the target 'label' is empty in all 120 rows", "expected what is to be learned", "--target"


def one_row(folder: Path) -> Says:
    simple(folder, [0, 1], 0)
    table(folder / "train.csv", ("id", "text", "label"), [(0, "a text of one", 1)])
    return "train.csv has 1 row,", "expected at least 10", "get the whole file"


def test_without_id(folder: Path) -> Says:
    simple(folder, [0, 1], 0)
    table(folder / "test.csv", ("text",), [("a text of some words, with a comma",)] * TEST)
    return "test.csv has no id", "sample_submission.csv has the columns 'id', 'label'", "that has 'text'", "--id-column"


def id_of_the_sample_alone(folder: Path) -> Says:
    simple(folder, [0, 1], 0)
    table(folder / "test.csv", ("text", "title"), [("a text of some words", f"title {n} of it") for n in range(TEST)])
    return "test.csv has no id", "sample_submission.csv has the columns 'id', 'label'", "'text', 'title'", "--id-column"


def no_id_at_all(folder: Path) -> Says:
    rows = [(f"a text of number {n}", "one title of two"[: n % 9 + 3], n % 2) for n in range(TRAIN)]
    table(folder / "train.csv", ("text", "title", "label"), rows)
    table(folder / "test.csv", ("text", "title"), [row[:2] for row in rows])
    return "test.csv has no id", "expected one to name rows by", "'text', 'title'", "--id-column none"


def ids_twice(folder: Path) -> Says:
    simple(folder, [0, 1], 0)
    table(folder / "test.csv", ("id", "text"), [*_rows(TEST), (3, "again")])
    return "the id 'id' has 1 values twice, such as '3'", "expected one row an id", "--id-column"


def id_missing(folder: Path) -> Says:
    simple(folder, [0, 1], 0)
    table(folder / "test.csv", ("id", "text"), [*_rows(TEST), ("", "again")])
    return "the id 'id' is empty in 1 rows", "expected one in each", "--id-column"


def mixed_labels(folder: Path) -> Says:
    simple(folder, ["1.5", "2.5", "3.25", "unknown"], 0)
    return (
        "the target 'label' holds 30 of 120 cells that are no number",
        "expected numbers",
        "'unknown'",
        "--task multiclass",
    )


def mixed_among_several(folder: Path) -> Says:
    table(folder / "train.csv", ("id", "text", "a", "b"), _rows(TRAIN, 1, "x"))
    table(folder / "test.csv", ("id", "text"), _rows(TEST))
    table(folder / "sample_submission.csv", ("id", "a", "b"), [(n, 0, 0) for n in range(TEST)])
    return "the target 'b' holds 120 of 120 cells that are no number", "expected numbers", "'x'", "leave them out"


def too_many_columns(folder: Path) -> Says:
    simple(folder, [0, 1], 0)
    table(
        folder / "train.csv", ("id", "label", *map(str, range(99_998))), [(n, n % 2, *[0] * 99_998) for n in range(10)]
    )
    return "train.csv has 100,000 columns", "expected at most 1,000", "gradient boosting"


def other_delimiter(folder: Path) -> Says:
    simple(folder, [0, 1], 0)
    table(folder / "train.csv", ("id", "text", "label"), _rows(TRAIN, 1), delimiter="~")
    return "train.csv has one column, 'id~text~label'", "expected several", "'~'", "commas"


def commas_in_tsv(folder: Path) -> Says:
    simple(folder, [0, 1], 0)
    (folder / "train.csv").rename(folder / "train.tsv")
    return "train.tsv has one column, 'id,text,label'", "divided by tabs", "name the file train.csv"


def zip_in_the_folder(folder: Path) -> Says:
    simple(folder, [0, 1], 0)
    with zipfile.ZipFile(folder / "data.zip", "w") as file:
        file.write(folder / "train.csv", "train.csv")
    (folder / "train.csv").unlink()
    return "has no train.csv", "expected train.csv and test.csv", "data.zip", "unzip"


def zip_by_the_name_of_csv(folder: Path) -> Says:
    zip_in_the_folder(folder)
    (folder / "data.zip").rename(folder / "train.csv")
    return "train.csv is a zip file", "unpack it"


def no_test(folder: Path) -> Says:
    simple(folder, [0, 1], 0)
    (folder / "test.csv").rename(folder / "testing.csv")
    return "has no test.csv", "expected train.csv and test.csv", "testing.csv", "rename"


def empty_folder(folder: Path) -> Says:
    return "is empty", "expected train.csv and test.csv", "get"


def one_value(folder: Path) -> Says:
    simple(folder, [1], 1)
    return "the target 'label' is '1' in every row", "expected two values", "--target"


def prose_for_a_target(folder: Path) -> Says:
    simple(folder, [f"an answer with number {n}" for n in range(TRAIN)], "an answer")
    return "the target 'label' has 120 different texts in 120 rows", "expected numbers", "--target"


def no_rows(folder: Path) -> Says:
    simple(folder, [0, 1], 0)
    table(folder / "test.csv", ("id", "text"), [])
    return "test.csv has no row below its header", "expected rows", "get the file anew"


def loose_commas(folder: Path) -> Says:
    simple(folder, [0, 1], 0)
    with (folder / "train.csv").open("a") as file:
        file.write("999,a text, and more,1\n")
    return "1 of the 121 rows", "has 4 fields, and the header 3", "between quotes"


def latin_1(folder: Path) -> Says:
    simple(folder, [0, 1], 0)
    (folder / "train.csv").write_bytes((folder / "train.csv").read_bytes() + "999,café,1\n".encode("latin-1"))
    return "1 of the 121 rows", "not UTF-8", "iconv"


def utf_16(folder: Path) -> Says:
    simple(folder, [0, 1], 0)
    (folder / "test.csv").write_bytes((folder / "test.csv").read_text().encode("utf-16"))
    return "test.csv is UTF-16 text", "iconv"


def a_column_twice(folder: Path) -> Says:
    simple(folder, [0, 1], 0)
    table(folder / "train.csv", ("id", "text", "text", "label"), _rows(TRAIN, "x", 1))
    return "train.csv: the header cannot be used", "both named 'text'", "give each its own name"


def another_sample(folder: Path) -> Says:
    simple(folder, [0, 1], 0)
    table(folder / "sample_submission.csv", ("id", "cat", "dog"), [(n, 0, 0) for n in range(TEST)])
    return "no target that can be told", "wants 'cat', 'dog'", "what test.csv lacks is 'label'", "--target label"


def two_samples(folder: Path) -> Says:
    simple(folder, [0, 1], 0)
    (folder / "sample_submission.csv").rename(folder / "sampleSubmission.csv")
    table(folder / "sample_submission_2.csv", ("id", "label"), [(0, 0)])
    return "several sample submissions", "sampleSubmission.csv", "expected one"


def nothing_to_predict_from(folder: Path) -> Says:
    table(folder / "train.csv", ("id", "label"), [(n, n % 2) for n in range(TRAIN)])
    table(folder / "test.csv", ("id", "other"), [(n, 1) for n in range(TEST)])
    return "train.csv has no column to predict from", "expected a text", "--text-columns"


ALL: tuple[Callable[[Path], Says], ...] = (
    no_target, two_ids, empty_target, one_row, test_without_id, id_of_the_sample_alone, no_id_at_all, ids_twice, id_missing,
    mixed_labels, mixed_among_several, too_many_columns, other_delimiter, commas_in_tsv, zip_in_the_folder, zip_by_the_name_of_csv,
    no_test, empty_folder, one_value, prose_for_a_target, no_rows, loose_commas, latin_1, utf_16, a_column_twice, another_sample,
    two_samples, nothing_to_predict_from,
)  # fmt: skip


if __name__ == "__main__":
    for make in ALL:
        place = Path(sys.argv[1]) / make.__name__
        place.mkdir(parents=True)
        print(make.__name__, make(place))
