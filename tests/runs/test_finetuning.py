"""runs/finetuning.py: a run from Python is the run that the command line makes, and a refused one leaves nothing behind."""

import json
from pathlib import Path

import datasets
import pandas as pd
import pytest
from runs import contents, exit_status, inputs
from runs import metrics as logged

import bidora_jax
from bidora_jax import InputError, export, finetune
from bidora_jax.errors import command
from bidora_jax.runs import finetuning

WEIGHTS = Path("adapter", "adapter_model.safetensors")
SETTINGS = {"rank": 3, "lr": 0.4, "adapter.target_modules": ["q_proj"], "data.buckets": 1, "inner.schedule": "constant",
            "search.steps": 2, "retrain.steps": 1, "report": False, "eval_every": 1}  # fmt: skip
FLAGS = ["--rank", "3", "--lr", "0.4", "--adapter.target-modules", "q_proj", "--data.buckets", "1", "--inner.schedule",
         "constant", "--search.steps", "2", "--retrain.steps", "1", "--no-report", "--eval-every", "1"]  # fmt: skip


def rows(file: Path) -> list[dict]:
    """The records of a JSONL file, some of them with one more key."""
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [{**row, "input": "please"} if number % 3 == 0 else row for number, row in enumerate(found)]


@pytest.mark.slow
def test_rows_in_memory_and_a_path_train_the_adapter_of_the_command_line_bit_for_bit(
    model_folder, data_files, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    train, val = (rows(file) for file in data_files[:2])
    files = [tmp_path / "train.jsonl", tmp_path / "val.jsonl"]
    for file, part in zip(files, (train, val), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in part))
    assert exit_status([*inputs(model_folder, (*files,), tmp_path / "cli"), *FLAGS]) == 0
    expected = (tmp_path / "cli" / WEIGHTS).read_bytes()
    forms = {
        "path": lambda part: files[part is val],
        "list": lambda part: part,
        "Dataset": datasets.Dataset.from_list,
        "frame": lambda part: pd.DataFrame(part, index=range(100, 100 + len(part))),
    }
    for name, form in forms.items():
        run = finetune(
            {"adapter": {"method": "bidora"}},
            model=model_folder,
            train=form(train),
            val=form(val),
            output=name,
            **SETTINGS,
        )
        assert run.folder == tmp_path / name
        assert (run.folder / WEIGHTS).read_bytes() == expected, name
        assert logged(run.folder) == logged(tmp_path / "cli")
        held = json.loads((run.folder / "config.json").read_text())["data"]
        own = (
            [str(files[0]), str(files[1])] if name == "path" else [f"{name}/data/train.jsonl", f"{name}/data/val.jsonl"]
        )
        assert [held["train_file"], held["val_file"]] == own
        assert (run.folder / "data").exists() == (name != "path")
    said = capfd.readouterr()
    assert "search: 2 of 2 steps" in said.out and "retrain 1/1  loss" in said.err

    # The run folder is one that the command line goes on with, and Python too.
    assert exit_status(["--config", "frame/config.json", "--resume"]) == 0
    assert "resumed retrain after step 1 of 1" in capfd.readouterr().out
    command(export.main, ["--run", "frame", "--format", "adapter", "--output", "exported"])
    assert (tmp_path / "exported" / WEIGHTS.name).read_bytes() == expected
    run = finetune("frame/config.json", resume=True)
    assert (run.folder / WEIGHTS).read_bytes() == expected
    assert "resumed retrain after step 1 of 1" in capfd.readouterr().out
    with (tmp_path / "frame/data/val.jsonl").open("a") as file:
        file.write(json.dumps(val[0]) + "\n")
    with pytest.raises(InputError, match="has changed since it began:\n  validation data"):
        finetune("frame/config.json", resume=True)


