"""Which rows are held out together: folds that are stratified, with copies of a text and groups on one side.

    unit      rows that share a text or a group; all of it is in one fold
    stratum   the class of a row; of several labels each one; of a number its tenth of all

Units are dealt out stratum by stratum, the rarest first and within one the largest first, each to the fold that has least of what
the unit holds, and of equal ones to the smallest. So a class is as even over the folds as its units allow, and so are their sizes.
A class of one unit is in one fold alone; when that is held out, nothing has learned it.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from bidora_jax.competitions.target import Target, truth
from bidora_jax.data.labelled_splits import linked

BINS = 10
"""Parts of equal size that values are divided into."""


def assign(
    target: Target,
    rows: Sequence[Mapping[str, str]],
    texts: Sequence[tuple[str, ...]],
    group: str | None,
    folds: int,
    seed: int,
) -> Int[np.ndarray, " N"]:
    """The fold of each row, from 0 on. `texts` are the rows' inputs."""
    keys = ["\0".join(" ".join(part.split()) for part in one).encode("utf-8", "surrogatepass") for one in texts]
    units = linked(keys, [row[group] if group else None for row in rows])
    of_row = strata(target, rows)
    inside = [Counter(name for row in unit for name in of_row[row]) for unit in units]
    total = Counter(name for found in of_row for name in found)
    order = np.random.default_rng(seed).permutation(len(units)).tolist()
    rarest = {unit: min(inside[unit], key=lambda name: (total[name], name)) for unit in order}
    order.sort(key=lambda unit: (total[rarest[unit]], rarest[unit], -len(units[unit])))
    held: list[Counter[str]] = [Counter() for _ in range(folds)]
    sizes, found = [0] * folds, np.full(len(rows), -1)
    for unit in order:
        shares = [sum(have[name] / total[name] * count for name, count in inside[unit].items()) for have in held]
        fold = min(range(folds), key=lambda fold: (shares[fold], sizes[fold], fold))
        held[fold] += inside[unit]
        sizes[fold] += len(units[unit])
        found[units[unit]] = fold
    return found


def strata(target: Target, rows: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """The strata of each row."""
    values = truth(target, rows)
    if target.kind == "multilabel":
        return [[str(label) for label in np.flatnonzero(row)] or [""] for row in values]
    if target.kind == "regression":
        ranks = np.argsort(np.argsort(values[:, 0], kind="stable"), kind="stable")
        return [[str(part)] for part in (ranks * min(BINS, len(rows)) // len(rows)).tolist()]
    return [[str(value)] for value in values.tolist()]


def described(target: Target, rows: Sequence[Mapping[str, str]], folds: Int[np.ndarray, " N"]) -> list[str]:
    """Lines on the folds: their sizes, and classes that a fold alone holds."""
    sizes = np.bincount(folds).tolist()
    lines = [f"{len(sizes)} folds of {min(sizes)} to {max(sizes)} rows" if min(sizes) < max(sizes) else
             f"{len(sizes)} folds of {sizes[0]} rows"]  # fmt: skip
    if target.kind in ("binary", "multiclass"):
        where = defaultdict(set)
        for number, fold in zip(truth(target, rows).tolist(), folds.tolist(), strict=True):
            where[target.names[number]].add(fold)
        alone = [name for name, found in where.items() if len(found) == 1]
        if alone:
            named = ", ".join(map(repr, alone[:8])) + ", …" * (len(alone) > 8)
            lines.append(
                f"all rows of {named} are copies of one another, one group, or one row: no fold's score can count on them"
            )
    return lines
