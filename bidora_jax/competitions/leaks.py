"""What makes an out-of-fold score look better, or the test set easier, than they are: lines that warn, none of them an error.

copies     a row's texts with blanks and Unicode's composition made equal (data/splits.py), or all its columns where it has no text
order      neighbours by row or by id that have the same class far more often than two rows drawn at random, or the opposite; of
           values, a correlation of neighbours or with the place
column     a column that alone gives the target: out of fold, the most frequent target of its cell, or a tree of its numbers
groups     those of --group-column that are in train and in test, or in several folds
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from bidora_jax.competitions.columns import Columns
from bidora_jax.competitions.files import Files, Table
from bidora_jax.competitions.target import Target, truth
from bidora_jax.data.records import Record
from bidora_jax.data.splits import key

SHOWN = 3
GIVES = 0.99
"""Share of the rows, or of the variance, from which on a column is said to give the target."""
SIGMAS, NOTABLE = 6, 0.2
"""How far from chance an order must be: in standard deviations, and as a part of what is possible."""
COLUMNS, OUTPUTS = 200, 20
"""Columns and targets that are looked at, at most."""


def warnings(files: Files, columns: Columns, target: Target, folds: np.ndarray) -> list[str]:
    """Lines for a reader. `files.train` holds the labelled rows, in the order of `folds`."""
    outputs = _outputs(target, truth(target, files.train.rows))
    looks: list[Callable[[], list[str]]] = [
        lambda: _in_test(files, columns),
        lambda: _copies(files.train, columns, target, folds),
        lambda: _groups(files, columns, folds),
        lambda: _orders(files.train, columns, outputs),
        lambda: _giving(files.train, columns, outputs, folds),
    ]
    return [line for look in looks for line in look()] if len(files.train.rows) > 1 else []


class _Output:
    """One thing to be predicted: classes as numbers, or values."""

    def __init__(self, name: str, values: np.ndarray, are_classes: bool) -> None:
        self.name, self.values, self.are_classes = name, values, are_classes


def _outputs(target: Target, found: np.ndarray) -> list[_Output]:
    if target.kind in ("multilabel", "regression"):
        classes = target.kind == "multilabel"
        return [_Output(name, found[:, k], classes) for k, name in enumerate(target.names)][:OUTPUTS]
    return [_Output(target.columns[0], np.unique(found, return_inverse=True)[1], True)]


def _named(table: Table, columns: Columns, rows: Sequence[int]) -> str:
    """The first few rows by id, or by their place."""
    own = columns.id if columns.id in table.columns else None
    names = [table.rows[row][own] if own else f"row {row + 1}" for row in rows[:SHOWN]]
    return ", ".join(names) + (", …" if len(rows) > SHOWN else "")


# Copies and groups


def _keys(table: Table, columns: Sequence[str]) -> list[bytes | None]:
    """Equal for copies; None where all the cells are empty."""
    made = []
    for row in table.rows:
        cells = [row.get(column, "") for column in columns]
        made.append(key(Record({"cells": cells})) if any(cell.strip() for cell in cells) else None)
    return made


def _features(columns: Columns) -> tuple[str, ...]:
    return (*columns.texts, *columns.categories, *columns.numbers)


def _in_test(files: Files, columns: Columns) -> list[str]:
    read = columns.texts or _features(columns)
    there = set(_keys(files.test, read)) - {None}
    rows = [row for row, one in enumerate(_keys(files.train, read)) if one in there]
    if not rows:
        return []
    what = "texts" if columns.texts else "columns"
    named = _named(files.train, columns, rows)
    return [f"{len(rows)} of {len(files.train.rows)} rows of train have the {what} of a row of test: {named}"]


def _copies(train: Table, columns: Columns, target: Target, folds: np.ndarray) -> list[str]:
    groups = defaultdict(list)
    for row, one in enumerate(_keys(train, _features(columns))):
        if one is not None:
            groups[one].append(row)
    copied = [rows for rows in groups.values() if len(rows) > 1]
    lines = []
    apart = [rows for rows in copied if len({tuple(train.rows[row][c] for c in target.columns) for row in rows}) > 1]
    if apart:
        rows = [row for group in apart for row in group]
        lines.append(
            f"{len(rows)} rows of train are copies of one another with different targets: {_named(train, columns, rows)}"
        )
    parted = [rows for rows in copied if len(set(folds[rows])) > 1]
    if parted:
        rows = [row for group in parted for row in group]
        lines.append(f"{len(rows)} rows of train have a copy in another fold: {_named(train, columns, rows)}")
    return lines


def _groups(files: Files, columns: Columns, folds: np.ndarray) -> list[str]:
    own = columns.group
    if own is None:
        return []
    places = defaultdict(set)
    for row, fold in zip(files.train.rows, folds, strict=True):
        places[row[own]].add(int(fold))
    lines = []
    both = sorted(set(places) & {row[own] for row in files.test.rows}) if own in files.test.columns else []
    if both:
        lines.append(f"{len(both)} of {len(places)} groups of {own!r} are in train and in test: {_few(both)}; folds that keep "
                     "groups apart are then harder than test")  # fmt: skip
    several = [group for group, found in places.items() if len(found) > 1]
    if several:
        lines.append(f"{len(several)} groups of {own!r} are in several folds: {_few(several)}")
    return lines


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (", …" if len(names) > SHOWN else "")


# Orders


def _orders(train: Table, columns: Columns, outputs: Sequence[_Output]) -> list[str]:
    by_row = np.arange(len(train.rows))
    orders = {"the order of the rows": by_row}
    if columns.id in train.columns:
        ids = [row[columns.id or ""] for row in train.rows]
        by_id = np.array(sorted(range(len(ids)), key=lambda row: (_number(ids[row]), ids[row])))
        if (by_id == by_row).all():
            orders = {f"the order of the rows, which is that of {columns.id!r},": by_row}
        else:
            orders[f"the order of {columns.id!r}"] = by_id
    found = ((what, one, _told(one, one.values[order])) for what, order in orders.items() for one in outputs)
    return [f"{what} tells {one.name!r}: {how}" for what, one, how in found if how]


def _number(name: str) -> float:
    """The last number in an id."""
    digits = re.findall(r"\d+", name)
    return float(digits[-1][:300]) if digits else float("inf")


def _told(output: _Output, values: np.ndarray) -> str:
    """How the order of these values is not one of chance; nothing where it may be."""
    count = len(values)
    if count < 20 or np.ptp(values) == 0:
        return ""
    if not output.are_classes:
        places = {
            "neighbours": (values[1:], values[:-1]),
            "the place in the file and the target": (np.arange(count), _ranks(values)),
        }
        for what, pair in places.items():
            r = float(np.corrcoef(*pair)[0, 1]) if min(map(np.ptp, pair)) > 0 else 0.0
            if abs(r) > max(NOTABLE, SIGMAS / np.sqrt(count)):
                return f"{what} correlate by {r:.2f}".replace("-", "−")
        return ""
    same = float(np.mean(values[1:] == values[:-1]))
    shares = np.bincount(values) / count
    chance = float(shares @ shares)
    possible = (1 - chance) if same > chance else chance
    far = abs(same - chance)
    if far > NOTABLE * possible and far > SIGMAS * np.sqrt(chance * (1 - chance) / count):
        return f"neighbours have the same one in {same:.0%} of the pairs, by chance in {chance:.0%}"
    return ""


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1]


# Columns


def _giving(train: Table, columns: Columns, outputs: Sequence[_Output], folds: np.ndarray) -> list[str]:
    looked = {f"the column {name!r}": [row[name] for row in train.rows] for name in _features(columns)[:COLUMNS]}
    if columns.id in train.columns:
        looked[f"{columns.id!r} without its digits"] = [re.sub(r"\d+", "", row[columns.id or ""]) for row in train.rows]
    numeric = {f"the column {name!r}" for name in columns.numbers}
    lines = []
    for what, cells in looked.items():
        if len(set(cells)) < 2:
            continue
        numbers = _floats(cells) if what in numeric else None
        for one in outputs:
            found = _by_cell(one, cells, folds) if numbers is None else _by_tree(one, numbers, folds)
            if (share := _explained(one, found)) is not None:
                lines.append(f"{what} alone gives {one.name!r}: {share}, out of fold")
    return lines


def _floats(cells: Sequence[str]) -> np.ndarray:
    """NaN of what is no number."""

    def read(cell: str) -> float:
        try:
            return float(cell)
        except ValueError:
            return float("nan")

    return np.array([read(cell) for cell in cells])


def _explained(output: _Output, found: np.ndarray) -> str | None:
    """The share of right rows, or R², if the column gives the target; the most frequent class alone doesn't count."""
    values = output.values
    if np.ptp(values) == 0:
        return None
    if output.are_classes:
        right = float(np.mean(found == values))
        usual = np.bincount(values).max() / len(values)
        return f"{right:.1%} of the rows are right" if right >= GIVES and 1 - right <= 0.1 * (1 - usual) else None
    share = 1 - float(np.mean((found - values) ** 2) / values.var())
    return f"R² is {share:.4f}" if share >= GIVES else None


