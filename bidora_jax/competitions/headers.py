"""Which column is the id and which are the targets: what the headers of train, test and the sample say together.

With a sample, as Kaggle reads a submission: the id is its column that test has too, the first one whose values differ; the
others are the targets. They are columns of train; or the values of one (a probability for each class); or the sample has another
name for train's only column that test lacks. Without a sample, the targets are what train has and test lacks (or has empty), and
the id is the column whose name or values say so. Where several could be meant, none is taken.
"""

import re
from typing import NamedTuple

from bidora_jax.competitions.columns import Chosen, Guess, check, named
from bidora_jax.competitions.files import Files, Table
from bidora_jax.competitions.labels import key, number
from bidora_jax.errors import InputError

NO_ID = "none"
"""What --id-column says for a submission without an id."""
ID_NAME = re.compile(r"(?i:(^|.*[\W_])(id|idx|index|key|uuid|guid))|.*[a-z]I[dD]|Unnamed: \d+|")
INDEX = re.compile(r"Unnamed: \d+|")
"""What pandas calls the index that it wrote, and its name in the file."""
TARGETS = ("target", "targets", "label", "labels", "y")
"""Names of a target among several columns that test lacks."""
MOST_CLASSES = 1000


class Roles(NamedTuple):
    id: str | None
    targets: tuple[str, ...]
    """Of train."""
    outputs: tuple[str, ...]
    """The submission's columns beside the id."""
    by_class: bool
    """Each output is a class of the one target."""
    guesses: tuple[Guess, ...]


def find(files: Files, chosen: Chosen) -> Roles:
    """The id and the targets. InputError where they are not there or can't be told, with the flag that tells."""
    check("--target", chosen.targets, files.train.path, files.train.columns)
    if chosen.id and chosen.id != NO_ID:
        check("--id-column", (chosen.id,), files.test.path, files.test.columns)
    found = _by_sample(files, files.sample, chosen) if files.sample else _by_difference(files, chosen)
    if found.id is not None:
        _check_id(files.test, found.id)
    return found


def _check_id(test: Table, name: str) -> None:
    cells = [row[name] for row in test.rows]
    if any(not cell.strip() for cell in cells):
        raise InputError(
            f"{test.path}: the id {name!r} is empty in {sum(not cell.strip() for cell in cells)} rows, expected one in each; "
            "fill them, or name another column with --id-column"
        )
    if len(set(cells)) < len(cells):
        seen: set[str] = set()
        twice = next(cell for cell in cells if cell in seen or seen.add(cell))
        raise InputError(
            f"{test.path}: the id {name!r} has {len(cells) - len(set(cells))} values twice, such as {twice!r}, expected one row an "
            "id; remove the copies, or name another column with --id-column"
        )


# With a sample


def _by_sample(files: Files, sample: Table, chosen: Chosen) -> Roles:
    test = files.test
    filled = [name for name in sample.columns if _has(files, name) and name not in chosen.targets]
    unique = [name for name in filled if _differs(test, name)]
    if chosen.id == NO_ID:
        own, reason = None, "asked for"
    elif chosen.id:
        own, reason = chosen.id, "named"
        if own not in sample.columns:
            raise InputError(f"--id-column names {own!r}, which {sample.path} lacks; it has {named(sample.columns)}")
    elif filled:
        own, reason = (unique or filled)[0], f"{test.path.name} has it, as {sample.path.name} does"
    else:
        raise InputError(
            f"{test.path} has no id: {sample.path.name} has the columns {named(sample.columns)}, of which one is expected in "
            f"{test.path.name}, and that has {named(test.columns)}; add it, or name the id with --id-column"
        )
    outputs = tuple(name for name in sample.columns if name != own and name not in filled)
    if not outputs:
        raise InputError(
            f"{sample.path} has no column for a target: all of {named(sample.columns)} are in {test.path.name}; expected an id and "
            "what is to be predicted; get the sample anew"
        )
    targets, why, by_class = _targets_of(files, sample, outputs, own, chosen)
    guesses = (Guess("id", own or "none", reason, "--id-column"), Guess("target", ", ".join(targets), why, "--target"))
    return Roles(own, targets, outputs, by_class, guesses)


def _has(files: Files, name: str) -> bool:
    """Whether test has the column, and not empty or with one value everywhere to be written over."""
    if name not in files.test.columns or not (cells := files.test.cells(name)):
        return False
    waits = len(cells) > 1 == len(set(cells)) and name in files.train.columns
    return not (waits and len(set(files.train.cells(name))) > 1)


def _targets_of(
    files: Files, sample: Table, outputs: tuple[str, ...], own: str | None, chosen: Chosen
) -> tuple[tuple[str, ...], str, bool]:
    """(columns of train, why, whether each output is a class)."""
    train = files.train
    there = [name for name in outputs if name in train.columns]
    if len(there) == len(outputs) and (not chosen.targets or chosen.targets == outputs):
        return outputs, f"{sample.path.name} has {'them' if outputs[1:] else 'it'} beside the id", False
    options: tuple[str, ...] = chosen.targets or tuple(
        name for name in train.columns if name != own and not _has(files, name)
    )
    classes = [name for name in options if len(outputs) > 1 and _are_classes(train, name, outputs)]
    if len(classes) == 1:
        return (classes[0],), f"its values are the columns of {sample.path.name}: a probability for each class", True
    if chosen.targets and len(chosen.targets) == len(outputs):
        return chosen.targets, f"named; {sample.path.name} calls it {', '.join(outputs)}", False
    if len(outputs) == len(options) == 1:
        reason = f"the only column that {files.test.path.name} lacks; {sample.path.name} calls it {', '.join(outputs)}"
        return options, reason, False
    raise InputError(
        f"{train.path} has no target that can be told: {sample.path.name} wants {named(outputs)}, "
        + (f"of which train has {named(there)}" if there else "none of which train has")
        + f"; what {files.test.path.name} lacks is {named(options) if options else 'nothing'}; name the columns to learn, one "
        f"for each or the one whose classes these are: --target {' '.join(options[:1]) or 'COLUMN'}"
    )


