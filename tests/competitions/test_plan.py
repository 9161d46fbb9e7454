"""competitions/plan.py, competitions/recipe.py, competitions/base_models.py: plans of tables as they come, the settings by size,
and plan.json, which says all of a plan exactly."""

from dataclasses import replace
from pathlib import Path

import competitions
import pytest
import tables
from competitions import table, words

from bidora_jax.competitions import files as competition_files
from bidora_jax.competitions import plan as plans
from bidora_jax.competitions import recipe
from bidora_jax.competitions.base_models import BaseModel, Lengths
from bidora_jax.competitions.columns import Chosen, Columns, Guess
from bidora_jax.competitions.detection import Asked
from bidora_jax.competitions.plan import Plan, Request, from_json, to_json
from bidora_jax.competitions.recipe import Wishes
from bidora_jax.competitions.target import Target
from bidora_jax.errors import InputError


@pytest.fixture
def planned(tmp_path, model_folder):
    def plan(**request) -> Plan:
        return plans.make(
            competition_files.read(tmp_path), Request(tmp_path, tmp_path, model=str(model_folder), **request)
        )

    return plan


def test_a_plan_comes_back_from_json_as_it_was():
    target = Target("binary", ("y",), ("no", "yes"), "label", "f1", ("Ü",), variants={" yes": "yes"})
    columns = Columns("id", ("y",), ("text",), ("kind",), ("age",), "user", {"Unnamed: 0": "an index"})
    settings = {"adapter.rank_pattern": (("q_proj", 4),), "inner.learning_rate": 1e-3, "data.max_length": 128}
    guesses = (Guess("target", "y", "the only column of train that test lacks", "--target"),)
    plan = Plan(
        Path("a b"), Path("out"), columns, target, guesses, "x/y", 5, 7, 0.1 + 0.2, settings, ("one", "two"), 99
    )
    assert from_json(to_json(plan)) == plan


# Tables


def test_titanics_shape_is_planned_and_called_a_table(tmp_path, planned):
    tables.titanic(tmp_path)
    plan = planned()
    assert (plan.columns.id, plan.columns.targets, plan.columns.texts) == ("PassengerId", ("Survived",), ("Name",))
    assert set(plan.columns.categories) == {"Sex", "Ticket", "Cabin", "Embarked"}
    assert set(plan.columns.numbers) == {"Pclass", "Age", "SibSp", "Fare"}
    assert plan.columns.dropped == {"Parch": "the same in every row"}
    assert (plan.target.kind, plan.target.names, plan.target.written) == ("binary", ("0", "1"), "label")
    assert any("gradient boosting" in note for note in plan.notes)


def test_house_prices_shape_is_a_regression_without_a_text_and_a_note_names_what_does_better(tmp_path, planned):
    tables.house_prices(tmp_path)
    plan = planned(asked=Asked(metric="rmsle"))
    assert (plan.columns.id, plan.columns.texts) == ("Id", ())
    assert len(plan.columns.numbers) == len(plan.columns.categories) == 20
    assert (plan.target.kind, plan.target.metric, plan.target.log, plan.target.written) == (
        "regression",
        "rmsle",
        True,
        "values",
    )
    assert any("gradient boosting" in note for note in plan.notes)
    assert planned().target.metric == "rmse" and not planned().target.log


# Folds and notes


def test_folds_are_fewer_where_the_rarer_class_has_fewer_rows_and_the_plan_says_so(tmp_path, planned):
    competitions.simple(tmp_path, [0] * (competitions.TRAIN - 3) + [1] * 3, 0)
    plan = planned()
    guess = next(one for one in plan.guesses if one.what == "folds")
    assert plan.folds == 3 and guess == Guess("folds", "3", "the rarer class has 3 rows", "--folds")
    assert any("fewer than 5 rows are kept" in note and "1 (3)" in note for note in plan.notes)


