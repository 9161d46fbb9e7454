"""The labels of a run: its classes, collected from train, or those of a head that is kept; and the label of a record as numbers.

Classes that are numbers stand in the order of their size, others in that of the alphabet, with the tag O first; of classes that are
columns, or places in a list, that order is kept. Regression is trained on (value − mean) / std, mean and std being those of train.

    refused     one class or value only, a class of val or test that train does not have, tags that fit no scheme
    said        how many rows a class has, classes of one row, copies with other labels
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from bidora_jax.data.label_values import DIVIDERS, LabelReading, names_of
from bidora_jax.data.labelled_records import LabelledRecord
from bidora_jax.data.labels import OUTSIDE, Labels
from bidora_jax.data.records import in_records
from bidora_jax.errors import InputError, did_you_mean, listing

SPANS = re.compile(r"[BIESLU]-\S+")
SHOWN = 12
"""Classes that a note names."""


def collect(
    train: Sequence[LabelledRecord], how: LabelReading, names: Sequence[str] | None = None
) -> tuple[Labels, list[str]]:
    """The labels of train, and what a user should know of them. `names` are the classes that are set, or those of a
    head that is kept; of regression, what the numbers are called.

    Raises InputError where there is nothing to tell apart, and where the labels do not fit one another.
    """
    if how.type == "regression":
        return _regression(train, how, names)
    counts = Counter(name for record in train for name in classes(record))
    notes = _check_scheme(train) if how.type == "tokens" else []
    labels = Labels(how.type, tuple(_ordered(train, how, counts) if names is None else names))
    number = Numbers(labels)
    if unknown := [record for record in train if any(number.of(name) is None for name in classes(record))]:
        raise InputError(_unknown({"train": unknown}, number, "the head"))
    met = {number.of(name) for name, count in counts.items() if count}
    if len(met) < (1 if how.type == "multilabel" else 2):
        only = next(iter(counts), "none")
        raise InputError(
            f"every training row has the {'tag' if how.type == 'tokens' else 'label'} {only!r}, so there is nothing to tell apart; "
            "give rows of another one, or name the right column with --data.label-columns"
        )
    return labels, [*_counted(labels, counts, len(train), how), *notes]


def check(parts: Mapping[str, Sequence[LabelledRecord]], labels: Labels, whose: str = "train") -> None:
    """Raises InputError that names every row of val and test whose class train does not have, or of a file for a model."""
    if labels.type == "regression":
        for use, records in parts.items():
            wrong = [r for r in records if isinstance(r.target, list) and len(r.target) != labels.count]
            if wrong:
                raise InputError(
                    f"{use}: {in_records([r.place for r in wrong])} have other than {labels.count} numbers"
                )
        return
    number = Numbers(labels)
    unknown = {
        use: [record for record in records if any(number.of(name) is None for name in classes(record))]
        for use, records in parts.items()
    }
    if any(unknown.values()):
        raise InputError(_unknown({use: found for use, found in unknown.items() if found}, number, whose))


def classes(record: LabelledRecord) -> Iterator[str]:
    """The classes or tags that a record's label names."""
    found = record.target
    if isinstance(found, str):
        yield found
    elif isinstance(found, dict):
        yield from (name for name, share in found.items() if share)
    elif found:
        yield from map(str, found)


class Numbers:
    """The number of a class by its text. 1 stands for 1.0 where only one of them is a class, and for LABEL_1, as transformers names
    classes that have no name."""

    def __init__(self, labels: Labels) -> None:
        self._by_name = {name: index for index, name in enumerate(labels.names)}
        self.names = labels.names
        values = [_size(name) for name in labels.names]
        self._by_size = {
            value: index for index, value in enumerate(values) if value is not None and values.count(value) == 1
        }
        if labels.names == tuple(f"LABEL_{index}" for index in range(labels.count)):
            self._by_size = {float(index): index for index in range(labels.count)}

    def of(self, name: str) -> int | None:
        found = self._by_name.get(name)
        size = _size(name)
        return self._by_size.get(size) if found is None and size is not None else found

    def known(self, name: str) -> int:
        """The same of a class that is there: what is not, `check` has refused."""
        found = self.of(name)
        assert found is not None, name
        return found


