"""Runs of the command line: short ones, in processes of their own where a process has to die."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from environment import keeps_programs
from random_adapters import random_adapter
from tiny import CONFIG

import bidora_jax
from bidora_jax import export, train
from bidora_jax.config import parse_train, to_json
from bidora_jax.errors import command
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.formats import peft

ROOT = Path(bidora_jax.__file__).parents[1]
# One adapted module and one padded length: compiling is nearly all of the time.
SMALL = ["--adapter.target-modules", "q_proj", "--adapter.rank", "3", "--data.buckets", "1", "--no-report"]
# The search's rate is so high that its first step stays the best: a resumed run must remember which one that was.
BIDORA = [*SMALL, "--adapter.dropout", "0.1", "--inner.learning-rate", "0.4", "--inner.schedule", "constant",
          "--search.steps", "4", "--retrain.steps", "5", "--retrain.learning-rate", "0.03", "--eval-every", "1",
          "--save-every", "2", "--merged", "--tensorboard", "--samples.every", "2", "--samples.count", "2",
          "--samples.max-new-tokens", "5"]  # fmt: skip


def inputs(model_folder: Path, data_files: tuple[Path, ...], output_dir: Path) -> list[str]:
    """The flags that name a run's model, its data and its folder."""
    return ["--model.path", str(model_folder), "--data.train-file", str(data_files[0]),
            "--data.val-file", str(data_files[1]), "--output-dir", str(output_dir)]  # fmt: skip


def process(argv: list[str], compiled: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python with `argv`; what it compiles is kept in `compiled`, or with what this worker compiles."""
    cache = {} if compiled is None else keeps_programs(compiled)
    return subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env=os.environ | cache, capture_output=True, text=True, check=False
    )


def trained_run(folder: Path, model_folder: Path, settings: AdapterConfig, *flags: str) -> Path:
    """A run folder as `train` leaves it, its adapter random and not trained."""
    config, _ = parse_train(["--model.path", str(model_folder), "--adapter.method", settings.method, *flags])
    folder.mkdir()
    (folder / "config.json").write_text(to_json(config))
    adapter, *trees = random_adapter(settings)
    peft.save_adapter(folder / "adapter", CONFIG, adapter, settings, *trees, base_model_name=None)
    return folder


def metrics(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timings = {"tokens_per_second", "seconds"}
    return [{name: value for name, value in line.items() if name not in timings} for line in lines]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below `folder`, with what is in the files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def exit_status(argv: list[str]) -> int:
    """What the shell would see."""
    try:
        command(train.main, argv)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def refused_export(argv: list[str], capfd, status: int = 2) -> str:
    """What `export` says when it refuses or stops: one message and no traceback."""
    with pytest.raises(SystemExit) as stopped:
        command(export.main, argv)
    said = capfd.readouterr().err
    assert stopped.value.code == status
    assert said.count("error: " if status == 2 else "stopped: ") == 1
    assert "Traceback" not in said
    return said


def one_message(main: Callable[[list[str]], None], capfd, *argv) -> str:
    """The one message with which a command line is refused, before it has printed anything."""
    with pytest.raises(SystemExit) as stopped:
        command(main, [str(arg) for arg in argv])
    out, said = capfd.readouterr()
    assert stopped.value.code == 2, said
    assert out == "" and said.startswith("error: ") and said.count("error: ") == 1 and "Traceback" not in said
    return said


def once(folder: Path, make: Callable[[Path], None], patience: float = 600.0) -> Path:
    """A folder that the first of several test processes makes and the others wait for."""
    try:
        folder.mkdir()
    except FileExistsError:
        deadline = time.monotonic() + patience
        while not (folder / "ready").exists():
            assert not (folder / "failed").exists(), (folder / "failed").read_text()
            assert time.monotonic() < deadline, f"{folder} was not made within {patience} s"
            time.sleep(0.2)
        return folder
    try:
        make(folder)
    except BaseException as error:
        (folder / "failed").write_text(str(error))
        raise
    (folder / "ready").touch()
    return folder
