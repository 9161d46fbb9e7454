"""competitions/competition.py, competitions/training.py, competitions/model_folder.py, competitions/inputs.py: whole runs.

A competition from its folder to its files on a small model; the ensemble against the mean of its members; a run that is killed in
its last fold; what folds share.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import competitions
import jax
import kaggle_rules
import numpy as np
import pytest
from safetensors.numpy import load_file

import bidora_jax
from bidora_jax import InputError, predict
from bidora_jax.competitions import training
from bidora_jax.errors import command
from bidora_jax.runs.compile_clock import COMPILED

SETTINGS = {"folds": 3, "max_length": 32, "batch_size": 8, "lr": 0.01, "epochs": 0.4}
FLAGS = [text for name, value in SETTINGS.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def competition(folder: Path, make) -> competitions.Answer:
    folder.mkdir()
    return make(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["several_labels", "ordinal", "class_once", "two_regressions"])
def test_a_run_leaves_a_submission_that_is_accepted_and_all_its_files(name, model_folder, tmp_path):
    answer = competition(tmp_path / name, getattr(competitions, name))
    found = bidora_jax.kaggle(tmp_path / name, model=str(model_folder), output=tmp_path / "out", **SETTINGS)
    out = tmp_path / "out"
    for file in ("submission.csv", "submission_encoder.csv"):
        assert kaggle_rules.refused(out / file, tmp_path / name, answer) == []
    held, train = rows(out / "oof.csv"), rows(tmp_path / name / "train.csv")
    assert len(held) == len(train)
    assert {row["fold"] for row in held} == {"1", "2", "3"}
    assert {"encoder", "tf-idf", "blend"} < set(found.scores)
    assert all(len(one["folds"]) == 3 for one in found.scores.values())
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "How to submit" in page
    assert json.loads((out / "outcome.json").read_text())["weights"] == found.weights


@pytest.fixture(scope="module")
def finished(model_folder, tmp_path_factory):
    """A folder of a competition whose submission holds probabilities, a run on it, and what its folds compiled and loaded."""
    folder = tmp_path_factory.mktemp("competition")
    answer = competition(folder / "data", competitions.probability_for_each_class)
    compiled, by_fold, shares = [], {}, []

    def add(event: str, _: float, **about) -> None:
        if event == COMPILED:
            compiled.append(str(about.get("fun_name")))

    plain = training._run, training._outputs

    def run(where, *args):
        before = len(compiled)
        plain[0](where, *args)
        by_fold.setdefault(where.name, []).extend(compiled[before:])
        shares.append(args[-1])

    def outputs(plan, where, *args):
        before = len(compiled)
        made = plain[1](plan, where, *args)
        by_fold.setdefault(where.name, []).extend(compiled[before:])
        return made

    jax.monitoring.register_event_duration_secs_listener(add)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_run", run)
        patch.setattr(training, "_outputs", outputs)
        bidora_jax.kaggle(folder / "data", model=str(model_folder), output=folder / "out", **SETTINGS)
    jax.monitoring.unregister_event_duration_listener(add)
    return folder, answer, by_fold, shares


@pytest.mark.slow
def test_the_folds_share_one_base_and_one_set_of_programs(finished):
    *_, by_fold, shares = finished
    assert set(by_fold) == {"0", "1", "2"} and by_fold["0"]
    assert by_fold["1"] == [] and by_fold["2"] == []
    assert len({id(one) for one in shares}) == 1 and shares[0].loads == 1


@pytest.mark.slow
def test_the_ensemble_is_the_mean_of_the_members(finished, tmp_path):
    folder, answer, *_ = finished
    members = [load_file(folder / "out/folds" / str(fold) / "predictions.safetensors")["test"] for fold in range(3)]
    assert np.abs(members[0] - members[1]).max() > 1e-4
    mean = np.mean(members, axis=0)
    written = [list(map(float, list(row.values())[1:])) for row in rows(folder / "out/submission_encoder.csv")]
    names = json.loads((folder / "out/plan.json").read_text())["target"]["names"]
    columns = [name for name in rows(folder / "out/submission_encoder.csv")[0] if name != answer.id]
    order = [next(at for at, name in enumerate(names) if name in column) for column in columns]
    np.testing.assert_allclose(written, mean[:, order], atol=1e-8)
    # The folder that `predict` loads says the same, and so do the adapters one by one.
    data = folder / "data/test.csv"
    run = ["--run", str(folder / "out/model"), "--data-file", str(data), "--output", str(tmp_path / "p.csv")]
    command(predict.main, run)
    again = rows(tmp_path / "p.csv")
    np.testing.assert_allclose([[float(row[name]) for name in names] for row in again], mean, atol=1e-6)
    assert [row["label"] for row in again] == [names[number] for number in mean.argmax(1)]


@pytest.mark.slow
def test_a_table_that_lacks_a_column_is_refused(finished, tmp_path, capfd):
    folder, *_ = finished
    (tmp_path / "other.csv").write_text("id,words\n1,stone\n")
    run = [
        "--run",
        str(folder / "out/model"),
        "--data-file",
        str(tmp_path / "other.csv"),
        "--output",
        str(tmp_path / "p.csv"),
    ]
    with pytest.raises(InputError, match="which the model reads; it has 'id', 'words'"):
        predict.main(run)
    with pytest.raises(InputError, match="whose plan says how rows are read: leave --max-length out"):
        predict.main([*run, "--max-length", "8"])
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.slow
def test_a_run_killed_in_its_last_fold_goes_on_to_the_same_bytes(finished, model_folder, tmp_path):
    folder, *_ = finished
    out = tmp_path / "out"
    argv = [sys.executable, "-m", "bidora_jax.kaggle", str(folder / "data"), "--output", str(out)]
    run = subprocess.Popen([*argv, "--model", str(model_folder), *FLAGS], env=os.environ, stdout=subprocess.DEVNULL)
    lines = out / "folds/2/metrics.jsonl"
    while run.poll() is None and not (lines.exists() and lines.read_text().count("\n") >= 2):
        time.sleep(0.01)
    assert run.poll() is None, "it ended before it could be killed"
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (out / "submission.csv").exists() and not (out / "folds/2/predictions.safetensors").exists()
    first = (out / "folds/0/predictions.safetensors").stat().st_mtime_ns
    done = subprocess.run([*argv, "--resume"], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "folds/0/predictions.safetensors").stat().st_mtime_ns == first  # a finished fold is not trained again
    for name in ("submission.csv", "submission_encoder.csv", "oof.csv"):
        assert (out / name).read_bytes() == (folder / "out" / name).read_bytes(), name
    for fold in range(3):
        weights = f"model/fold-{fold + 1}/adapter_model.safetensors"
        assert (out / weights).read_bytes() == (folder / "out" / weights).read_bytes()
    # Other rows would be other folds.
    other = shutil.copytree(folder / "data", tmp_path / "data")
    plan = json.loads((out / "plan.json").read_text()) | {"folder": str(other)}
    (out / "plan.json").write_text(json.dumps(plan))
    text = (other / "train.csv").read_text()
    (other / "train.csv").write_text(text[: text.rstrip().rindex("\n") + 1])
    with pytest.raises(InputError, match=r"are not those that the run in .* began with"):
        bidora_jax.kaggle(other, output=out, resume=True)
    shutil.rmtree(out)


def test_steps_fill_the_time_that_is_left():
    # 0.85 of 1,000 s, less 100 s: 150 s for each of 5 folds, less 30 s of predictions, at 2 s a step.
    assert training.steps_within(1000, 100, 5, (500, 30, 2.0)) == 60
    assert training.steps_within(1000, 700, 5, (500, 9, 2.0)) == 10
    with pytest.raises(InputError, match=r"--time allows 16\.7 minutes, and 5 folds of 10 steps .* need 17\.1"):
        training.steps_within(1000, 720, 5, (500, 10, 2.0))
    assert training.steps_within(1000, 720, 5, (3, 10, 2.0)) == 8  # all that is wanted


@pytest.mark.slow
def test_a_timed_trial_leaves_the_plan_where_the_time_is_enough(model_folder, tmp_path):
    competition(tmp_path / "data", competitions.true_and_false)
    told = {**SETTINGS, "folds": 2, "model": str(model_folder), "output": tmp_path / "out"}
    bidora_jax.kaggle(tmp_path / "data", time="2h", **told)
    kept = json.loads((tmp_path / "out/folds/settings.json").read_text())["settings"]
    lines = (tmp_path / "out/folds/0/metrics.jsonl").read_text().splitlines()
    assert kept["search.steps"] == len(lines) > 0
    assert not (tmp_path / "out/folds/trial").exists()


@pytest.mark.slow
def test_too_little_time_is_refused_and_leaves_no_run(model_folder, tmp_path):
    competition(tmp_path / "data", competitions.true_and_false)
    told = {**SETTINGS, "folds": 2, "epochs": 2000, "model": str(model_folder), "output": tmp_path / "out"}
    with pytest.raises(
        InputError, match=r"--time allows 0\.0 minutes, and 2 folds of 10 steps .* need \d+\.\d: .*give more time"
    ):
        bidora_jax.kaggle(tmp_path / "data", time="1s", **told)
    assert not (tmp_path / "out/plan.json").exists() and not (tmp_path / "out/folds/trial").exists()