def _by_cell(output: _Output, cells: Sequence[str], folds: np.ndarray) -> np.ndarray:
    """For each row the most frequent class, or the mean, of the other folds' rows with its cell."""
    found = np.zeros(len(cells), output.values.dtype)
    for fold in np.unique(folds):
        seen = defaultdict(list)
        for cell, value, at in zip(cells, output.values, folds, strict=True):
            if at != fold:
                seen[cell].append(value)
        usual = _usual(output, [value for values in seen.values() for value in values])
        learned = {cell: _usual(output, values) for cell, values in seen.items()}
        for row in np.flatnonzero(folds == fold).tolist():
            found[row] = learned.get(cells[row], usual)
    return found


def _usual(output: _Output, values: Sequence[float]) -> float:
    return Counter(values).most_common(1)[0][0] if output.are_classes else float(np.mean(values))


def _by_tree(output: _Output, numbers: np.ndarray, folds: np.ndarray) -> np.ndarray:
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    found = np.zeros(len(numbers), output.values.dtype)
    with np.errstate(over="ignore"):  # trees count in float32
        column = np.clip(np.nan_to_num(numbers, nan=-3e38), -3e38, 3e38)[:, None]
    for fold in np.unique(folds):
        tree = (DecisionTreeClassifier if output.are_classes else DecisionTreeRegressor)(random_state=0)
        tree.fit(column[folds != fold], output.values[folds != fold])
        found[folds == fold] = tree.predict(column[folds == fold])
    return found
