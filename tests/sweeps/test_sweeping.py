"""sweeps/sweeping.py, sweeps/plan.py, sweeps/records.py, sweeps/trials.py, sweeps/training.py, sweeps/timing.py,
sweeps/judging.py, sweeps/results.py: sweeps of a tiny model. Equal budgets, records that no run reads, failures, the best
configuration, kills and shared studies.
"""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import ROOT

import bidora_jax
from bidora_jax import finetune
from bidora_jax.config import parse_call
from bidora_jax.sweeps import records

BUDGET = 2000
WEIGHTS = Path("adapter", "adapter_model.safetensors")


def write_rows(path: Path, first: int, count: int) -> str:
    """Records of the same number of tokens, none of them twice."""
    rows = [{"instruction": f"say {n:03d}", "output": f"v{7 * n % 1000:03d};"} for n in range(first, first + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_config(folder: Path, model: Path, **more) -> Path:
    """Runs of 20 training records, 4 a step, of which bidora splits off 4; 6 judge and 5 test."""
    files = {use: write_rows(folder / f"{use}.jsonl", *span) for use, span in
             (("train", (0, 20)), ("val", (100, 6)), ("test", (200, 5)))}  # fmt: skip
    settings = {
        "model": {"path": str(model), "remat": "none"}, "adapter": {"rank": 3, "target_modules": ["q_proj"]},
        "data": {**{f"{use}_file": name for use, name in files.items()}, "batch_size": 4, "buckets": 1, "max_length": 64},
        "inner": {"learning_rate": 0.03}, "search": {"steps": 4}, "retrain": {"steps": 6}, "compilation_cache": "",
        "report": False, "max_new_tokens": 2, "eval_every": 0, "save_every": 0,
    }  # fmt: skip
    for name, value in more.items():
        settings[name] = settings.get(name, {}) | value if isinstance(value, dict) else value
    (folder / "c.json").write_text(json.dumps(settings))
    return folder / "c.json"


@pytest.fixture(scope="module")
def swept(tmp_path_factory, model_folder):
    """A sweep of two methods with two seeds each; its other two points name a module that is not there."""
    folder = tmp_path_factory.mktemp("sweep")
    config = write_config(folder, model_folder)
    over = {"adapter.method": ("lora", "bidora"), "adapter.target_modules": (["q_proj"], ["nothing"])}
    call = {"over": over, "seeds": 2, "budget": f"tokens={BUDGET}", "output_dir": folder / "out"}
    return folder / "out", config, call, bidora_jax.sweep(config, **call)


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_method_takes_gradients_on_the_same_tokens(swept):
    folder, _, _, found = swept
    for one in found["trials"]:
        if one["state"] == "failed":
            continue
        for seed in range(2):
            lines = lines_of(folder / "trials" / str(one["number"]) / f"seed-{seed}")
            # All batches have as many tokens, T: a search step of bidora is counted 2·T, and takes (1 + 2)·T + T.
            price = {"search": 2 if one["method"] == "bidora" else 1, "retrain": 1}
            tokens = sum(price[line["phase"]] * line["tokens"] for line in lines)
            assert tokens == one["tokens"]
            assert BUDGET - lines[-1]["tokens"] < tokens <= BUDGET
            assert [sum(line["phase"] == name for line in lines) for name in ("search", "retrain")] == one["steps"]


@pytest.mark.slow
def test_a_point_that_fails_is_written_down_and_the_others_are_run(swept):
    folder, _, _, found = swept
    states = [(one["values"]["adapter.target_modules"], one["state"]) for one in found["trials"]]
    assert states == [('["q_proj"]', "complete"), ('["nothing"]', "failed")] * 2
    assert all("nothing" in one["error"] for one in found["trials"] if one["state"] == "failed")
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["complete", "failed"] * 2
    assert "nothing" in rows[1]["error"] and float(rows[0]["score"]) == found["trials"][0]["score"]
    assert found == json.loads((folder / "results.json").read_text())
    assert "<svg" in (folder / "sweep.html").read_text()


@pytest.mark.slow
def test_no_run_reads_what_judges_and_what_tests(swept):
    folder, config, _, found = swept
    used = [json.loads(path.read_text())["data"] for path in folder.glob("trials/*/seed-*/config.json")]
    assert len(used) == 4
    assert not [data for data in used if data["val_file"] or data["test_file"]]
    assert sorted({data["val_fraction"] for data in used}) == [0.0, 0.2]
    best = found["trials"][found["best"]]
    judged = [
        json.loads((folder / "trials" / str(best["number"]) / f"seed-{seed}" / "judged.json").read_text())
        for seed in (0, 1)
    ]
    assert [one["metrics"]["loss"] for one in judged] == best["scores"] and best["scores"][0] != best["scores"][1]
    assert best["score"] == pytest.approx(sum(best["scores"]) / 2)
    assert best["score"] == min(one["score"] for one in found["trials"] if one["score"] is not None)
    run = bidora_jax.load(folder / "trials" / str(best["number"]) / "seed-0")
    assert run.evaluate(str(config.parent / "val.jsonl"))["loss"] == pytest.approx(best["scores"][0], rel=1e-6)
    assert found["test"]["scores"][0] == pytest.approx(
        run.evaluate(str(config.parent / "test.jsonl"))["loss"], rel=1e-6
    )


@pytest.mark.slow
def test_the_best_configuration_trains_the_best_run_again(swept, tmp_path):
    folder, _, _, found = swept
    one, short = (parse_call(folder / f"best.{kind}", {})[0] for kind in ("json", "yaml"))
    assert one == short
    assert one.data.test_file.endswith("test.jsonl") and one.output_dir == str(folder / "best")
    finetune(
        folder / "best.yaml", output=tmp_path / "again", **{"data.test_file": ""}
    )  # answering would take most of the time
    first = folder / "trials" / str(found["best"]) / "seed-0"
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (first / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_a_finished_sweep_trains_nothing_more_and_another_one_is_refused(swept, capsys):
    folder, config, call, found = swept

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (*folder.glob("trials/*/*/*"), folder / "test.json")}

    before = times()
    assert bidora_jax.sweep(config, **call) == found
    assert times() == before
    assert "on the test records: loss" in capsys.readouterr().out
    with pytest.raises(
        bidora_jax.InputError, match="holds another sweep, which differs from this one:\n  seeds: 2 → 3"
    ):
        bidora_jax.sweep(config, **call | {"seeds": 3})


@pytest.mark.slow
def test_a_classifier_is_judged_by_a_share_of_train_within_a_time(tmp_path, model_folder):
    words = ("stone", "leaf", "sky")
    rows = [{"text": f"{words[n % 3]} {n:03d}", "label": words[n % 3]} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = write_config(tmp_path, model_folder, adapter={"method": "lora"}, task={"type": "classification"},
                          data={"train_file": str(tmp_path / "rows.jsonl"), "val_file": "", "test_file": "",
                                "val_fraction": 0.3})  # fmt: skip
    found = bidora_jax.sweep(config, over=["inner.learning_rate log 0.01 0.1"], trials=1, seeds=1, budget="time=0.5s",
                             output_dir=tmp_path / "out")  # fmt: skip
    assert (found["metric"], found["higher_is_better"], found["test"]) == ("accuracy", True, None)
    parts = [(tmp_path / "out" / "data" / f"{name}.jsonl").read_text().splitlines() for name in ("train", "judge")]
    assert [len(part) for part in parts] == [21, 9]
    assert sorted(map(json.loads, parts[0] + parts[1]), key=lambda row: row["text"][-3:]) == rows
    (timed,) = json.loads((tmp_path / "out" / "timings.json").read_text()).values()
    assert found["trials"][0]["steps"] == [int(0.5 / timed[0] + 1e-9), 0]


def test_records_judge_in_their_place(tmp_path):
    def chosen(judge=(), **data):
        settings = {"data.train_file": "t", **{f"data.{name}": value for name, value in data.items()}}
        base = parse_call(None, settings)[0]
        found = records.chosen(base, judge, tmp_path)
        runs = {method: records.of_run(found, parse_call(None, {**settings, "adapter.method": method})[0]).data
                for method in ("lora", "bidora")}  # fmt: skip
        return found, [(run.train_file, run.val_file, run.val_fraction, run.test_file) for run in runs.values()]

    found, runs = chosen(val_file="v", test_file="x")
    assert (found.judge, found.test, runs) == ("v", "x", [("t", "", 0.0, ""), ("t", "", 0.2, "")])
    found, runs = chosen(judge=("j",), val_file="v")
    assert (found.judge, runs) == (("j",), [("t", "v", 0.0, "")] * 2)
    found, runs = chosen(val_fraction=0.4)
    train = str(tmp_path / "data" / "train.jsonl")
    assert found.divided and runs == [(train, "", 0.0, ""), (train, "", 0.4, "")]


RATES = ("0.01", "0.04")


def trials_of(said: str) -> list[int]:
    """The trials that a process has run, as it says."""
    return [int(line.split()[1]) for line in said.splitlines() if line.startswith("trial ") and " of 2)" in line]


@pytest.mark.slow
def test_two_processes_share_a_sweep_and_what_a_killed_one_ran_is_gone_on_with(tmp_path, model_folder, capsys):
    config = write_config(tmp_path, model_folder, adapter={"method": "lora"}, search={"steps": 12}, save_every=1)
    out, theirs = tmp_path / "out", tmp_path / "out" / "trials" / "0" / "seed-0"
    argv = ["--config", str(config), "--over", "inner.learning_rate", *RATES, "--seeds", "1", "--output-dir", str(out)]
    command = [sys.executable, "-m", "bidora_jax.sweep", *argv]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        while not ((theirs / "metrics.jsonl").is_file() and '"step": 3' in (theirs / "metrics.jsonl").read_text()):
            assert other.poll() is None, other.communicate()
            time.sleep(0.02)
        other.send_signal(signal.SIGSTOP)  # in the middle of trial 0, which stays its own
        call = {"over": [f"inner.learning_rate {' '.join(RATES)}"], "seeds": 1, "output_dir": out}
        assert [one["state"] for one in bidora_jax.sweep(config, **call)["trials"]] == ["running", "complete"]
        said = capsys.readouterr().out
        assert trials_of(said) == [1] and "1 of 2 trials run in other processes" in said
        assert not (out / "results.csv").exists() and not (out / "test.json").exists()
        other.send_signal(signal.SIGKILL)
        assert trials_of(other.communicate()[0]) == [0]
    found = bidora_jax.sweep(config, **call)
    assert trials_of(capsys.readouterr().out) == [0]
    ended = [(one["state"], one["values"]["inner.learning_rate"]) for one in found["trials"]]
    assert ended == [("complete", rate) for rate in RATES] and (out / "results.csv").exists()
    assert "resumed search after step" in (out / "trials" / "0" / "seed-0.log").read_text()
    assert [(line["phase"], line["step"]) for line in lines_of(theirs)] == [("search", step) for step in range(1, 13)]
    finetune(theirs / "config.json", output=tmp_path / "alone", **{"save_every": 0})
    assert (tmp_path / "alone" / WEIGHTS).read_bytes() == (theirs / WEIGHTS).read_bytes()