def _are_classes(train: Table, name: str, outputs: tuple[str, ...]) -> bool:
    """Whether every value of a column has its output: the value itself, or after the column's name (Status_C)."""
    values = {key(cell) for cell in train.cells(name)}
    return 1 < len(values) <= MOST_CLASSES and values <= output_keys(name, outputs).keys()


def output_keys(name: str, outputs: tuple[str, ...]) -> dict[str, str]:
    """Class, as labels.key has it -> the output that is its probability."""
    prefix = f"{name}_".casefold()
    after = {key(output[len(prefix) :]): output for output in outputs if output.casefold().startswith(prefix)}
    return after | {key(output): output for output in outputs}


# Without a sample


def _by_difference(files: Files, chosen: Chosen) -> Roles:
    train, test = files.train, files.test
    lacking = [name for name in train.columns if name != chosen.id and not (name in test.columns and test.cells(name))]
    targets, why = _lacking(files, chosen, lacking)
    own, reason = _own_id(files, chosen, lacking)
    guesses = (Guess("id", own or "none", reason, "--id-column"), Guess("target", ", ".join(targets), why, "--target"))
    return Roles(own, targets, targets, False, guesses)


def _lacking(files: Files, chosen: Chosen, lacking: list[str]) -> tuple[tuple[str, ...], str]:
    train, test = files.train, files.test
    if chosen.targets:
        return chosen.targets, "named"
    found = [name for name in lacking if not ID_NAME.fullmatch(name)] or lacking
    if not found:
        raise InputError(
            f"{train.path} has no target: {test.path.name} has all of its columns, {named(train.columns)}; expected a column more "
            f"than {test.path.name} has; name the one to learn with --target"
        )
    if len(found) == 1:
        has = "has empty" if found[0] in test.columns else "lacks"
        return (found[0],), f"the only column of {train.path.name} that {test.path.name} {has}"
    called = [name for name in found if name.casefold() in TARGETS]
    if len(called) == 1:
        return (called[0],), f"its name, among {len(found)} columns that {test.path.name} lacks"
    if all(_are_numbers(train, name) for name in found):
        return tuple(found), f"the columns of numbers that {test.path.name} lacks"
    raise InputError(
        f"{train.path} has {len(found)} columns that {test.path.name} lacks, and not all are numbers: {named(found)}; expected one "
        f"target, or several of numbers; name what to learn: --target {found[-1]}"
    )


def _own_id(files: Files, chosen: Chosen, lacking: list[str]) -> tuple[str | None, str]:
    test = files.test
    if chosen.id:
        return (None, "asked for") if chosen.id == NO_ID else (chosen.id, "named")
    features = [name for name in test.columns if name not in (*lacking, *chosen.targets, *chosen.texts)]
    unique = [name for name in features if _differs(test, name) and _differs(files.train, name)]
    by_name = [name for name in features if ID_NAME.fullmatch(name)]
    likely = [name for name in by_name if name in unique]
    for group, why in (
        ([name for name in likely if name.casefold() == "id"], "its name, and no value is there twice"),
        ([name for name in likely if not INDEX.fullmatch(name)], "its name, and no value is there twice"),
        ([name for name in unique if name not in likely and _codes(files, name)], "no value is there twice"),
        ([name for name in likely if INDEX.fullmatch(name)], "the row numbers of the file"),
        ([name for name in by_name if name.casefold() == "id"], "its name"),
    ):
        if len(group) == 1:
            return group[0], why
        if group:
            raise InputError(
                f"{len(group)} columns of {test.path} could be the id: {named(group)}; expected one, and there is no sample "
                f"submission to tell; name it with --id-column {group[0]}"
            )
    raise InputError(
        f"{test.path} has no id: none of its columns {named(test.columns)} has another value in each row and is no text; expected "
        f"one to name rows by; add it, or name it with --id-column, or write a submission without: --id-column {NO_ID}"
    )


def _differs(table: Table, name: str) -> bool:
    """Whether a column has another value in each row; one that the table lacks says nothing against it."""
    if name not in table.columns:
        return True
    cells = table.cells(name)
    return len(cells) == len(table.rows) == len(set(cells))


def _codes(files: Files, name: str) -> bool:
    """Whether a column's values are whole numbers or single words with a digit, as ids are."""
    cells = files.test.cells(name)
    return all(re.fullmatch(r"\S*\d\S*", cell) and not re.fullmatch(r"[-+]?\d*\.\d+", cell) for cell in cells[:1000])


def _are_numbers(table: Table, name: str) -> bool:
    return all(number(cell) is not None for cell in table.cells(name))
