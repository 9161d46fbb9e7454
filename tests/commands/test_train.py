"""Training from the command line: whole runs, runs that are killed, stop or fill the disk, and refusals.

Whole runs go through training/loop.py, training/phases.py, runs/launch.py, runs/assembly.py, runs/execution.py, runs/folder.py,
runs/logs.py, runs/rates.py, training/watchers/drift.py and, with --auto, runs/auto.py.
"""

import json
import math
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import jax.numpy as jnp
import pytest
from event_files import curves, without_clock
from runs import BIDORA, SMALL, contents, exit_status, inputs, metrics, process
from safetensors.numpy import load_file

from bidora_jax.config import parse_train, read, resolve, settled
from bidora_jax.errors import RunError
from bidora_jax.models.formats import export
from bidora_jax.runs import checks
from bidora_jax.runs.folder import read_facts, run_config
from bidora_jax.tasks.evaluation import Evaluation
from bidora_jax.training.checkpoint import Checkpoints
from bidora_jax.training.loop import Intervals, Loop, Phase, PhaseState, StepInputs
from bidora_jax.training.metrics_log import MetricsLog

WEIGHTS = Path("adapter", "adapter_model.safetensors")
EVERY_STEP = {"phase", "step", "train_loss", "inner_learning_rate", "tokens"}
SEARCH = EVERY_STEP | {"val_loss", "direction_grad_norm", "hypergrad_norm", "outer_learning_rate"}
RETRAIN = EVERY_STEP | {"grad_norm"}


# A whole run


@pytest.mark.slow
def test_a_run_leaves_its_folder_complete(finished_run):
    run = finished_run / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        ".lock", "adapter", "changes.jsonl", "checkpoints", "config.json", "merged", "metrics.jsonl", "report", "run.json",
        "samples.jsonl", "tensorboard",
    ]  # fmt: skip
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["8", "9"]
    said = (finished_run / "stdout").read_text()
    for part in ("train: 23 records", "val: 11 records", "search: 4 of 4 steps, best validation loss", "at step 1",
                 "retrain: 5 of 5 steps", "merged model read back", str(run / "merged"), str(run / "adapter")):  # fmt: skip
        assert part in said


@pytest.mark.slow
def test_the_configuration_of_a_run_reads_back(finished_run):
    config, _ = parse_train(json.loads((finished_run / "argv.json").read_text()))
    saved = resolve(read(str(finished_run / "run" / "config.json")))
    assert saved == settled(config, saved, checks.SETTLED)
    # What auto stood for.
    assert (saved.model.remat, saved.model.attention, saved.search.hypergradient) == ("dots", "chunked", "exact")


@pytest.mark.slow
def test_the_metrics_hold_one_line_a_step_of_both_phases(finished_run):
    lines = metrics(finished_run / "run")
    wanted = [("search", step) for step in range(1, 5)] + [("retrain", step) for step in range(1, 6)]
    assert [(line["phase"], line["step"]) for line in lines] == wanted
    evaluated = {"evaluation_loss", "evaluation_accuracy"}
    for line in lines:
        assert set(line) == (SEARCH if line["phase"] == "search" else RETRAIN) | evaluated
        assert 0 <= line["evaluation_accuracy"] <= 1
        assert all(math.isfinite(value) for name, value in line.items() if name != "phase")
    before = json.loads((finished_run / "run" / "run.json").read_text())["validation_before"]
    assert lines[-1]["evaluation_loss"] < before["loss"] - 0.3  # it learns: about 5.8 without a step
    assert "before training  validation loss " in (finished_run / "stdout").read_text()


@pytest.mark.slow
def test_the_adapter_of_a_run_is_pefts_dora(finished_run):
    tensors = load_file(finished_run / "run" / WEIGHTS)
    module = "base_model.model.model.layers.{}.self_attn.q_proj.{}"
    leaves = {"lora_A.weight": (3, 26), "lora_B.weight": (60, 3), "lora_magnitude_vector": (60,)}
    shapes = {module.format(layer, name): shape for layer in range(2) for name, shape in leaves.items()}
    assert {name: tensor.shape for name, tensor in tensors.items()} == shapes
    settings = json.loads((finished_run / "run" / "adapter" / "adapter_config.json").read_text())
    assert settings["use_dora"]


# Kills

