"""What kind of target it is, by its cells, the sample's and the metric: AutoGluon's thresholds, and what they misread.

    several columns          of 0 and 1: multilabel, or classes where each row has one 1 and the sample has decimals; of numbers:
                             regression
    two values               binary
    words                    multiclass; numbers among words are refused
    numbers with decimals    regression
    whole numbers            few (5 % of the rows, 10 % up to 1,000 rows, at most 1,000): multiclass, else regression; levels from 0
                             or 1 on under a name such as score or rating: ordinal, so that near misses count less

The metric decides where it says more: qwk ordinal; rmse, mae, rmsle, mcrmse, pearson regression; and a sample with decimals under a
target of whole numbers. --task decides over all.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple, get_args

from bidora_jax.competitions import labels
from bidora_jax.competitions.columns import Guess, named
from bidora_jax.competitions.files import Files, Table
from bidora_jax.competitions.headers import Roles, output_keys
from bidora_jax.competitions.labels import number
from bidora_jax.competitions.measures import MEASURES
from bidora_jax.competitions.target import Kind, Target, Written
from bidora_jax.errors import InputError, did_you_mean, listing

MOST_CLASSES = 1000
ORDERED = re.compile(
    r"(?i:(^|.*[\W_])(score|scores|rating|ratings|grade|stars?|level|quality|severity|priority)([\W_].*|$))|.*Score|.*Rating"
)
"""Names of whole numbers whose order counts."""
MOST_LEVELS = 11
MOSTLY = 0.5
"""Cells that are numbers, from which on the others are taken for mistakes."""
DEFAULT: dict[Kind, str] = {
    "binary": "accuracy",
    "multiclass": "accuracy",
    "multilabel": "f1",
    "regression": "rmse",
    "ordinal": "qwk",
}
VALUES = ("rmse", "rmsle", "mae", "mcrmse", "pearson")


class Asked(NamedTuple):
    """What the user says of the target; empty: to be found."""

    task: str = ""
    metric: str = ""


class Cells(NamedTuple):
    """What a target's column holds, in train and in the sample."""

    name: str
    train: list[str]
    sample: list[str]
    path: object


def find(files: Files, roles: Roles, asked: Asked) -> tuple[Target, tuple[Guess, ...]]:
    """The target. InputError for cells that are no target, and for a task or a metric that does not fit them."""
    _check(asked)
    cells = [_cells(files, roles, at) for at in range(len(roles.targets))]
    kind, reason = _kind(cells, roles, asked)
    names, variants = _names(cells, kind)
    written, how = _written(cells, roles, kind, names, asked.metric)
    metric, why = _metric(asked.metric, kind, written, len(names))
    target = Target(kind, roles.targets, tuple(names), written, metric, roles.outputs, metric == "rmsle", variants)
    if target.log and (below := [cell for one in cells for cell in one.train if (number(cell) or 0.0) < 0]):
        raise InputError(
            f"--metric rmsle is for values from 0 on; {roles.targets[0]!r} of {files.train.path} holds {below[0]}"
        )
    guesses = [
        Guess("task", kind, reason, "--task"),
        *_of_names(target, roles),
        Guess("written", written, how, "--metric"),
    ]
    return target, (*guesses, Guess("metric", metric, why, "--metric"))


def _check(asked: Asked) -> None:
    for flag, value, known in (("--task", asked.task, get_args(Kind)), ("--metric", asked.metric, tuple(MEASURES))):
        if value and value not in known:
            raise InputError(f"{flag} must be one of {', '.join(known)}, found {value!r}{did_you_mean(value, known)}")


def _cells(files: Files, roles: Roles, at: int) -> Cells:
    name, train, sample = roles.targets[at], files.train, files.sample
    found = [row[name] for row in train.rows if row[name].strip()]
    if not found:
        raise InputError(
            f"{train.path}: the target {name!r} is empty in all {len(train.rows)} rows; expected what is to be learned; name "
            "another column with --target, or get the file anew"
        )
    shown = sample.cells(roles.outputs[at]) if sample and not roles.by_class else []
    return Cells(name, found, shown, train.path)


# Kind


