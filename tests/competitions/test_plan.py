"""competitions/plan.py: plan.json says all of a plan, exactly."""

from pathlib import Path

from bidora_jax.competitions.columns import Columns, Guess
from bidora_jax.competitions.plan import Plan, from_json, to_json
from bidora_jax.competitions.target import Target


def test_a_plan_comes_back_from_json_as_it_was():
    target = Target("binary", ("y",), ("no", "yes"), "label", "f1", ("Ü",), variants={" yes": "yes"})
    columns = Columns("id", ("y",), ("text",), ("kind",), ("age",), "user", {"Unnamed: 0": "an index"})
    settings = {"adapter.rank_pattern": (("q_proj", 4),), "inner.learning_rate": 1e-3, "data.max_length": 128}
    guesses = (Guess("target", "y", "the only column of train that test lacks", "--target"),)
    plan = Plan(Path("a b"), Path("out"), columns, target, guesses, "x/y", 5, 7, 0.1 + 0.2, settings, ("one", "two"))
    assert from_json(to_json(plan)) == plan
