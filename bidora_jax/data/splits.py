"""Sources -> the train, val and test splits of a run: which record is in which split, how often, and which are copies.

    copies          records with the same texts in the same order; blanks and Unicode's composition do not count
    val_fraction    copies of a record are put on the same side, so that no record is on both
    duplicates      copies between and within the splits are reported, left out of train, or refused
    weight w        a source's records are seen ⌊w⌋ times an epoch, and a share w − ⌊w⌋ of them, drawn by the seed, once more

BiDoRA's upper level learns from val how the direction generalises. If val holds copies of train, it learns nothing new.
Everything is a function of the files, the settings and the seed.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Bool

from bidora_jax.data.encoding import records_of
from bidora_jax.data.records import Record, unused_keys
from bidora_jax.data.settings import DataConfig
from bidora_jax.data.sources import sources, text_files
from bidora_jax.errors import InputError, listing

SHOWN = 3  # copies named in a line of the report


class Part(NamedTuple):
    """One split; the lists are parallel."""

    records: list[Record]
    origins: list[str]
    """The source of each."""
    keys: list[bytes]
    """Equal for copies."""

    def take(self, indices: Sequence[int]) -> Self:
        """These records, in this order."""
        return self._replace(**{name: [column[i] for i in indices] for name, column in self._asdict().items()})


class Splits(NamedTuple):
    train: Part
    val: Part
    test: Part
    notes: list[str]
    """What a user should know of them, in lines."""


def wrong_settings(data: DataConfig) -> list[str]:
    """What is wrong with the settings themselves, in lines; no source is read."""
    count = len(names(data.train_file))
    wrong = []
    if data.weights and len(data.weights) != count:
        wrong.append(
            f"data.weights has {len(data.weights)} weights for the {count} sources of data.train_file: give one each"
        )
    if data.group_column and not data.val_fraction and not data.val_file:
        wrong.append("data.group_column keeps groups on one side of a split, and there is none: set data.val_fraction")
    if not all(0 < weight < float("inf") for weight in data.weights):
        wrong.append(f"data.weights must be above 0, found {', '.join(f'{weight:g}' for weight in data.weights)}")
    return wrong


def bare_names(data: DataConfig) -> list[str]:
    """Sources that are names alone, of no file here, in lines."""
    paths = [Path(name) for given in (data.train_file, data.val_file, data.test_file) for name in names(given)]
    return [
        f"there is no data file {path} here{text_files.full_name(path)}" for path in paths if text_files.is_bare(path)
    ]


def load(data: DataConfig, seed: int) -> Splits:
    """Reads every source into its split. Raises InputError for sources and rows that can't be used, and for an empty split."""
    given = {"train": data.train_file, "val": data.val_file, "test": data.test_file}
    found = {use: sources.scan_each(source) for use, source in given.items() if source}
    parts = {use: _part(one) for use, one in sources.rename(found, data.columns).items()}
    unused = [f"{use}: {line}" for use, part in parts.items() for line in unused_keys(part.records)]
    empty = Part([], [], [])
    train, val, test = (parts.get(use, empty) for use in given)
    train, first = first_samples(train, data.max_samples)
    if data.val_fraction:
        in_val = held_out(train.keys, data.val_fraction, seed)
        train, val = train.take(np.flatnonzero(~in_val).tolist()), train.take(np.flatnonzero(in_val).tolist())
    train, notes = without_copies({"train": train, "val": val, "test": test}, data.duplicates)
    train, shares = weighted(train, names(data.train_file), data.weights, seed)
    return Splits(train, val, test, first + unused + notes + shares)


def names(source: str | tuple[str, ...]) -> tuple[str, ...]:
    """The sources of a setting, which may be one text or several."""
    return (source,) if isinstance(source, str) else source


def first_samples(train: Part, most: int) -> tuple[Part, list[str]]:
    """At most the first `most` records, 0 for all, and a line that says so."""
    said = [f"train: the first {most} of {len(train.records)} records"] * bool(most)
    return train.take(range(len(train.records))[: most or None]), said


def _part(found: sources.Found) -> Part:
    read = records_of(found)
    records = [record for part in read.values() for record in part]
    origins = [source for source, part in read.items() for _ in part]
    return Part(records, origins, [key(record) for record in records])


# Splitting


def held_out(keys: Sequence[bytes], fraction: float, seed: int) -> Bool[np.ndarray, " N"]:
    """Which records go to val: a random `fraction`. Records with the same key stay together, so it can be somewhat less.

    Raises InputError when one side would be empty.
    """
    total, groups = round(len(keys) * fraction), {}
    for index, one in enumerate(keys):
        groups.setdefault(one, []).append(index)
    members, chosen = list(groups.values()), []
    for group in np.random.default_rng(seed).permutation(len(members)):
        if len(chosen) + len(members[group]) <= total:
            chosen += members[group]
    refuse_empty_side(len(chosen), len(keys), len(members), fraction)
    in_val = np.zeros(len(keys), dtype=bool)
    in_val[chosen] = True
    return in_val


