"""competitions/leaks.py: what is warned of, and that files without a leak give no warning."""

import numpy as np
import pytest
from competed import table
from targets import target_of

from bidora_jax.competitions import leaks
from bidora_jax.competitions.columns import Columns
from bidora_jax.competitions.files import Files

N = 120
folds = np.arange(N) % 4


def random():
    return np.random.default_rng(5)


def files_of(kind="binary", truth=None, tests=30, **cells):
    """Train with an id in no order, a text, a category, a number and a group; `cells` replaces columns of train."""
    draw = random()
    target = target_of(kind, "rmse")
    truth = draw.integers(2, size=N) if truth is None else truth
    ids = draw.permutation(N)
    rows = []
    for row in range(N + tests):
        rows.append({"id": f"{ids[row] if row < N else row:04}", "text": f"text number {row} {draw.integers(99)}",
                     "kind": "abc"[draw.integers(3)], "width": f"{draw.normal():.4f}", "group": f"g{row // 4}"})  # fmt: skip
    for row in range(N):
        if kind == "binary":
            rows[row]["target"] = target.names[truth[row]]
        elif kind == "ordinal":
            rows[row]["target"] = target.names[int(truth[row])]
        else:
            rows[row] |= {name: str(value) for name, value in zip(target.names, truth[row], strict=True)}
        rows[row] |= {name: values[row] for name, values in cells.items()}
    columns = Columns("id", target.columns, ("text",), ("kind",), ("width",))
    return Files(table("train.csv", rows[:N]), table("test.csv", rows[N:]), None), columns, target


def warned(files, columns, target, by=folds):
    return leaks.warnings(files, columns, target, by)


@pytest.mark.parametrize("kind", ["binary", "multilabel", "regression", "ordinal"])
def test_files_without_a_leak_give_no_warning(kind):
    draw = random()
    truth = {"binary": None, "multilabel": draw.integers(2, size=(N, 3)), "regression": draw.normal(size=(N, 2)),
             "ordinal": draw.integers(5, size=N)}[kind]  # fmt: skip
    assert warned(*files_of(kind, truth)) == []


def test_rows_of_train_that_are_in_test_are_counted_and_named():
    files, columns, target = files_of()
    for row in (3, 7, 8, 20):
        files.test.rows[row]["text"] = files.train.rows[row]["text"].replace(" ", "  ") + " "
    ids = [files.train.rows[row]["id"] for row in (3, 7, 8)]
    assert warned(files, columns, target) == [
        f"4 of 120 rows of train have the texts of a row of test: {', '.join(ids)}, …"
    ]
    for one in files[:2]:
        for row in one.rows:
            row["text"] = ""
    assert warned(files, columns, target) == []  # rows that say nothing are no copies


def test_copies_with_different_targets_and_in_other_folds_are_told_apart():
    files, columns, target = files_of()
    for name in ("text", "kind", "width"):
        files.train.rows[4][name] = files.train.rows[0][name]  # of one fold
        files.train.rows[9][name] = files.train.rows[2][name]  # of two
    for row, label in ((0, "yes"), (4, "no"), (2, "no"), (9, "no")):
        files.train.rows[row]["target"] = label
    ids = [row["id"] for row in files.train.rows]
    assert warned(files, columns, target) == [
        f"2 rows of train are copies of one another with different targets: {ids[0]}, {ids[4]}",
        f"2 rows of train have a copy in another fold: {ids[2]}, {ids[9]}",
    ]


def test_groups_in_test_and_in_several_folds_are_named():
    files, columns, target = files_of()
    grouped = Columns("id", columns.targets, columns.texts, columns.categories, columns.numbers, "group")
    of_groups = np.arange(N) // 4 % 4
    assert warned(files, grouped, target, of_groups) == []
    files.test.rows[0]["group"] = "g7"
    parted = of_groups.copy()
    parted[8] = (parted[9] + 1) % 4
    first, second = warned(files, grouped, target, parted)
    assert first.startswith("1 of 30 groups of 'group' are in train and in test: 'g7'; ")
    assert second == "1 groups of 'group' are in several folds: 'g2'"


def test_rows_that_are_sorted_by_their_target_are_told():
    files, columns, target = files_of(truth=np.arange(N) // 60)
    assert warned(files, columns, target) == [
        "the order of the rows tells 'target': neighbours have the same one in 99% of the pairs, by chance in 50%"
    ]
    for row in range(N):
        files.train.rows[row]["id"] = f"a{row}"
    assert warned(files, columns, target)[0].startswith("the order of the rows, which is that of 'id', tells 'target'")


def test_ids_that_follow_the_target_are_told():
    files, columns, target = files_of()
    even = [int(row["target"] == "yes") for row in files.train.rows]
    for row in range(N):
        files.train.rows[row]["id"] = f"{2 * row + 1000 * even[row]}"
    (line,) = warned(files, columns, target)
    assert line.startswith("the order of 'id' tells 'target': neighbours")
    alternating, *_ = files_of(truth=np.arange(N) % 2)
    assert "neighbours have the same one in 0% of the pairs" in warned(alternating, columns, target)[0]


def test_many_classes_in_turn_are_told():
    turns = np.arange(600) % 12
    said = leaks._told(leaks._Output("kind", turns, True), turns)
    assert said == "neighbours have the same one in 0% of the pairs, by chance in 8%"


def test_an_id_with_the_label_in_it_is_told():
    files, columns, target = files_of()
    for row in files.train.rows:
        row["id"] = f"{row['target']}_{row['id']}"
    assert "'id' without its digits alone gives 'target': 100.0% of the rows are right, out of fold" in warned(
        files, columns, target
    )


def test_values_that_drift_with_the_rows_are_told():
    draw = random()
    truth = np.stack([np.linspace(0, 3, N) + draw.normal(size=N), draw.normal(size=N)], axis=1)
    (line,) = [one for one in warned(*files_of("regression", truth)) if "order of the rows" in one]
    assert line.startswith("the order of the rows tells 'size'") and "correlate by 0." in line


def test_a_column_that_alone_gives_the_target_is_told():
    files, columns, target = files_of()
    wrong = 5
    for at, row in enumerate(files.train.rows):
        row["kind"] = {"yes": "x", "no": "y"}[row["target"]] if at != wrong else "z"
        row["width"] = str((3 if row["target"] == "yes" else -3) + 0.01 * at)
    lines = warned(files, columns, target)
    assert [line.partition(":")[0] for line in lines] == [
        "the column 'kind' alone gives 'target'",
        "the column 'width' alone gives 'target'",
    ]
    for row in range(10):
        files.train.rows[row]["kind"] = "x"
    assert "kind" not in " ".join(warned(files, columns, target))


def test_a_column_that_gives_a_value_is_told_and_one_that_says_what_is_frequent_is_not():
    draw = random()
    truth = draw.normal(size=(N, 2))
    files, columns, target = files_of("regression", truth)
    named = Columns("id", columns.targets, columns.texts, columns.categories, ("other",))
    for row in range(N):
        files.train.rows[row]["other"] = str(7 - 2 * truth[row, 1])
    (line,) = warned(files, named, target)
    assert line.startswith("the column 'other' alone gives 'age': R² is 0.99")
    rare = np.zeros(N, int)
    rare[7] = 1
    assert warned(*files_of(truth=rare)) == []