def _kind(cells: Sequence[Cells], roles: Roles, asked: Asked) -> tuple[Kind, str]:
    if asked.task:
        return _asked_kind(cells, roles, asked.task)
    if len(cells) > 1:
        for one in cells:
            _refuse_words(one, "several targets are numbers: 0 and 1, or values")
        if all({number(cell) for cell in one.train} <= {0.0, 1.0} for one in cells) and asked.metric not in VALUES:
            if _one_class_a_row(cells) and (
                _decimals(cells) or (asked.metric and MEASURES[asked.metric].needs == "probabilities")
            ):
                kind = "multiclass" if len(cells) > 2 else "binary"
                return kind, f"each row has a 1 in one of {len(cells)} columns, and probabilities are wanted"
            return "multilabel", f"{len(cells)} targets of 0 and 1"
        return "regression", f"{len(cells)} targets of numbers"
    (one,) = cells
    keys = {labels.key(cell) for cell in one.train}
    if len(keys) == 1:
        raise InputError(
            f"{one.path}: the target {one.name!r} is {one.train[0]!r} in every row; expected two values at least; name "
            "another column with --target"
        )
    if len(keys) == 2 and asked.metric in VALUES and all(number(cell) is not None for cell in one.train):
        return "regression", f"--metric {asked.metric} is for numbers"
    if roles.by_class or len(keys) == 2:
        return ("binary" if len(keys) == 2 else "multiclass"), f"{len(keys)} different values"
    share = sum(number(cell) is not None for cell in one.train) / len(one.train)
    if share == 1:
        return _kind_of_numbers(one, len(keys), asked.metric)
    if share >= MOSTLY:
        _refuse_words(one, "or classes, if you say so with --task multiclass")
    if len(keys) > MOST_CLASSES or len(keys) > len(one.train) / 2:
        raise InputError(
            f"{one.path}: the target {one.name!r} has {len(keys):,} different texts in {len(one.train):,} rows, such as "
            f"{one.train[0][:60]!r}; expected numbers, or at most {MOST_CLASSES:,} classes with two rows each on average; name "
            "another column with --target"
        )
    return "multiclass", f"{len(keys)} different values, which are words"


def _one_class_a_row(cells: Sequence[Cells]) -> bool:
    """Whether each row has a 1 in one column and 0 in all others."""
    complete = len({len(one.train) for one in cells}) == 1
    return complete and all(sum(map(float, row)) == 1 for row in zip(*(one.train for one in cells), strict=True))


def _decimals(cells: Sequence[Cells]) -> bool:
    """Whether the sample has a number with decimals."""
    values = [number(cell) for one in cells for cell in one.sample]
    return any(value is not None and not value.is_integer() for value in values)


def _kind_of_numbers(one: Cells, different: int, metric: str) -> tuple[Kind, str]:
    values = sorted({number(cell) or 0.0 for cell in one.train})
    if metric == "qwk":
        return "ordinal", "--metric qwk is for levels"
    if metric in VALUES:
        return "regression", f"--metric {metric} is for numbers"
    if not all(value.is_integer() for value in values):
        return (
            "regression",
            f"numbers with decimals, such as {next(c for c in one.train if not (number(c) or 0.0).is_integer())}",
        )
    if _decimals([one]):
        return "regression", "whole numbers, and the sample submission has decimals"
    steps = values[-1] - values[0] == len(values) - 1 and values[0] in (0.0, 1.0)
    if steps and len(values) <= MOST_LEVELS and ORDERED.fullmatch(one.name):
        return "ordinal", f"levels from {values[0]:.0f} to {values[-1]:.0f}, and the name says that their order counts"
    rows = len(one.train)
    limit = 0.05 if rows > 1000 else 0.1
    if different <= limit * rows and different <= MOST_CLASSES:
        return "multiclass", f"{different} different whole numbers in {rows:,} rows; ordinal if their order counts"
    return "regression", f"{different:,} different whole numbers in {rows:,} rows"


def _asked_kind(cells: Sequence[Cells], roles: Roles, task: str) -> tuple[Kind, str]:
    kind = next(kind for kind in get_args(Kind) if kind == task)
    one, several = cells[0], len(cells) > 1
    if several and kind not in ("multilabel", "regression") and not (kind != "ordinal" and _one_class_a_row(cells)):
        raise InputError(f"--task {task} is for one target, found {named(roles.targets)}; name one with --target")
    if kind == "multilabel" and not several:
        raise InputError(
            f"--task multilabel needs a column of 0 and 1 for each label, found {one.name!r} alone; write the labels as columns, "
            f"and name them: --target {one.name}_1 --target {one.name}_2"
        )
    for each in cells if kind in ("regression", "ordinal", "multilabel") else ():
        _refuse_words(each, f"as --task {task} needs")
    if kind == "multilabel" and not all({number(cell) for cell in each.train} <= {0.0, 1.0} for each in cells):
        raise InputError(f"--task multilabel needs columns of 0 and 1, found others among {named(roles.targets)}")
    keys = {labels.key(cell) for cell in one.train} if not several else set(roles.targets)
    if kind == "binary" and len(keys) != 2:
        raise InputError(
            f"--task binary needs a target of two values, and {one.name!r} has {len(keys)}; try --task multiclass"
        )
    if kind == "multiclass" and len(keys) < 2:
        raise InputError(
            f"--task multiclass needs a target of several values, and {one.name!r} has one; name another: --target"
        )
    return kind, "asked for"


