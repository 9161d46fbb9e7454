"""data/bilevel_rows.py: folds that take turns, and a run with them."""

import json
from collections import Counter

import numpy as np
import pytest
from runs import BIDORA, inputs

from bidora_jax import train
from bidora_jax.data.bilevel_rows import Rotation
from bidora_jax.errors import InputError
from bidora_jax.reporting import history, summary


def rotation(rows=53, val_rows=10, step_size=4, lower_steps=1, seed=0) -> Rotation:
    lengths = np.random.default_rng(1).integers(5, 40, rows).tolist()
    return Rotation(lengths, val_rows, step_size, lower_steps, seed)


def test_the_folds_are_all_rows_once_and_as_large_as_the_validation_split():
    folds = rotation().folds
    assert sorted(np.concatenate(folds).tolist()) == list(range(53))
    assert sorted(map(len, folds)) == [10, 10, 11, 11, 11]


@pytest.mark.parametrize("lower_steps", [1, 3])
def test_no_row_is_on_both_levels_of_a_turn_and_the_upper_one_passes_over_each_fold(lower_steps):
    it = rotation(lower_steps=lower_steps)
    assert it.turn_steps == 3
    upper = Counter()
    for turn in range(5):
        steps = [it.rows(turn * it.turn_steps + step) for step in range(it.turn_steps)]
        assert all(len(lower) == lower_steps and all(len(rows) == 4 for rows in lower) for lower, _ in steps)
        seen = {row for _, rows in steps for row in rows}
        assert seen == {*it.folds[turn].tolist()}
        assert seen.isdisjoint(row for lower, _ in steps for rows in lower for row in rows)
        upper.update(row for _, rows in steps for row in rows)
    assert upper == dict.fromkeys(range(53), 1)


def test_the_lower_level_takes_every_row_about_as_often():
    it = rotation()
    taken = Counter(row for number in range(5 * 4 * it.turn_steps) for rows in it.rows(number)[0] for row in rows)
    assert sum(taken.values()) == 5 * 4 * it.turn_steps * 4
    assert max(taken.values()) - min(taken[row] for row in range(53)) <= 1


def test_more_lower_rows_than_there_are_pass_over_them_again():
    it = rotation(rows=7, val_rows=3, step_size=2, lower_steps=4)
    taken = Counter(row for number in range(it.turn_steps) for rows in it.rows(number)[0] for row in rows)
    assert len(it.folds) == 2 and it.turn_steps == 2
    assert taken.keys() == {*it.folds[1].tolist()} and max(taken.values()) - min(taken.values()) <= 1


def test_a_step_is_the_same_whichever_was_asked_for_before():
    forward, backward = rotation(), rotation()
    numbers = range(40)
    there = {number: backward.rows(number) for number in reversed(numbers)}
    assert [forward.rows(number) for number in numbers] == [there[number] for number in numbers]
    assert forward.rows(0) != rotation(seed=1).rows(0)


def test_a_run_trains_on_other_rows_and_keeps_its_last_step(model_folder, data_files, tmp_path, capsys):
    weights, said = {}, {}
    for name, more in (("apart", []), ("rotate", ["--search.splits", "rotate"])):
        alone = ["--retrain.epochs", "0", "--retrain.steps", "0", "--no-report", *more]
        train.main([*inputs(model_folder, data_files, tmp_path / name), *BIDORA, *alone])
        weights[name] = (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
        said[name] = capsys.readouterr().out
    assert weights["apart"] != weights["rotate"]
    assert "4 steps, best" in said["apart"]
    assert "search: 4 of 4 steps\n" in said["rotate"] and "best" not in said["rotate"].partition("fastest")[2]
    assert json.loads((tmp_path / "rotate" / "config.json").read_text())["search"]["splits"] == "rotate"
    best = {name: summary.summarise(history.read(tmp_path / name))["best_step"] for name in weights}
    assert best["apart"] is not None and best["rotate"] is None


@pytest.mark.parametrize(("more", "message"), [
    (["--adapter.method", "dora"], "search.splits rotate needs two levels, and method dora has one"),
    (["--search.patience", "2"], "search.patience needs records that are not trained on"),
])  # fmt: skip
def test_what_rotation_contradicts_is_refused(more, message, model_folder, data_files, tmp_path, capsys):
    argv = [*inputs(model_folder, data_files, tmp_path / "run"), *BIDORA, "--search.splits", "rotate", *more]
    with pytest.raises((SystemExit, InputError)) as refused:
        train.main(argv)
    assert message in capsys.readouterr().err + str(refused.value)
    assert not (tmp_path / "run").exists()