def test_groups_limit_the_folds_and_are_no_feature(tmp_path, planned):
    rows = [
        (n, words(competitions.np.random.default_rng(n)), f"user {n % 4} of it", n % 2)
        for n in range(competitions.TRAIN)
    ]
    table(tmp_path / "train.csv", ("id", "text", "who", "label"), rows)
    table(tmp_path / "test.csv", ("id", "text", "who"), [row[:3] for row in rows])
    plan = planned(chosen=Chosen(group="who"))
    assert (plan.columns.group, plan.columns.texts, plan.folds) == ("who", ("text",), 4)
    table(tmp_path / "train.csv", ("id", "text", "who", "label"), [(*row[:2], "me", row[3]) for row in rows])
    with pytest.raises(InputError, match="has one value in all of"):
        planned(chosen=Chosen(group="who"))


def test_rows_without_a_target_are_left_out(tmp_path, planned):
    competitions.simple(tmp_path, [0, 1, "", 1, " "], 0)
    files = competition_files.read(tmp_path)
    assert planned().target.kind == "binary"
    assert len(plans.labelled(files, planned().columns).train.rows) == competitions.TRAIN * 3 // 5


def test_an_old_sample_and_empty_rows_are_said(tmp_path, planned):
    competitions.stale_sample(tmp_path)
    assert any(
        "4 rows" in note and "4 ids in both" in note and "the rows of test.csv" in note for note in planned().notes
    )
    competitions.empty_text(tmp_path)
    assert any("3 rows of test.csv have nothing" in note for note in planned().notes)


# Settings


SMALL = BaseModel("small", Path(), 384, 512, 90 * 2**20)
LARGE = BaseModel("large", Path(), 4096, 32768, 16 * 2**30)


@pytest.mark.parametrize(
    ("kind", "rows", "model", "preset"),
    [
        ("regression", 500, SMALL, "efficient"), ("ordinal", 500, SMALL, "efficient"), ("binary", 500, SMALL, "balanced"),
        ("multilabel", 500, LARGE, "balanced"), ("multiclass", 500, SMALL, "expressive"),
        ("multiclass", 200_000, SMALL, "expressive"), ("multiclass", 200_000, LARGE, "qlora_quality"),
        ("binary", 200_000, LARGE, "qlora_memory"),
    ],
)  # fmt: skip
def test_the_preset_goes_by_the_task_and_saves_memory_where_rows_are_many_and_the_model_large(
    kind, rows, model, preset
):
    assert recipe.preset(Target(kind, ("y",), (), "label", "", ("y",)), rows, model) == preset


def test_settings_by_size_and_by_wish():
    target = Target("binary", ("y",), ("0", "1"), "probability", "auc", ("y",))
    found = recipe.settings(target, 900, SMALL, Lengths(70, 4.0), Wishes())
    assert found == {
        "task.type": "classification", "search.metric": "auc", "adapter.method": "lora", "adapter.preset": "balanced",
        "data.max_length": 96, "data.long": "truncate", "data.batch_size": 16, "inner.learning_rate": 1e-3, "search.epochs": 6.0,
    }  # fmt: skip
    found = recipe.settings(target, 20_000, LARGE, Lengths(900, 4.0), Wishes("bidora", "efficient", 8, 0, 3e-4, 1.5))
    assert [found[name] for name in ("adapter.method", "adapter.preset", "data.max_length", "data.batch_size")] == [
        "bidora", "efficient", 256, 8,
    ]  # fmt: skip
    assert (found["inner.learning_rate"], found["search.epochs"]) == (3e-4, 1.5)
    assert recipe.max_length(SMALL._replace(positions=40), Lengths(70, 4.0)) == 40


def test_lengths_are_counted_by_the_models_tokenizer(tmp_path, planned):
    """The tiny model has a token a character: 'ab ab …' of 50 characters, and two special tokens."""
    rows = [(n, " ".join(["ab"] * 17), n % 2) for n in range(30)]
    table(
        tmp_path / "train.csv", ("id", "text", "label"), [(n, f"{text[:-2]}{n:02d}", label) for n, text, label in rows]
    )
    table(tmp_path / "test.csv", ("id", "text"), [row[:2] for row in rows])
    plan = planned()
    assert plan.settings["data.max_length"] == 64 and plan.longest == 0


def test_an_input_by_the_template_is_cut_to_the_characters_that_the_model_reads():
    columns = Columns("id", ("y",), ("text",), ("kind",))
    assert recipe.characters(64, Lengths(70, 4.5), columns) == 288
    assert recipe.characters(64, Lengths(70, 4.5), replace(columns, categories=())) == 0