def _refuse_words(one: Cells, expected: str) -> None:
    """InputError for a target in which words stand among the numbers."""
    words = [cell for cell in dict.fromkeys(one.train) if number(cell) is None]
    if words:
        count = sum(number(cell) is None for cell in one.train)
        raise InputError(
            f"{one.path}: the target {one.name!r} holds {count} of {len(one.train)} cells that are no number, expected numbers, "
            f"{expected}; correct these rows, or leave them out or their target empty:\n{listing(map(repr, words))}"
        )


# Names


def _names(cells: Sequence[Cells], kind: Kind) -> tuple[list[str], dict[str, str]]:
    """(classes, levels, or names of labels and values; other spellings of a class)."""
    if kind in ("multilabel", "regression") or len(cells) > 1:
        return [one.name for one in cells], {}
    return labels.spellings(cells[0].train)


def _of_names(target: Target, roles: Roles) -> list[Guess]:
    if target.kind in ("multilabel", "regression") or len(target.columns) > 1:
        return []
    reason = "as train writes them"
    if target.variants:
        merged = ", ".join(f"{one!r} is {name!r}" for one, name in list(target.variants.items())[:3])
        reason += f"; {merged}{', …' * (len(target.variants) > 3)}"
    positive = f"; a probability is that of {target.names[1]!r}" if target.kind == "binary" else ""
    return [
        Guess("classes" if target.kind != "ordinal" else "levels", named(target.names, 6), reason + positive, "--task")
    ]


# What the submission holds


def _written(cells: Sequence[Cells], roles: Roles, kind: Kind, names: list[str], metric: str) -> tuple[Written, str]:
    if roles.by_class or (kind in ("binary", "multiclass") and len(cells) > 1):
        return "probabilities", "a column for each class"
    if kind == "regression":
        return "values", "of a regression"
    shown = [cell for one in cells for cell in one.sample]
    numbers = [number(cell) for cell in shown]
    decimals = _decimals(cells)
    if kind == "ordinal":
        return ("values", "the sample submission has decimals") if decimals else ("label", "levels are whole")
    needs = MEASURES[metric].needs if metric else ""
    if kind in ("binary", "multilabel"):
        if decimals:
            return "probability", "the sample submission has decimals"
        if needs == "probabilities":
            return "probability", f"--metric {metric} is of probabilities"
        spelt = set(labels.spelled(names, shown).values()) if kind == "binary" else {"0", "1", "0.0", "1.0"}
        between = all(value is not None and 0 <= value <= 1 for value in numbers)
        if shown and between and not set(shown) <= spelt:
            return "probability", f"the sample submission has {shown[0]!r}, which is no class"
    return "label", "the sample submission has whole values or classes" if shown else "no sample says otherwise"


def _metric(metric: str, kind: Kind, written: Written, outputs: int) -> tuple[str, str]:
    if metric:
        if kind not in MEASURES[metric].kinds:
            known = [name for name, one in MEASURES.items() if kind in one.kinds]
            raise InputError(
                f"--metric {metric} is not for a {kind} target; expected one of {', '.join(known)}, or another --task"
            )
        return metric, "asked for"
    if written == "probabilities":
        return "logloss", "of probabilities of all classes; the files don't say it"
    if written == "probability":
        return "auc", "of probabilities; the files don't say it"
    if kind == "ordinal" and written == "values":
        return "rmse", "of values; the files don't say it"
    if kind == "regression" and outputs > 1:
        return "mcrmse", "of several values; the files don't say it"
    return DEFAULT[kind], f"the usual one of a {kind} target; the files don't say it"


def sample_spelling(sample: Table | None, target: Target) -> dict[str, str]:
    """Class or level -> its spelling in the submission."""
    shown = sample.cells(target.outputs[0]) if sample and target.written == "label" else []
    return labels.spelled(target.names, shown)


def class_outputs(target: Target) -> dict[str, int]:
    """Output of a submission with a column for each class -> the class's number; none for a class that train lacks."""
    name, *others = target.columns
    if others:
        return {output: number for number, output in enumerate(target.outputs)}
    keys = {labels.key(name): number for number, name in enumerate(target.names)}
    return {output: keys[key] for key, output in output_keys(name, target.outputs).items() if key in keys}
