"""sweeps/budget.py: the price of a step by hand, and steps that spend a budget and no more."""

from dataclasses import replace

import pytest

from bidora_jax.config import parse_call
from bidora_jax.errors import InputError
from bidora_jax.sweeps import budget
from bidora_jax.sweeps.budget import Budget, PerPhase, Sizes

SIZES = Sizes(train_rows=30, train_tokens=660, val_rows=12, val_tokens=156)
"""At 5 rows a step: 6 steps of 110 tokens, 3 of 52, and of both 9 of 816/9."""


def config(method: str, **settings):
    return parse_call(None, {"adapter.method": method, "data.batch_size": 5, **settings})[0]


@pytest.mark.parametrize(
    ("method", "settings", "search", "retrain"),
    [
        ("lora", {}, 110, 0),
        ("dora", {}, 110, 0),
        ("bidora", {}, 110 + 2 * 110 + 52, 816 / 9),
        ("bidora", {"search.hypergradient": "exact"}, 110 + 2 * 110 + 52, 816 / 9),
        ("bidora", {"search.hypergradient": "finite-difference"}, 110 + 2 * 110 + 52, 816 / 9),
        ("bidora", {"search.hypergradient": "direct"}, 110 + 52, 816 / 9),
        ("bidora", {"search.lower_steps": 3}, 3 * 110 + 2 * 110 + 52, 816 / 9),
        ("lora", {"data.batch_size": 3, "data.accumulation": 5}, 330, 0),
    ],
)
def test_a_step_costs_its_gradients(method, settings, search, retrain):
    assert budget.costs(config(method, **settings), SIZES) == pytest.approx(PerPhase(search, retrain))


def test_lengths_are_those_of_training():
    assert budget.planned(config("bidora"), SIZES) == (18, 27)  # three epochs of 6 and of 9 steps
    assert budget.planned(config("bidora", **{"search.lower_steps": 2, "retrain.epochs": 0}), SIZES) == (9, 0)
    assert budget.planned(config("lora", **{"search.steps": 7}), SIZES) == (7, 0)


@pytest.mark.parametrize("method", ["lora", "dora", "bidora"])
@pytest.mark.parametrize("amount", [1900, 20_000, 123_457])
def test_a_budget_is_spent_to_less_than_a_step_and_never_overdrawn(method, amount):
    asked = config(method, **{"search.steps": 40, "retrain.steps": 120})
    cost = budget.costs(asked, SIZES)
    given = budget.with_steps(asked, budget.within(amount, budget.planned(asked, SIZES), cost))
    left = amount - budget.spent(given, SIZES)
    assert -0.5 <= left < (cost.retrain if method == "bidora" else cost.search) + 0.5
    if method == "bidora" and amount > 1900:
        assert given.retrain.steps / given.search.steps == pytest.approx(3, rel=0.15)


def test_a_budget_that_buys_no_step_is_refused():
    with pytest.raises(InputError, match=r"one step of each phase costs 472\.667"):
        budget.within(400, PerPhase(4, 4), budget.costs(config("bidora"), SIZES))


def test_a_phase_that_is_left_out_stays_out():
    alone = replace(config("bidora"), retrain=replace(config("bidora").retrain, epochs=0))
    given = budget.within(3820, budget.planned(alone, SIZES), budget.costs(alone, SIZES))
    assert given == (10, 0)
    assert budget.with_steps(alone, given).retrain == alone.retrain


@pytest.mark.parametrize(
    ("text", "found"),
    [("", None), ("tokens=2e6", Budget("tokens", 2e6)), ("tokens=2,000", Budget("tokens", 2000)),
     ("time=1h30m", Budget("time", 5400)), ("time=90s", Budget("time", 90))],
)  # fmt: skip
def test_a_budget_is_read(text, found):
    assert budget.read(text) == found


@pytest.mark.parametrize("text", ["2e6", "tokens=many", "tokens=0", "tokens=inf", "time=30", "time=", "steps=3"])
def test_anything_else_is_no_budget(text):
    with pytest.raises(InputError, match="--budget must be tokens=N"):
        budget.read(text)