DIE_AT = """
import json, os, signal, sys
from bidora_jax import errors, train
from bidora_jax.training import metrics_log as metrics

point, argv = sys.argv[1], sys.argv[2:]
rename, append = os.rename, metrics.MetricsLog.append

def renaming(source, *rest, **more):  # orbax has written the arrays under a temporary name
    if str(source).endswith(f"/{point}.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp"):
        os.kill(os.getpid(), 9)
    return rename(source, *rest, **more)

def appending(log, record):
    if f"{record['phase']} {record['step']}" != point:
        return append(log, record)
    with log.path.open("a") as file:
        file.write(json.dumps(record)[:23])  # a line cut short
    os.kill(os.getpid(), 9)

os.rename, metrics.MetricsLog.append = renaming, appending
errors.command(train.main, argv)
"""


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_run_that_was_killed_three_times_ends_bit_equal_to_one_that_was_not(
    finished_run, model_folder, data_files, tmp_path
):
    """In the search, while the checkpoint that ends the search is being written, and in the retraining. So does one whose newest
    checkpoint was damaged since: it goes on from the one before."""
    run, compiled = tmp_path / "run", finished_run / "compiled"
    resume = ["--config", str(run / "config.json"), "--resume"]

    def die(point: str, argv: list[str]) -> str:
        done = process(["-c", DIE_AT, point, *argv], compiled)
        assert done.returncode == -signal.SIGKILL, done.stderr
        return done.stdout

    die("search 3", [*inputs(model_folder, data_files, run), *BIDORA])
    assert checkpoints(run) == ["2"]
    assert "resumed search after step 2 of 4" in die("4", resume)
    assert checkpoints(run) == ["2", "4.orbax-checkpoint-tmp"]
    assert "resumed search after step 2 of 4" in die("retrain 3", resume)
    assert checkpoints(run) == ["4", "6"]
    damaged = shutil.copytree(run, tmp_path / "damaged")
    done = process(["-m", "bidora_jax.train", *resume], compiled)
    assert done.returncode == 0, done.stderr
    assert "resumed retrain after step 2 of 5" in done.stdout

    whole = finished_run / "run"
    assert (run / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert (run / "merged/model.safetensors").read_bytes() == (whole / "merged/model.safetensors").read_bytes()
    assert metrics(run) == metrics(whole)
    for name in ("changes.jsonl", "samples.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    for phase in ("search", "retrain"):
        assert without_clock(curves(run / "tensorboard" / phase)) == without_clock(
            curves(whole / "tensorboard" / phase)
        )
    assert checkpoints(run) == checkpoints(whole)

    for path in [path for path in (damaged / "checkpoints/6/state").rglob("*") if path.is_file()]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = process(["-m", "bidora_jax.train", "--config", str(damaged / "config.json"), "--resume"], compiled)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert f"checkpoint {damaged / 'checkpoints/6'} is damaged: " in done.stderr
    assert "resumed search after step 4 of 4" in done.stdout
    assert (damaged / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert metrics(damaged) == metrics(whole) and checkpoints(damaged) == checkpoints(whole)


STOP_AT = """
import os, signal, sys, time
from bidora_jax import errors, train
from bidora_jax.training import metrics_log as metrics

point, name, argv = sys.argv[1], sys.argv[2], sys.argv[3:]
append = metrics.MetricsLog.append

def appending(log, record):
    append(log, record)
    if "train_loss" in record and f"{record['phase']} {record['step']}" == point:
        os.kill(os.getpid(), signal.Signals[name])
        time.sleep(0.2)  # the thread that listens has seen it

metrics.MetricsLog.append = appending
errors.command(train.main, argv)
"""


@pytest.mark.slow
def test_a_run_that_was_asked_to_stop_twice_ends_bit_equal_to_one_that_was_not(
    finished_run, model_folder, data_files, tmp_path
):
    """Ctrl-C in the search and SIGTERM in the retraining, at steps that no checkpoint is due at."""
    run, compiled = tmp_path / "run", finished_run / "compiled"
    resume = ["--config", str(run / "config.json"), "--resume"]
    begin = [*inputs(model_folder, data_files, run), *BIDORA]
    for argv, point, name, said in (
        (begin, "search 2", "SIGINT", "Ctrl-C after step 3 of search, which is saved"),
        (resume, "retrain 2", "SIGTERM", "SIGTERM after step 3 of retrain, which is saved"),
    ):
        done = process(["-c", STOP_AT, point, name, *argv], compiled)
        assert done.returncode == 128 + signal.Signals[name], done.stderr
        assert f"stopped: {said}; go on with\n" in done.stderr and "Traceback" not in done.stderr
        assert f"--config {run}/config.json --resume" in done.stderr
    done = process(["-m", "bidora_jax.train", *resume], compiled)
    assert done.returncode == 0 and "resumed retrain after step 3 of 5" in done.stdout, done.stderr
    whole = finished_run / "run"
    assert (run / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert metrics(run) == metrics(whole)
    assert (run / "changes.jsonl").read_bytes() == (whole / "changes.jsonl").read_bytes()


def test_a_run_that_is_stopped_while_its_result_is_written_goes_on(
    model_folder, data_files, tmp_path, capfd, monkeypatch
):
    argv = [
        *inputs(model_folder, data_files, tmp_path / "run"),
        *SMALL,
        "--adapter.method",
        "lora",
        "--search.steps",
        "1",
    ]

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_adapter", interrupted)
        assert exit_status(argv) == 130
    assert "stopped: Ctrl-C after the last step, which is saved; go on with\n" in capfd.readouterr().err
    assert exit_status([*argv, "--resume"]) == 0
    assert (tmp_path / "run" / WEIGHTS).is_file()


@pytest.mark.slow
def test_a_resume_on_other_data_is_refused_and_changes_nothing(finished_run, tmp_path, capfd):
    run = shutil.copytree(finished_run / "run", tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    assert facts["stands_on"].keys() == {
        "training data", "validation data", "tokenizer", "chat template", "base weights",
    }  # fmt: skip
    facts["stands_on"]["validation data"] = "another"
    (run / "run.json").write_text(json.dumps(facts))
    before = contents(run)
    assert exit_status(["--config", str(run / "config.json"), "--output-dir", str(run), "--resume"]) == 2
    assert "has changed since it began:\n  validation data\nput it back" in capfd.readouterr().err
    assert {name: held for name, held in contents(run).items() if name != ".lock"} == {
        name: held for name, held in before.items() if name != ".lock"
    }


# Roads


def test_several_lower_steps_accumulation_packed_rows_the_gram_penalty_and_answers(
    model_folder, data_files, tmp_path, capfd
):
    argv = [*inputs(model_folder, data_files, tmp_path / "run"), *SMALL, "--data.batch-size", "3",
            "--data.accumulation", "2", "--data.packing", "--data.max-length", "96", "--adapter.dropout", "0.1",
            "--search.lower-steps", "2", "--search.steps", "2", "--retrain.steps", "1",
            "--retrain.start", "continue", "--search.gram-penalty", "1e-5", "--data.test-file", str(data_files[2]),
            "--data.test-limit", "3", "--max-new-tokens", "2"]  # fmt: skip
    assert exit_status(argv) == 0
    lines = metrics(tmp_path / "run")
    assert [(line["phase"], line["step"]) for line in lines] == [("search", 1), ("search", 2), ("retrain", 1)]
    assert all(math.isfinite(value) for line in lines for value in line.values() if not isinstance(value, str))
    assert [line["step"] for line in lines if "evaluation_loss" in line] == [2, 1]  # at the end of each phase
    # Four inner steps without warmup (a tenth of them rounds to none): the rates of the second and of the fourth.
    assert [line["inner_learning_rate"] for line in lines] == pytest.approx([1.5e-4, 5e-5, 2e-4])
    assert [line["outer_learning_rate"] for line in lines[:2]] == pytest.approx([4e-4, 2e-4])
    said = capfd.readouterr().out
    assert "exact match on 3 test records: before 0 (0%), after 0 (0%)" in said
    assert "for example: repeat" in said
    assert "train: 23 records packed into" in said and "val: 11 records packed into" in said
    assert not (tmp_path / "run" / "merged").exists()


def test_dora_ends_early_when_the_validation_loss_stays_and_has_no_retraining(
    model_folder, data_files, tmp_path, capfd
):
    argv = [*inputs(model_folder, data_files, tmp_path / "run"), *SMALL, "--adapter.method", "dora", "--eval-every", "1",
            "--search.steps", "20", "--search.patience", "2", "--inner.learning-rate", "0"]  # fmt: skip
    assert exit_status(argv) == 0
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3]  # the best, and two that are no better
    assert "search: 3 of 20 steps, best validation loss" in (said := capfd.readouterr().out)
    assert "at step 1" in said
    assert checkpoints(tmp_path / "run") == ["3"]
    assert any("lora_magnitude_vector" in name for name in load_file(tmp_path / "run" / WEIGHTS))


def test_a_dry_run_says_what_a_run_takes_and_auto_what_it_changed(model_folder, data_files, tmp_path, capfd):
    """Nothing is written; --auto keeps the effective batch and what the command line sets."""
    flags = ["--adapter.method", "lora", "--search.steps", "7", "--eval-every", "3", "--data.batch-size", "2",
             "--data.accumulation", "3", "--data.max-length", "128", "--save-every", "4",
             "--data.test-file", str(data_files[2]), "--dry-run", "--auto", "--memory-limit"]  # fmt: skip
    argv = [*inputs(model_folder, data_files, tmp_path / "run"), *SMALL, *flags]
    assert exit_status([*argv, "6MB"]) == 0
    said = capfd.readouterr().out
    assert not (tmp_path / "run").exists()
    for part in ("auto: model.remat auto → dots: the fastest that fits", "by the compiler's count for a cpu",
                 "without a GPU a step of 768 tokens", "search: 7 steps of ", " s, padded to ", "peak of a step",
                 ", 7 steps ", ", 2 checkpoints ", ", 4 looks (changes) ", ", 5 evaluations ",
                 ", 2 batches of test answers ", " s, reads them in ", "direction 516 (", " is needed of 6.0 MB, memory_limit 6MB",
                 "dry run: nothing was written"):  # fmt: skip
        assert part in said, part
    assert "data.batch_size" not in said and "exact match" not in said
    assert exit_status([*argv, "10kB"]) == 2
    said = capfd.readouterr().err
    assert "--auto found nothing that fits in 85% of 0.0 MB" in said
    assert "--data.accumulation, --data.batch_size, --data.max_length was kept as the command line sets it" in said
    assert exit_status([*argv, "6MB", "--resume"]) == 2
    assert "--auto chooses settings for a new run" in capfd.readouterr().err


def test_a_full_disk_stops_a_run_that_goes_on_when_there_is_room(
    model_folder, data_files, tmp_path, capfd, monkeypatch
):
    run, usage = tmp_path / "run", namedtuple("usage", "total used free")
    without_val = inputs(model_folder, data_files, run)
    del without_val[4:6]
    argv = [*without_val, *SMALL, "--adapter.method", "lora", "--search.steps", "2", "--save-every", "1"]
    room = iter([usage(10**9, 0, 10**9), usage(10**9, 10**9 - 1000, 1000)])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: next(room))
        assert exit_status(argv) == 2
    said = capfd.readouterr().err
    assert said.count("error:") == 1
    assert f"cannot write at {run / 'checkpoints'}: No space left on device (a checkpoint needs" in said
    assert "free some space or choose another output folder" in said
    assert "Traceback" not in said
    assert checkpoints(run) == ["1"]
    assert not (run / "adapter").exists()

    assert exit_status([*argv, "--resume"]) == 0
    assert checkpoints(run) == ["1", "2"]
    assert [(line["phase"], line["step"]) for line in metrics(run)] == [("search", 1), ("search", 2)]
    assert not any("magnitude" in name for name in load_file(run / WEIGHTS))


def test_a_loss_that_is_no_number_stops_the_run_with_step_batch_and_phase(model_folder, data_files, tmp_path, capfd):
    """A rate of 1e38 leaves the float32 range with the second step's gradient."""
    run = tmp_path / "run"
    argv = [*inputs(model_folder, data_files, run), *SMALL, "--adapter.method", "lora", "--search.steps", "6",
            "--save-every", "1", "--eval-every", "0", "--inner.optimizer", "sgd", "--inner.learning-rate", "1e38",
            "--inner.schedule", "constant", "--inner.warmup", "0"]  # fmt: skip
    assert exit_status(argv) == 1
    said = capfd.readouterr().err
    print(said)
    assert said.count("stopped:") == 1
    assert "Traceback" not in said
    assert "is nan at step 2 of search, on the batch of training records " in said
    places = said.partition("training records ")[2].partition(";")[0].split(", ")
    assert len(set(places)) == 4 and all(place.startswith(f"{data_files[0]}:") for place in places)
    assert (
        "there is no good checkpoint before it; look at those records, lower the learning rates or set inner.clip"
        in said
    )
    assert checkpoints(run) == ["1"], "its weights are numbers, of 1e38"
    assert [line["step"] for line in metrics(run)] == [1]
    assert not (run / "adapter").exists()

    assert exit_status([*argv, "--resume", "--data.batch-size", "2"]) == 2
    assert "data.batch_size: 4 → 2" in capfd.readouterr().err
    lower = [*argv, "--resume", "--inner.learning-rate", "1e-4", "--inner.clip", "0"]
    assert exit_status(lower) == 0
    said = capfd.readouterr()
    assert "inner.learning_rate 1e+38 → 0.0001 from here on\ninner.clip 1 → 0 from here on\n" in said.out
    assert f"checkpoint {run / 'checkpoints' / '1'} has a loss that is NaN or infinite; it is in " in said.err
    assert [path.name for path in (run / "checkpoints-damaged").iterdir()] == ["1"]
    assert [line["step"] for line in metrics(run)] == [*range(1, 7)]
    assert run_config(str(run)).inner.learning_rate == 1e-4
    [changed] = read_facts(run)["changed"]
    assert "is nan at step 2" in changed["after"]
    assert changed["settings"] == {"inner.learning_rate": [1e38, 1e-4], "inner.clip": [1.0, 0.0]}
    assert exit_status([*lower, "--inner.learning-rate", "1e-5"]) == 2, "the run is not one that ended so any more"
    assert "inner.learning_rate: 0.0001 → 1e-05" in capfd.readouterr().err


def test_weights_that_are_no_numbers_are_not_saved_though_the_loss_before_them_was(tmp_path):
    def advance(state, _):
        number = state["step"] + 1
        ruined = jnp.where(number == 4, jnp.inf, state["A"])
        return {"A": ruined, "step": number}, {"train_loss": jnp.ones(())}

    phase = Phase(
        name="search", steps=6, epoch=4, steps_before=0, inputs=lambda step: StepInputs(None, 5, ["a:1"]), selects=False,
        patience=0, rates=lambda _: {}, advance=advance, adapter_of=lambda state: ({"A": state["A"]}, {}),
    )  # fmt: skip
    state = {"A": jnp.zeros(3), "step": jnp.zeros((), jnp.int32)}
    with MetricsLog(tmp_path / "metrics.jsonl") as log, Checkpoints(tmp_path / "checkpoints", 2) as kept:
        loop = Loop(None, log, kept, Intervals(0, 2, 0))
        with pytest.raises(RunError, match=r"^after step 4 of search the state holds NaN or infinity in A, though its loss was a "
                                           r"number; the last good checkpoint is 2; lower the learning rates"):  # fmt: skip
            loop.run(phase, PhaseState(state, ({"A": state["A"]}, {})))
        assert kept.latest() == 2


def test_a_validation_loss_that_is_no_number_stops_the_run_before_it_is_saved(tmp_path):
    def inputs(step: int) -> StepInputs:
        return StepInputs(None, 5, [f"a:{step}", "b:7"])

    phase = Phase(
        name="search", steps=4, epoch=4, steps_before=0, inputs=inputs, selects=True, patience=0, rates=lambda _: {},
        advance=lambda state, _: (state, {"train_loss": jnp.ones(())}), adapter_of=lambda state: (state, {}),
    )  # fmt: skip
    losses = iter([Evaluation(loss, 0.5, 7) for loss in (3.0, math.nan)])
    with MetricsLog(tmp_path / "metrics.jsonl") as log, Checkpoints(tmp_path / "checkpoints", 2) as kept:
        loop = Loop(lambda *_: next(losses), log, kept, Intervals(2, 2, 0))
        with pytest.raises(RunError, match=r"^evaluation_loss is nan at step 4 of search, on the batch of training "
                                           r"records a:3, b:7; the last good checkpoint is 2;"):  # fmt: skip
            loop.run(phase, PhaseState({"A": jnp.zeros(3)}, ({"A": jnp.zeros(3)}, {})))
        assert kept.latest() == 2