def refuse_empty_side(chosen: int, count: int, different: int, fraction: float) -> None:
    """InputError where `chosen` of `count` records leave validation or training without any."""
    if not 0 < chosen < count:
        raise InputError(
            f"val_fraction = {fraction} of {count} records, {different} of them different, leaves {chosen} for "
            f"validation and {count - chosen} for training; each needs at least one: give more records, another "
            "fraction or a val_file"
        )


# Duplicates


def key(record: Record) -> bytes:
    """A hash of all texts in order, with each run of blanks as one space and accents composed. Copies have the same key.

    Keys that no token depends on don't count: rows that differ in an id alone train the same tokens.
    """
    texts = [" ".join(unicodedata.normalize("NFC", text).split()) for text in _texts(record)]
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).digest()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    else:
        yield str(value)


def copies(part: Part, of: Part | None = None) -> dict[int, Record]:
    """{index in `part`: its first copy in `of`}; without `of`, its first copy earlier in `part`."""
    if of is not None:
        first = dict(zip(reversed(of.keys), reversed(of.records), strict=True))
        return {i: first[one] for i, one in enumerate(part.keys) if one in first}
    first, again = {}, {}
    for i, (one, record) in enumerate(zip(part.keys, part.records, strict=True)):
        if one in first:
            again[i] = first[one]
        first.setdefault(one, record)
    return again


def without_copies(parts: dict[str, Part], policy: str) -> tuple[Part, list[str]]:
    """The training split, without copies where the policy drops them, and the lines of the report."""
    train, lines, out = parts["train"], [], set()
    uses = list(parts)
    for at, use in enumerate(uses):
        for other in (use, *uses[at + 1 :]):
            found = copies(parts[use], None if other == use else parts[other])
            if not found:
                continue
            dropped = policy == "drop" and use == "train"
            out |= found.keys() if dropped else set()
            where = "stand there twice" if other == use else f"are in {other} too"
            twins = [(parts[use].records[i], copy) for i, copy in found.items()]
            pairs = [f"{one.place} = {copy.place}" for one, copy in twins]
            named = ", ".join(pairs[:SHOWN]) + (", …" if len(pairs) > SHOWN else "")
            lines.append(f"duplicates: {len(pairs)} of {len(parts[use].records)} {use} records {where}"
                         f"{', and are left out' * dropped}: {named}{_apart(twins)}")  # fmt: skip
    if lines and policy == "refuse":
        raise InputError(
            f"data.duplicates is refuse, and there are some; take them out or set it to drop:\n{listing(lines)}"
        )
    if len(out) == len(train.records):
        raise InputError("every training record is in another split too:\n" + listing(lines) + "\ngive other files")
    return train.take([i for i in range(len(train.records)) if i not in out]) if out else train, lines


def _apart(twins: Sequence[tuple[Record, Record]]) -> str:
    """The keys, none of them used, in which copies differ."""
    differing = [{key for key, _ in one.unused.items() ^ copy.unused.items()} for one, copy in twins]
    keys = ", ".join(map(repr, sorted(set().union(*differing))))
    return f"; {sum(map(bool, differing))} of them differ in {keys}, which no token depends on" if keys else ""


# Mixing


def weighted(train: Part, given: Sequence[str], weights: Sequence[float], seed: int) -> tuple[Part, list[str]]:
    """The records as often as an epoch has them, source by source; and a line on each source's share where there are several."""
    if len(given) == 1 and not weights:
        return train, []
    rows, lines = [], []
    origins = np.array(train.origins)
    for number, (source, weight) in enumerate(zip(given, weights or [1.0] * len(given), strict=True)):
        own = np.flatnonzero(origins == source)
        drawn = repeated(len(own), weight, seed, number)
        rows += own[drawn].tolist()
        lines.append((f"{source}: {len(own)} records × {weight:g} = {len(drawn)} an epoch", len(drawn)))
    if not rows:
        raise InputError("data.weights leave no training record; give larger ones")
    return train.take(rows), [f"{line}, {drawn / len(rows):.0%}" for line, drawn in lines]


def repeated(count: int, weight: float, seed: int, number: int) -> list[int]:
    """Each index below `count` ⌊weight⌋ times, and a share weight − ⌊weight⌋ of them, drawn by (seed, number), once more."""
    whole = int(weight)
    drawn = np.random.default_rng([seed, number]).permutation(count)[: round((weight - whole) * count)]
    return [*np.tile(np.arange(count), whole).tolist(), *np.sort(drawn).tolist()]