def vector(record: LabelledRecord, labels: Labels, number: Numbers) -> Float32[np.ndarray, " C"]:
    """What a head learns of a text: shares of the classes, 0 or 1 for each, or standardised numbers; NaN without a label."""
    found = np.zeros(labels.count, np.float32)
    if record.target is None:
        return found + np.float32(np.nan)
    if labels.type == "regression":
        values = np.asarray(record.target, np.float64)
        return ((values - labels.mean) / np.asarray(labels.std)).astype(np.float32)
    if isinstance(record.target, dict):
        for name, share in record.target.items():
            if share:
                found[number.known(name)] += share
        return found
    for name in classes(record):
        found[number.known(name)] = 1.0
    return found


# Of train


def _size(name: str) -> float | None:
    try:
        return float(name) if "_" not in name else None
    except ValueError:
        return None


def _ordered(train: Sequence[LabelledRecord], how: LabelReading, counts: Counter[str]) -> list[str]:
    if how.vectors or (len(how.columns) > 1 and how.type != "tokens"):
        width = len(how.columns)
        if how.vectors:
            width = 1 + max((int(name) for name in counts), default=0)
        return list(names_of(how, width))
    found = dict.fromkeys(name for record in train for name in _named(record))
    sizes = {name: _size(name) for name in found}
    if all(size is not None and size == size for size in sizes.values()):
        return sorted(found, key=lambda name: (sizes[name], name))
    return sorted(found, key=lambda name: (name != OUTSIDE, name)) if how.type == "tokens" else sorted(found)


def _named(record: LabelledRecord) -> Iterator[str]:
    """The classes that a record names, those without a share among them."""
    yield from record.target if isinstance(record.target, dict) else classes(record)


def _regression(
    train: Sequence[LabelledRecord], how: LabelReading, given: Sequence[str] | None
) -> tuple[Labels, list[str]]:
    widths = {len(record.target) for record in train if isinstance(record.target, list)}
    if len(widths) > 1:
        odd = [r.place for r in train if isinstance(r.target, list) and len(r.target) != max(widths)]
        raise InputError(f"train: {in_records(odd)} have fewer than {max(widths)} numbers; each row needs as many")
    values = np.array([record.target for record in train], np.float64)
    names, mean, std = tuple(given or names_of(how, values.shape[1])), values.mean(axis=0), values.std(axis=0)
    if len(names) != len(mean):
        raise InputError(f"task.labels names {len(names)} values, {_some(names)}, and the records have {len(mean)}")
    constant = [f"{name} is {value:g} in every row" for name, value, one in zip(names, mean, std, strict=True)
                if not one > 1e-12 * abs(value)]  # fmt: skip
    if constant:
        raise InputError(
            f"train has nothing to predict: {', '.join(constant)}; name the right column with --data.label-columns"
        )
    lines = [
        f"{name}: mean {m:.4g}, standard deviation {s:.4g}, from {low:.4g} to {high:.4g} in train"
        for name, m, s, low, high in zip(names, mean, std, values.min(axis=0), values.max(axis=0), strict=True)
    ]
    return Labels("regression", tuple(names), tuple(mean.tolist()), tuple(std.tolist())), lines


