"""sweep.py: the command line, what it refuses before anything is written, and the words of an --over."""

import json
import sys
from functools import partial

import pytest
from runs import contents, one_message

import bidora_jax
from bidora_jax import sweep
from bidora_jax.errors import InputError

RATE = ["--over", "inner.learning_rate", "log", "1e-5", "1e-3"]


@pytest.fixture
def config(tmp_path, model_folder, data_files):
    """A configuration in a folder of its own."""
    (tmp_path / "in").mkdir()
    data = {f"{use}_file": str(file) for use, file in zip(("train", "val", "test"), data_files, strict=True)}
    settings = {"model": {"path": str(model_folder)}, "adapter": {"method": "lora"}, "data": data | {"token_cache": ""}}
    (tmp_path / "in" / "c.json").write_text(json.dumps(settings))
    return tmp_path / "in" / "c.json"


refused = partial(one_message, sweep.main)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], ("name the configuration", "--config", "name the folder", "--output-dir")),
        (["{c}"], ("a sweep needs what it varies",)),
        (["{c}", "--over", "inner.rate", "log", "1", "2"], ("--over inner.rate: there is no such setting",)),
        (["{c}", "--over", "inner.learning_rate", "log", "-1", "2"], ("log needs numbers above 0, found -1",)),
        (["{c}", "--over", "adapter.method", "lora", "adalora"], ("expected one of 'lora', 'dora', 'bidora'", "adalora")),
        (["{c}", "--over", "data.batch_size", "0", "4"], ("data.batch_size 0", "must be at least 1")),
        (["{c}", *RATE, "--metric", "f1"], ("--metric f1: a language model has loss and accuracy",)),
        (["{c}", *RATE, "--budget", "time=5"], ("--budget must be tokens=N", "found 'time=5'")),
        (["{c}", *RATE, "--budget", "tokens=9"], ("the budget of 9 is too small",)),
        (["{c}", *RATE, "--sampler", "grid"], ("--sampler grid needs values, and inner.learning_rate is a range",)),
        (["{c}", *RATE, "--sampler", "cma"], ("--sampler must be one of auto, tpe, random, grid",)),
        (["{c}", *RATE, "--seeds", "0", "--trials", "-1"], ("--seeds must be at least 1", "--trials must be")),
        (["{c}", *RATE, "--judge-file", "none.jsonl"], ("none.jsonl",)),
        (["{c}", *RATE, "--prune", "--seeds", "1"], ("--prune stops a point between its seeds",)),
        (["--config", "none.yaml", *RATE, "--output-dir", "out"], ("none.yaml does not exist",)),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_refused_in_one_message_and_nothing_is_written(argv, says, config, tmp_path, capfd):
    given = [
        part
        for arg in argv
        for part in (["--config", config, "--output-dir", tmp_path / "out"] if arg == "{c}" else [arg])
    ]
    before = contents(tmp_path)
    said = refused(capfd, *given)
    assert [part for part in says if part not in said] == [], said
    assert contents(tmp_path) == before


def test_records_that_judge_are_needed(config, tmp_path, capfd):
    settings = json.loads(config.read_text())
    del settings["data"]["val_file"]
    config.write_text(json.dumps(settings))
    assert "nothing judges the points" in refused(capfd, "--config", config, *RATE, "--output-dir", tmp_path / "out")


def test_a_folder_of_something_else_is_left_alone(config, tmp_path, capfd):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("x")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "sweep.json").write_text("[]")
    for name, says in (
        ("file", "is a file"),
        ("full", "is not empty, and holds no sweep"),
        ("odd", "none that this program"),
    ):
        assert says in refused(capfd, "--config", config, *RATE, "--output-dir", tmp_path / name)


def test_without_optuna_the_extra_is_named(config, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    said = refused(capfd, "--config", config, *RATE, "--output-dir", tmp_path / "out")
    assert said == "error: sweep needs the package optuna: pip install 'bidora_jax[sweep]'\n"


def test_the_words_of_an_axis_end_with_the_next_flag():
    argv = [
        "--over",
        "a.b",
        "log",
        "-1e-3",
        "2",
        "--trials",
        "3",
        "--over",
        "c",
        '["q"]',
        "--over=d 1 2",
        "--over",
        "e",
    ]
    found = ["--over=a.b log -1e-3 2", "--trials", "3", """--over=c '["q"]'""", "--over=d 1 2", "--over=e"]
    assert sweep._with_axes(argv) == found


def test_the_call_from_python_refuses_what_it_does_not_know():
    with pytest.raises(InputError, match=r"no setting 'seed' \(did you mean 'seeds'\?\)"):
        bidora_jax.sweep("c.json", over={}, seed=3)
