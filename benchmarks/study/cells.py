"""The cells of the study: a method, a rate, a number of records and a seed on one data set, at an equal budget.

A run has n records. lora, rslora and dora train on all of them, bidora's direction on four fifths and its magnitude on a fifth,
and then its direction on all; dora-train is DoRA on the four fifths alone. A step has BATCH records of each split, and n and
n / 5 are multiples of it, so that records in a budget are tokens in it, up to the chance of what lengths are drawn.

The budget is of passes, records that a gradient is taken on; PASSES where no number is named. A step costs 1 (in batches) of lora
and dora, L + μ + 1 of bidora's search (bidora_jax/sweeps/budget.py: μ is 2 for the mixed product, 0 where there is none) and 1 of
its retrain. Search and retrain have as many steps each, but where a variant says otherwise.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

BATCH, PASSES = 10, 2000
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
TUNING, FINAL = (0, 1), (2, 3, 4, 5, 6)
"""Seeds that choose a rate by the judging records, and those that are reported. A seed draws the records, the factors and the
order; it draws the same records for every method."""
Settings = dict[str, Any]


class Method(NamedTuple):
    settings: Settings
    cost: tuple[int, int] = (1, 0)
    """Batches of a step of the search and of the retrain."""
    share: float = 1.0
    """Of the steps on the search, where there are two phases the half."""
    without: float = 0.0
    """Share of the records that is left out."""
    asks: str = ""
    """What a variant is there to find out."""


def bidora(asks: str = "", cost: tuple[int, int] = (4, 1), **settings: Any) -> Method:
    return Method({"adapter.method": "bidora", **settings}, cost, 0.5 if cost[1] else 1.0, asks=asks)


METHODS = {
    "lora": Method({"adapter.method": "lora"}),
    "rslora": Method({"adapter.method": "lora", "adapter.rslora": True}),
    "dora": Method({"adapter.method": "dora"}),
    "dora-train": Method({"adapter.method": "dora"}, without=0.2, asks="what a fifth of the records is worth"),
    "bidora": bidora(),
    "bidora-direct": bidora(
        "no second-order term, as the package bidora 0.1.2", (2, 1), **{"search.hypergradient": "direct"}
    ),
    "bidora-fd": bidora("finite differences, as the released code", **{"search.hypergradient": "finite-difference"}),
}
"""The methods of the table."""
VARIANTS = {
    "continue": bidora("is it the restart of the direction?", **{"retrain.start": "continue"}),
    "no-retrain": bidora("is it the retrain?", (4, 0), **{"retrain.epochs": 0.0}),
    "rotate": bidora("is it the halved data?", **{"search.splits": "rotate"}),
    "rotate-no-retrain": bidora(
        "and without the retrain?", (4, 0), **{"search.splits": "rotate", "retrain.epochs": 0.0}
    ),
    "outer-0.2": bidora("is it the magnitude's rate?", **{"outer.multiplier": 0.2}),
    "outer-20": bidora("is it the magnitude's rate?", **{"outer.multiplier": 20.0}),
    "lower-4": bidora("does the direction move too little between two looks?", (7, 1), **{"search.lower_steps": 4}),
    "gram": bidora("the paper's penalty", **{"search.gram_penalty": 1e-5}),
    "norm-constant": bidora("the norm held in the inner step", **{"adapter.norm": "constant"}),
}
"""bidora with one thing changed."""
ALL = METHODS | VARIANTS


class Cell(NamedTuple):
    """One run."""

    data: str
    method: str
    rate: float
    records: int
    seed: int
    passes: int = PASSES

    @property
    def steps(self) -> tuple[int, int]:
        """Of the search and of the retrain."""
        method = ALL[self.method]
        search, retrain = method.cost
        both = search + retrain if retrain else search
        steps = self.passes // BATCH // both
        return steps, steps if retrain else 0


def tuning(data: str, methods: list[str], sizes: list[int], passes: int) -> Iterator[Cell]:
    """Every rate."""
    for method in methods:
        for rate in RATES:
            for records in sizes:
                for seed in TUNING:
                    yield Cell(data, method, rate, records, seed, passes)


def final(data: str, method: str, rate: float, records: int, passes: int) -> Iterator[Cell]:
    for seed in FINAL:
        yield Cell(data, method, rate, records, seed, passes)


def of_table(
    lines: Sequence[dict[str, Any]], method: str, records: int, passes: int, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """The lines of one method and table, of these seeds."""
    table = method, records, passes
    return [
        line for line in lines if (line["method"], line["records"], line["passes"]) == table and line["seed"] in seeds
    ]