def test_a_share_is_validated_on_and_a_folder_of_the_day_is_made(
    model_folder, data_files, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    run = finetune(model=model_folder, train=rows(data_files[0]), val=0.3, method="lora", **SETTINGS)
    assert f"run folder runs/{run.folder.name}\n" in capfd.readouterr().out
    assert [path.name for path in Path("runs").iterdir()] == [run.folder.name]
    facts = json.loads((run.folder / "run.json").read_text())
    assert facts["records"] == {"train": 16, "val": 7, "test": 0}
    assert [path.name for path in (run.folder / "data").iterdir()] == ["train.jsonl"]


def test_the_folder_of_the_day_is_a_fresh_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Noon(finetuning.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 11, 29, 12, 5, 7)

    monkeypatch.setattr(finetuning, "datetime", Noon)
    found = []
    for _ in range(3):
        found.append(finetuning._fresh())
        Path(found[-1]).mkdir(parents=True)
    assert found == [f"runs/2026-11-29_12-05-07{end}" for end in ("", "-2", "-3")]


# Refusals

BAD = [{"instruction": 3, "output": "x"}]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train": [*BAD, {"a": 1}]}, "2 of the 2 lines of train cannot be used; each should be one JSON object shaped"),
        ({"train": BAD}, "\n  train row 1: 'instruction' should be text, found the number 3"),
        ({"val": BAD}, "\n  val row 1: 'instruction' should be text"),
        ({"val": None}, "method bidora trains the magnitude on a validation split, and there is none"),
        ({"train": None}, "data.train_file is not set"),
        ({"train": [{"text": b"x"}]}, "train row 1, column 'text': a value of kind bytes has no form in JSON"),
        ({"train": []}, "train holds no row"),
        ({"train": "none.jsonl"}, "no data file at none.jsonl"),
        ({"train_file": "x.jsonl"}, "train and train_file both set data.train_file: give one"),
        ({"dataset": "x/y"}, "train and dataset both set data.train_file: give one"),
        ({"data.val_file": "x.jsonl"}, "val and data.val_file both set data.val_file: give one"),
        ({"data.val_fraction": 0.2}, "data.val_file and data.val_fraction are both set"),
        ({"resume": True}, "resume goes on with the rows in the run folder: leave train and val out"),
        ({"resume": True, "train": None, "val": 0.2}, "data.train_file is not set"),
        ({"learning_rate": 1}, "finetune has no setting\n  learning_rate: did you mean inner.learning_rate"),
        ({"model": "no/where"}, "no/where"),
        ({"search.steps": -1}, "search.steps must be at least 0, found -1"),
    ],
)  # fmt: skip
def test_a_refused_call_leaves_nothing_behind(change, says, model_folder, data_files, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    given = {"model": model_folder, "train": rows(data_files[0]), "val": rows(data_files[1]), "output": "runs/new/one"}
    for folder in ("", "runs/new/one"):  # a folder that is empty is taken, and stays
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        before = contents(tmp_path)
        with pytest.raises(InputError) as refused:
            finetune(**{**SETTINGS, **given, **change})
        assert says in str(refused.value)
        assert "runs/new/one/data" not in str(refused.value)
        assert contents(tmp_path) == before


def test_a_folder_that_is_not_empty_is_refused_and_stays(model_folder, data_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/default/data").mkdir(parents=True)
    Path("runs/default/data/train.jsonl").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="output_dir runs/default is not empty"):
        finetune(model=model_folder, train=rows(data_files[0]), val=0.2, output="runs/default")
    assert contents(tmp_path) == before


def test_rows_go_with_an_interrupt_before_the_run_and_stay_after_it_has_begun(tmp_path):
    run = tmp_path / "runs" / "one"

    def interrupted(begun: bool) -> None:
        with finetuning.kept(run, {run / "data/train.jsonl": b"{}\n"}):
            assert (run / "data/train.jsonl").read_bytes() == b"{}\n"
            if begun:
                (run / "config.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(begun=False)
    assert contents(tmp_path) == {}
    with pytest.raises(KeyboardInterrupt):
        interrupted(begun=True)
    assert set(contents(run)) == {"config.json", "data", "data/train.jsonl"}


def test_the_error_is_the_packages_own():
    from bidora_jax import errors

    assert bidora_jax.InputError is errors.InputError
    assert {"finetune", "load", "InputError"} <= set(dir(bidora_jax))