def _counted(labels: Labels, counts: Counter[str], rows: int, how: LabelReading) -> Iterator[str]:
    """Lines on the classes of train: how often each is there, and which are there once or never."""
    number, totals = Numbers(labels), Counter()
    for name, count in counts.items():
        totals[number.of(name)] += count
    what = "tags" if how.type == "tokens" else "classes"
    by_count = [index for index, _ in totals.most_common(SHOWN)]
    shown = ", ".join(f"{labels.names[index]} {totals[index]:,}" for index in by_count)
    yield f"{labels.count} {what} in train: {shown}{', …' * (len(totals) > SHOWN)}"
    if once := [labels.names[index] for index, count in totals.items() if count == 1]:
        each = "word" if what == "tags" else "row"
        yield f"{what} with one {each} in train, which no split can share: {_some(once)}"
    if never := [name for index, name in enumerate(labels.names) if index not in totals]:
        yield f"{what} that no row of train has: {_some(never)}"
    alike = Counter(name.casefold() for name in labels.names)
    if twins := [name for name in labels.names if alike[name.casefold()] > 1]:
        yield f"{what} that differ in the letters' case alone: {_some(twins)}"
    several = [name for name in labels.names if _is_several(name, labels.names)]
    if how.type == "classification" and several:
        yield f"labels that are other labels put together: {_some(several)}; task.type multilabel takes them apart"
    numbers = all(_size(name) is not None for name in labels.names)
    if how.type == "classification" and labels.count > 2 and numbers and len(how.columns) == 1:
        yield "the classes are numbers, and their order is not used; task.type regression predicts a number"
    if how.type == "multilabel" and (all_rows := [labels.names[i] for i, n in totals.items() if n == rows]):
        yield f"classes that every row of train has: {_some(all_rows)}"


def _is_several(name: str, names: Sequence[str]) -> bool:
    parts = [part.strip() for part in DIVIDERS.split(name)]
    return len(parts) > 1 and set(parts) <= set(names)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + ", …" * (len(names) > SHOWN)


def _unknown(found: Mapping[str, Sequence[LabelledRecord]], number: Numbers, whose: str) -> str:
    lines, uses = [], " and ".join(found)
    for use, records in found.items():
        places: dict[str, list[str]] = {}
        for record in records:
            for name in dict.fromkeys(classes(record)):
                if number.of(name) is None:
                    places.setdefault(name, []).append(record.place)
        lines += [f"{use}: {name!r}{did_you_mean(name, number.names)}, {in_records(at)}" for name, at in places.items()]
    remedy = (
        "correct them, give train rows of these classes, or take the rows out" if whose == "train"
        else "give the data these names, or set task.labels, or train a new head (--task.head new)" if whose == "the head"
        else "give the file the model's names"
    )  # fmt: skip
    return (
        f"labels of {uses} that {whose} does not have:\n{listing(lines)}\n{whose} has {_some(number.names)}; {remedy}"
    )


# Tags


def _check_scheme(train: Sequence[LabelledRecord]) -> list[str]:
    """InputError for a tag without B- or I- among others with one; a line where spans begin with I-, as in CoNLL's own files."""
    tags = {tag for record in train for tag in classes(record)}
    spans = {tag for tag in tags if SPANS.fullmatch(tag)}
    outside = tags - spans - {OUTSIDE}
    if spans and outside:
        places = [
            f"{tag!r}, {in_records([r.place for r in train if tag in (r.target or ())])}" for tag in sorted(outside)
        ]
        raise InputError(
            f"tags are {OUTSIDE}, or B- and I- before a type, such as {min(spans)}; others are there:\n{listing(places)}\n"
            "correct them, or take those rows out"
        )
    if not spans:
        numbers = all(_size(tag) is not None for tag in tags)
        return ["the tags are numbers: spans and their F1 need names such as B-PER"] * numbers
    opened = [record.place for record in train if any(_opens_inside(record))]
    note = f"spans begin with I- in {in_records(opened)} (IOB1): they are read as seqeval reads them"
    return [note] if opened else []


def _opens_inside(record: LabelledRecord) -> Iterator[bool]:
    before = OUTSIDE
    for tag in classes(record):
        yield tag.startswith("I-") and (before == OUTSIDE or before[2:] != tag[2:])
        before = tag
