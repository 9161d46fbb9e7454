"""Event files as TensorBoard reads them, over kills and resumes; what is refused where a package is missing."""

import importlib.util
from pathlib import Path

import pytest
from event_files import curves

from bidora_jax import train
from bidora_jax.errors import command
from bidora_jax.training.metrics_log import MetricsLog
from bidora_jax.training.watchers import tracking
from bidora_jax.training.watchers.tracking import TensorBoard


def line(phase: str, step: int, loss: float) -> dict:
    return {"phase": phase, "step": step, "train_loss": loss, "tokens_per_second": None, "kept": True}


def write(run: Path, lines: list[dict], resume: tuple[str, int] | None = None, *, killed: bool = False) -> None:
    log = MetricsLog(run / "metrics.jsonl", followers=[TensorBoard(run / "tensorboard")])
    if resume:
        log.truncate(*resume)
    for record in lines:
        log.append(record)
    if killed:  # it closes no event file
        log._close_file()
    else:
        log.close()


def test_a_resumed_run_has_the_curves_of_one_that_was_not_killed(tmp_path):
    lines = [line("search", step, step / 4) for step in (1, 2, 3)] + [
        line("retrain", step, step / 8) for step in (1, 2)
    ]
    write(tmp_path, [*lines[:2], line("search", 3, 99.0)])
    write(tmp_path, [*lines[2:4], line("retrain", 2, 77.0)], ("search", 3), killed=True)
    write(tmp_path, lines[4:], ("retrain", 2))
    board = tmp_path / "tensorboard"
    assert curves(board / "search") == {"train_loss": {1: 0.25, 2: 0.5, 3: 0.75}}
    assert curves(board / "retrain") == {"train_loss": {1: 0.125, 2: 0.25}}
    write(tmp_path, [], ("search", 0))
    assert curves(board / "search") == curves(board / "retrain") == {}


def test_a_run_that_turns_it_on_when_it_is_resumed_has_all_of_its_curves(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append(line("search", 1, 0.5))
    write(tmp_path, [line("search", 2, 0.25)], ("search", 2))
    assert curves(tmp_path / "tensorboard" / "search") == {"train_loss": {1: 0.5, 2: 0.25}}


@pytest.mark.parametrize(("flags", "package", "remedy"), [
    (["--tensorboard"], "tensorboardX", "pip install 'bidora_jax[tensorboard]'"),
    (["--wandb", "project"], "wandb", "pip install wandb"),
])  # fmt: skip
def test_a_missing_package_is_refused_before_anything_is_read(monkeypatch, capfd, tmp_path, flags, package, remedy):
    find = importlib.util.find_spec
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(SystemExit) as stopped:
        command(train.main, ["--output-dir", str(tmp_path / "run"), *flags])
    said = capfd.readouterr().err
    assert stopped.value.code == 2
    assert f"the package {package} is not installed: {remedy}" in said
    assert "model.path is not set" in said  # with all else that is wrong
    assert not (tmp_path / "run").exists()
