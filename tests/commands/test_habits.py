"""cli.py, flags.py: command lines as users of the PyPI package bidora write them, and what becomes of each here.

    python tests/commands/test_habits.py        the lines, each with its exit code and first line

They are taken as written, with `bidora` read as `bidora-jax`, in a folder that holds their files: data/train.jsonl,
data/val.jsonl, data/rust_3d_*.jsonl and small models of random weights under the names Qwen/Qwen3-…. A line of `train` goes as far
as everything is read and checked; one of them is compiled and trained, a step of each phase.

    as written                                                exit  says first
    info                                                      0     software
    list-models --help                                        0     usage: python -m bidora_jax.models [-h] [OPTIONS]
    train --help                                              0     usage: python -m bidora_jax.train -m Qwen/Qwen3-0.6B -t …
    train --train-file … --val-file … and the other eight     0     train: 23 records, 1,037 tokens
    train -m … -t … -v … --max-samples 5                      0     train: the first 5 of 23 records
    train --dataset code_search_net …                         2     no validation split; data sets of the hub are named ORG/NAME
    train --batch-size 1                                      2     model.path and data.train_file are not set
    train --model Qwen/Qwen3-1.7B                             2     data.train_file is not set
"""

import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
from contextlib import chdir, redirect_stdout
from pathlib import Path

import pytest
from runs import ROOT
from tiny import write_model_folder

from bidora_jax.config import leaves, named, parse_train
from bidora_jax.data import splits
from bidora_jax.data.settings import DataConfig
from bidora_jax.data.sources import sources
from bidora_jax.errors import InputError
from bidora_jax.runs.assembly import assemble
from bidora_jax.runs.checks import check_config, check_folder

FILES = "train --train-file data/train.jsonl --val-file data/val.jsonl"
BASIC = f"{FILES} --model Qwen/Qwen3-4B --output ./output --rank 8 --epochs 3"
TAKEN = {
    BASIC: {"adapter.rank": 8, "search.epochs": 3, "output_dir": "./output"},
    f"{FILES} --model Qwen/Qwen3-4B --lr 2e-4 --upper-lr-mult 2.0 --rank 8": {
        "inner.learning_rate": 2e-4, "outer.multiplier": 2.0, "outer.learning_rate": 4e-4,
    },
    f"{FILES} --model Qwen/Qwen3-4B --rank 4 --batch-size 1 --auto-hardware": {"adapter.rank": 4, "data.batch_size": 1},
    f"{FILES} --model Qwen/Qwen3-8B --rank 16 --batch-size 2 --auto-hardware": {"data.batch_size": 2},
    f"{FILES} --model Qwen/Qwen3-32B --rank 16 --batch-size 8 --auto-hardware": {"model.path": "Qwen/Qwen3-32B"},
    f"{FILES} --model Qwen/Qwen3-8B --rank 16 --batch-size 8 --lr 3e-4 --epochs 5 --no-auto-hardware": {
        "inner.learning_rate": 3e-4, "search.epochs": 5,
    },
    "train --train-file data/rust_3d_train.jsonl --val-file data/rust_3d_val.jsonl --model Qwen/Qwen3-4B --output ./rust_3d_model "
    "--rank 8 --epochs 3 --batch-size 2": {"data.train_file": "data/rust_3d_train.jsonl", "output_dir": "./rust_3d_model"},
    "train -m Qwen/Qwen3-4B -t data/train.jsonl -v data/val.jsonl -o ./output -r 8 -e 3 -b 4 --max-samples 5": {
        "data.max_samples": 5, "data.batch_size": 4,
    },
    "train -m Qwen/Qwen3-1.7B -d data/train.jsonl -v data/val.jsonl -b 1": {"data.train_file": "data/train.jsonl"},
}  # fmt: skip
"""Command lines that train, and settings that they mean."""
SHOWN = {
    "info": "software",
    "list-models --help": "usage: python -m bidora_jax.models",
    "train --help": "usage: python -m bidora_jax.train -m Qwen/Qwen3-0.6B -t train.jsonl",
}
REFUSED = {
    "train --dataset code_search_net --model Qwen/Qwen3-8B --output ./output --rank 8": (
        "set data.val_file (-v), or data.val_fraction (0.2 in the paper), or choose method dora",
        "there is no data file code_search_net here; a data set on the hub is named ORG/NAME@SPLIT: "
        "huggingface.co/datasets/code_search_net leads to the full name",
    ),
    "train --batch-size 1": ("model.path is not set: give a model folder", "data.train_file is not set"),
    "train --model Qwen/Qwen3-1.7B": ("data.train_file is not set: give a file of records",),
}


