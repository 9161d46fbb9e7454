"""Labelled sources -> train, val and test, as data/splits.py makes them; a fraction is split off by class and by group.

    unit      records that share a text or a group; all of it is on one side
    stratum   the class of a record; of several labels each one; of a number its tenth of all; of tags the types of their spans

val has round(N_c · fraction) records of stratum c, and one at least where c has two units; the rarest strata choose first. train
keeps a unit of every stratum, so that no class is in val alone. With several labels a record, or groups, that is met as nearly as
the units allow. Copies are told by their texts: two with different labels contradict each other, which is said.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from bidora_jax.data import label_sets, labelled_records
from bidora_jax.data.labelled_records import LabelledRecord, Rows
from bidora_jax.data.labels import OUTSIDE, TaskType
from bidora_jax.data.records import in_records, unused_keys
from bidora_jax.data.settings import DataConfig
from bidora_jax.data.sources import sources
from bidora_jax.data.splits import Part, Splits, first_samples, key, names, refuse_empty_side, weighted, without_copies

BINS = 10
"""Parts of equal size that numbers are divided into, to be split evenly."""


class LabelledSplits(NamedTuple):
    how: Rows
    """How rows are read."""
    splits: Splits

    def records(self, use: str) -> list[LabelledRecord]:
        """The records of train, val or test."""
        return [one for one in getattr(self.splits, use).records if isinstance(one, LabelledRecord)]


def load(data: DataConfig, task: str, seed: int) -> LabelledSplits:
    """Reads every source into its split. `task` is a type of labels, or auto.

    Raises InputError for sources and rows that can't be used, where text and label can't be told, and for an empty split.
    """
    given = {"train": data.train_file, "val": data.val_file, "test": data.test_file}
    expected = labelled_records.expected_files(data, task)
    found = {use: sources.scan_each(source, expected) for use, source in given.items() if source}
    found = sources.rename(found, data.columns)
    how = labelled_records.how_to_read(found["train"], data, task)
    parts = {use: _part(labelled_records.read(one, how, data)) for use, one in found.items()}
    unused = [f"{use}: {line}" for use, part in parts.items() for line in unused_keys(part.records)]
    notes = [*how.columns.notes, f"{how.labels.type}: {how.labels.reason}", *unused]
    train, val, test = (parts.get(use, Part([], [], [])) for use in given)
    train, first = first_samples(train, data.max_samples)
    split_off = []
    if data.val_fraction:
        in_val = held_out(train, how.labels.type, data.val_fraction, seed)
        split_off = _lacking(train, in_val, how.labels.type, data.val_fraction)
        train, val = train.take(np.flatnonzero(~in_val).tolist()), train.take(np.flatnonzero(in_val).tolist())
    train, copies = without_copies({"train": train, "val": val, "test": test}, data.duplicates)
    copies += [*_contradictions({"train": train, "val": val}), *_shared_groups(train, val)]
    train, shares = weighted(train, names(data.train_file), data.weights, seed)
    return LabelledSplits(how, Splits(train, val, test, first + notes + split_off + copies + shares))


def _part(read: dict[str, list[LabelledRecord]]) -> Part:
    records = [record for part in read.values() for record in part]
    return Part([*records], [source for source, part in read.items() for _ in part], [key(one) for one in records])


def held_out(part: Part, task: TaskType, fraction: float, seed: int) -> Bool[np.ndarray, " N"]:
    """Which records go to val. Raises InputError when one side would be empty."""
    records = [record for record in part.records if isinstance(record, LabelledRecord)]
    units, of_record = linked(part.keys, [record.group for record in records]), strata(records, task, fraction)
    inside = [Counter(name for index in unit for name in of_record[index]) for unit in units]
    left = Counter(name for counted in inside for name in counted)  # units that train has yet
    want = _quotas(Counter(name for found in of_record for name in found), left, fraction)
    order = np.random.default_rng(seed).permutation(len(units)).tolist()
    room = max(round(len(records) * fraction), sum(want.values()) if all(len(found) == 1 for found in of_record) else 0)
    chosen, have, size = set(), Counter(), 0

    def take(unit: int, most: int) -> bool:
        nonlocal size
        counted = inside[unit]
        if unit in chosen or size + len(units[unit]) > most or any(left[name] < 2 for name in counted):
            return False
        chosen.add(unit)
        have.update(counted)
        left.subtract(counted.keys())
        size += len(units[unit])
        return True

    members = defaultdict(list)
    for unit in order:
        for name in inside[unit]:
            members[name].append(unit)
    for name in sorted(members, key=lambda name: (len(members[name]), name)):
        for unit in members[name]:
            if have[name] + inside[unit][name] <= want[name]:
                take(unit, room)
        if want[name] and not have[name]:  # every unit is larger than what is wanted, or was refused for another class
            any(take(unit, len(records) // 2) for unit in sorted(members[name], key=lambda unit: len(units[unit])))
    refuse_empty_side(size, len(records), len(units), fraction)
    in_val = np.zeros(len(records), dtype=bool)
    in_val[[index for unit in chosen for index in units[unit]]] = True
    return in_val


def strata(records: Sequence[LabelledRecord], task: TaskType, fraction: float) -> list[frozenset[str]]:
    """The strata of each record."""
    if task == "regression":
        first = np.array([record.target[0] if isinstance(record.target, list) else 0.0 for record in records], float)
        ranks = np.argsort(np.argsort(first, kind="stable"), kind="stable")
        bins = max(min(BINS, round(len(records) * min(fraction, 1 - fraction))), 1)
        return [frozenset([str(number)]) for number in (ranks * bins // len(records)).tolist()]
    if task == "tokens":
        spans = [[tag.partition("-")[2] or tag for tag in label_sets.classes(one) if tag != OUTSIDE] for one in records]
        return [frozenset(found or [OUTSIDE]) for found in spans]
    if task == "multilabel":
        return [frozenset(label_sets.classes(record)) or frozenset([""]) for record in records]
    shares = [record.target for record in records]
    return [frozenset([max(found, key=lambda name: found[name]) if isinstance(found, dict) else str(found)])
            for found in shares]  # fmt: skip


def linked(keys: Sequence[bytes], groups: Sequence[str | None]) -> list[list[int]]:
    """The records in sets that share a key or a group, also through others."""
    parent = list(range(len(keys)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[tuple[str, bytes | str], int] = {}
    for index, (one, group) in enumerate(zip(keys, groups, strict=True)):
        for mark in (("key", one), *([("group", group)] if group is not None else [])):
            parent[root(index)] = root(first.setdefault(mark, index))
    found: dict[int, list[int]] = {}
    for index in range(len(keys)):
        found.setdefault(root(index), []).append(index)
    return list(found.values())


def _quotas(counts: Counter[str], units: Counter[str], fraction: float) -> dict[str, int]:
    """Records of each stratum that val should have: the largest remainders are rounded up; one at least of two units."""
    exact = {name: count * fraction for name, count in counts.items()}
    found = {name: int(share) for name, share in exact.items()}
    missing = round(sum(exact.values())) - sum(found.values())
    for name in sorted(exact, key=lambda name: (found[name] - exact[name], name))[:missing]:
        found[name] += 1
    return {name: max(count, 1) if units[name] > 1 else 0 for name, count in found.items()}


def _lacking(part: Part, in_val: Bool[np.ndarray, " N"], task: TaskType, fraction: float) -> list[str]:
    """A line on the classes that val has no record of."""
    if task == "regression":
        return []
    of_record = strata([one for one in part.records if isinstance(one, LabelledRecord)], task, fraction)
    sides = [set().union(*(found for found, here in zip(of_record, in_val, strict=True) if here is np.bool_(side)))
             for side in (False, True)]  # fmt: skip
    lost = sorted(sides[0] - sides[1])
    return [f"val, split off train, has no record of {', '.join(map(repr, lost[:8]))}{', …' * (len(lost) > 8)}"] * bool(
        lost
    )


def _shared_groups(train: Part, val: Part) -> list[str]:
    """A line on groups that are in both parts, as they can be where val is a file of its own."""
    groups = [{one.group for one in part.records if isinstance(one, LabelledRecord)} for part in (train, val)]
    both = sorted(filter(None, groups[0] & groups[1]))
    return [f"groups in train and val: {', '.join(map(repr, both[:8]))}{', …' * (len(both) > 8)}"] * bool(both)


def _contradictions(parts: dict[str, Part]) -> list[str]:
    """A line on each split's copies whose labels differ."""
    lines = []
    for use, part in parts.items():
        targets: dict[bytes, list[LabelledRecord]] = {}
        for one, record in zip(part.keys, part.records, strict=True):
            if isinstance(record, LabelledRecord):
                targets.setdefault(one, []).append(record)
        places = [
            one.place
            for found in targets.values()
            if any(one.target != found[0].target for one in found)
            for one in found
        ]
        if places:
            lines.append(f"{use}: copies of a text with different labels, in {in_records(places)}")
    return lines
