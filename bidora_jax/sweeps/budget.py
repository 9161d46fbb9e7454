"""How much a run may train: every method gets the same number of tokens that a gradient was taken on, or the same time.

The unit is one gradient of the loss, forward and backward, on one token of a record (padding does not count). A step costs

    lora, dora            t
    bidora, search        (L + μ) · t + v          L = search.lower_steps
    bidora, retrain       b

with t, v and b the mean tokens of a batch of train, of the upper level's split, and of both together. The L gradients move the
direction. v is the outer loss's gradient. μ is the price of the mixed product (∂g/∂m)ᵀ·v on the train batch, in gradients:

    exact, reverse        2    forward over reverse is a gradient and its tangent, each with the products of a gradient. The step
                               that keeps a record of the first pass has one of the two: a step was measured at 1.84 times two
                               gradients (benchmarks/LOG.md, 2026-11-28), so μ ≈ 1.7, and 2 does not favour bidora
    finite-difference     2    two gradients in m, at d' + εv and at d' − εv
    direct                0

The configuration's lengths, S steps of the search and R of the retrain, give the proportion of the two phases, and the budget N
their size, each step at its mean cost c:

    S' = ⌊S · N / (S·c_S + R·c_R)⌋        R' = ⌊(N − S'·c_S) / c_R⌋        lora, dora: S' = ⌊N / c_S⌋

So all seeds of a point have the same steps, and a run leaves less than one step of its last phase of the budget unused. With a
time, c is the seconds of a step, measured (timing.py). Evaluations are not counted: they take no gradient.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple

from bidora_jax import flags
from bidora_jax.config import Config
from bidora_jax.errors import InputError

MIXED = {"auto": 2.0, "exact": 2.0, "reverse": 2.0, "finite-difference": 2.0, "direct": 0.0}
"""μ by search.hypergradient; auto is exact."""


class Budget(NamedTuple):
    kind: Literal["tokens", "time"]
    amount: float
    """Gradient tokens of a run, or seconds."""


class Sizes(NamedTuple):
    """Rows and tokens of the two splits of a run."""

    train_rows: int
    train_tokens: int
    val_rows: int
    val_tokens: int


class PerPhase(NamedTuple):
    """A number of the search and one of the retrain, which is 0 where there is no such phase."""

    search: float
    retrain: float


def read(text: str) -> Budget | None:
    """tokens=2e6 or time=30m; None of an empty text. InputError for anything else."""
    kind, _, given = text.partition("=")
    amount = 0.0
    if kind == "tokens":
        try:
            amount = float(given.replace(",", "").replace("_", ""))
        except ValueError:
            amount = 0.0
    elif kind == "time":
        amount = flags.seconds(given) or 0.0
    if not text:
        return None
    if not 0 < amount < float("inf"):
        raise InputError(
            f"--budget must be tokens=N, such as tokens=2e6, or time=T with its unit, such as time=10m, found {text!r}"
        )
    return Budget("tokens" if kind == "tokens" else "time", amount)


def sizes(config: Config) -> Sizes:
    """Those of the run of this configuration, read from its data; of the model only the tokenizer is read."""
    data = replace(config.data, buckets=1, padded_lengths=(), test_file="")
    return _sizes(replace(Config(), seed=config.seed, model=config.model, task=config.task, data=data))


@lru_cache(maxsize=64)
def _sizes(config: Config) -> Sizes:
    from bidora_jax.runs import assembly

    labelled = assembly.read_labelled_data(config)
    rows = assembly.read_data(config).ready.rows if labelled is None else labelled.rows
    counted = [(len(part), sum(len(row.tokens) for row in part)) for part in (rows["train"], rows.get("val", []))]
    return Sizes(*counted[0], *counted[1])


def planned(config: Config, found: Sizes) -> PerPhase:
    """The steps that the configuration asks for."""
    batch = config.data.batch_size * config.data.accumulation
    first = config.search.steps or _steps(config.search.epochs, found.train_rows, batch, config.search.lower_steps)
    second = config.retrain.steps or _steps(config.retrain.epochs, found.train_rows + found.val_rows, batch, 1)
    return PerPhase(first, second if config.adapter.method == "bidora" else 0)


def costs(config: Config, found: Sizes) -> PerPhase:
    """Gradient tokens of a mean step of each phase; the formula is above."""
    batch = config.data.batch_size * config.data.accumulation
    train = _of_batch(found.train_tokens, found.train_rows, batch)
    if config.adapter.method != "bidora":
        return PerPhase(train, 0)
    val = _of_batch(found.val_tokens, found.val_rows, batch)
    both = _of_batch(found.train_tokens + found.val_tokens, found.train_rows + found.val_rows, batch)
    return PerPhase((config.search.lower_steps + MIXED[config.search.hypergradient]) * train + val, both)


def within(amount: float, asked: PerPhase, cost: PerPhase) -> PerPhase:
    """The steps that an amount buys, in the proportion of those that are asked for. InputError where a phase gets none."""
    whole = asked.search * cost.search + asked.retrain * cost.retrain
    first = _floor(asked.search * amount / whole)
    second = _floor((amount - first * cost.search) / cost.retrain) if asked.retrain else 0
    if first < 1 or (asked.retrain and second < 1):
        least = cost.search + (cost.retrain if asked.retrain else 0)
        raise InputError(f"the budget of {amount:g} is too small: one step of each phase costs {least:g}; give more")
    return PerPhase(first, second)


def spent(config: Config, found: Sizes) -> int:
    """Gradient tokens of all steps of a configuration."""
    steps, cost = planned(config, found), costs(config, found)
    return round(steps.search * cost.search + steps.retrain * cost.retrain)


def with_steps(config: Config, steps: PerPhase) -> Config:
    """The configuration with these lengths."""
    config = replace(config, search=replace(config.search, steps=int(steps.search)))
    return replace(config, retrain=replace(config.retrain, steps=int(steps.retrain))) if steps.retrain else config


def _of_batch(tokens: int, rows: int, batch: int) -> float:
    """Mean tokens of a step: the last batch of an epoch may be a smaller one."""
    return tokens / max(_steps_of_epoch(rows, batch), 1)


def _steps_of_epoch(rows: int, batch: int) -> int:
    return -(-rows // batch)


def _steps(epochs: float, rows: int, batch: int, lower_steps: int) -> int:
    """As training/phases.py has it."""
    return max(round(epochs * _steps_of_epoch(rows, batch) / lower_steps), 1) if epochs else 0


def _floor(steps: float) -> int:
    """Of a number that may lie a rounding below a whole one."""
    return int(steps + 1e-9)