def prepare(folder: Path) -> None:
    """Writes the files that the lines name."""
    (folder / "data").mkdir()
    for name, count in (("train", 23), ("val", 11), ("rust_3d_train", 23), ("rust_3d_val", 11)):
        asked = [{"instruction": f"{name} {number}", "output": f"v{number};"} for number in range(count)]
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in asked))
    for size in ("1.7B", "4B", "8B", "32B"):
        write_model_folder(folder / "Qwen" / f"Qwen3-{size}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("habits")
    prepare(folder)
    return folder


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # In the middle of a line of help a narrow terminal would break it.
    env = os.environ | {"COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "bidora_jax", *shlex.split(line)]
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("line", TAKEN)
def test_a_line_that_trains_is_read_whole_and_found_good(line, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    first = as_far_as_read(line)
    assert first.startswith("train: the first 5 of 23 records" if "--max-samples" in line else "train: 23 records, ")
    config, _ = parse_train(shlex.split(line)[1:])
    values = dict(leaves(config))
    assert {name: values[name] for name in TAKEN[line]} == TAKEN[line]
    assert ("auto" in named(shlex.split(line)[1:])) == ("--auto-hardware" in line.split())


def as_far_as_read(line: str) -> str:
    """What `train` does before it compiles; its first line of output."""
    config, arguments = parse_train(shlex.split(line)[1:])
    check_config(config)
    check_folder(config, arguments.resume)
    with redirect_stdout(io.StringIO()) as said:
        assemble(config)
    return said.getvalue().splitlines()[0]


@pytest.mark.parametrize("line", SHOWN)
def test_a_line_that_shows_something_shows_it(line, folder):
    done = run(line, folder)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(SHOWN[line])


@pytest.mark.parametrize("line", REFUSED)
def test_a_line_that_lacks_something_is_told_what(line, folder):
    done = run(line, folder)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    for words in REFUSED[line]:
        assert words in done.stderr


@pytest.mark.slow
def test_one_of_them_trains(folder):
    done = run(f"{BASIC} --search.steps 1 --retrain.steps 1 --adapter.target-modules q_proj --data.buckets 1", folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "output" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", ["squad", "glue:mrpc@train", "code_search_net@train[:9%]"])
def test_a_bare_name_is_told_the_full_form_where_it_is_read_too(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no data file at .*ORG/NAME@SPLIT: huggingface.co/datasets/\w+ leads to"):
        list(sources.scan(name))
    assert len(splits.bare_names(DataConfig(train_file=name, val_file=("a.jsonl", name)))) == 2


def test_files_and_folders_without_an_ending_are_no_bare_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("saved").mkdir()
    Path("rows").touch()
    sources_of_all_kinds = ("saved", "saved@train", "rows", "org/name@train", "data/*.jsonl", "a.txt", "", "*")
    assert splits.bare_names(DataConfig(train_file=sources_of_all_kinds)) == []


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place, chdir(place):
        prepare(Path(place))
        for one in TAKEN:
            print(f"{one}\n    0  {as_far_as_read(one)}")
        for one in (*SHOWN, *REFUSED):
            result = run(one, Path(place))
            lines = (result.stdout or result.stderr).splitlines()
            print(f"{one}\n    {result.returncode}  {' / '.join(lines if result.returncode else lines[:1])}")
