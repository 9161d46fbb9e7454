"""Cells of a target: which spellings mean one class, which are numbers, and in which order classes stand.

`number` and `key` remember what they have read: a column of classes has few different cells.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

WHOLE = re.compile(r"([-+]?)(0|[1-9][0-9]*)(?:\.0*)?")
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


@lru_cache(2**16)
def number(cell: str) -> float | None:
    """The number that a cell holds, or None. inf, nan and 1_000 are none."""
    cell = cell.strip()
    if not NUMBER.fullmatch(cell):
        return None
    value = float(cell)
    return value if math.isfinite(value) else None


@lru_cache(2**16)
def key(cell: str) -> str:
    """What spellings of one class share: 1, 1.0 and +1; yes, " Yes " and YES. A single letter keeps its case: a and A are two."""
    plain = " ".join(cell.split())
    if whole := WHOLE.fullmatch(plain):
        return whole[2] if whole[1] != "-" or whole[2] == "0" else f"-{whole[2]}"
    return plain.casefold() if len(plain) > 1 else plain


def spellings(cells: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(the classes, each by its most frequent spelling without blanks around it; every other spelling in the file -> its class)."""
    counts: dict[str, Counter[str]] = {}
    raw: dict[str, set[str]] = {}
    for cell in cells:
        counts.setdefault(key(cell), Counter())[cell.strip()] += 1
        raw.setdefault(key(cell), set()).add(cell)
    chosen = {name: min(found, key=lambda one: (-found[one], one)) for name, found in counts.items()}
    variants = {one: chosen[name] for name, found in raw.items() for one in sorted(found) if one != chosen[name]}
    return in_order(chosen.values()), variants


def in_order(names: Iterable[str]) -> list[str]:
    """Classes in their order: numbers by size, words by the alphabet, in which no, False, negative, ham stand before yes, True,
    positive, spam: a probability is of the second of two."""
    names = list(names)
    values = {name: number(name) for name in names}
    if all(value is not None for value in values.values()):
        return sorted(names, key=lambda name: (values[name], name))
    return sorted(names)


STYLES = (
    lambda name: name,
    lambda name: WHOLE.sub(r"\1\2", name) if WHOLE.fullmatch(name) else name,
    lambda name: f"{float(name)}" if WHOLE.fullmatch(name) else name,
    str.lower,
    str.upper,
    str.capitalize,
)
"""How a sample may spell train's classes: as they are, 1 for 1.0, 1.0 for 1, by case."""


def spelled(names: Sequence[str], sample: Iterable[str]) -> dict[str, str]:
    """Class -> how the sample submission spells it; as train does where the sample's values are not these classes."""
    shown = {cell.strip() for cell in sample}
    for style in STYLES:
        found = {name: style(name) for name in names}
        if shown and shown <= set(found.values()) and len(set(found.values())) == len(found):
            return found
    return {name: name for name in names}
