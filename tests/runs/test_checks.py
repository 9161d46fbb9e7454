"""runs/checks.py and config.py at the door: a run that cannot go well is refused with the remedy before anything is written."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from runs import SMALL, contents, exit_status, inputs, process

from bidora_jax.config import parse_train, to_json
from bidora_jax.errors import InputError
from bidora_jax.runs.checks import check_folder


class Case:
    """A good call to spoil, and what must not come into being."""

    def __init__(self, model_folder: Path, data_files: tuple[Path, ...], folder: Path) -> None:
        self.folder, self.output, self.data = folder, folder / "out", data_files
        self.model = folder / "model"
        shutil.copytree(model_folder, self.model)
        self.argv = [*inputs(self.model, data_files, self.output), *SMALL]

    def records(self, lines: list[str], flag: str = "--data.train-file") -> list[str]:
        path = self.folder / "records.jsonl"
        path.write_text("\n".join(lines))
        return [flag, str(path)]

    def config(self, values: dict) -> list[str]:
        (self.folder / "c.json").write_text(json.dumps(values))
        return ["--config", str(self.folder / "c.json")]


@pytest.fixture
def case(model_folder, data_files, tmp_path):
    return Case(model_folder, data_files, tmp_path)


def missing_file(case):
    return ["--data.train-file", str(case.folder / "none.jsonl")]


def missing_val_file(case):
    return ["--data.val-file", str(case.folder / "none.jsonl")]


def empty_file(case):
    return case.records([])


def line_17(case):
    lines = case.data[0].read_text().splitlines()
    return case.records([*lines[:16], '{"instruction": "x", "output":', *lines[17:]])


def no_known_keys(case):
    return case.records([json.dumps({"instructions": "x", "answer": "y"})] * 3)


def empty_responses(case):
    return case.records([json.dumps({"instruction": "x", "output": " "})] * 3)


def no_validation(case):
    return ["--data.val-file", ""]


def unknown_key(case):
    return case.config({"serach": {"steps": 1}})


def wrong_type(case):
    return case.config({"adapter": {"rank": "8"}})


def rank_0(case):
    return ["--adapter.rank", "0"]


def no_such_module(case):
    return ["--adapter.target-modules", "q_porj"]


def no_model_config(case):
    (case.model / "config.json").unlink()
    return []


def truncated(case):
    weights = case.model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return []


def unsupported(case):
    config = json.loads((case.model / "config.json").read_text())
    (case.model / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    return []


def no_tokenizer(case):
    for path in case.model.glob("tokenizer*"):
        path.unlink()
    return []


def nothing_to_resume(case):
    return ["--resume"]


def below_a_file(case):
    (case.folder / "file").write_text("")
    return ["--output-dir", str(case.folder / "file" / "out")]


def too_long(case):
    record = {"instruction": "x", "output": "v" * 500}
    return case.records([json.dumps(record)])


REFUSALS = [
    (missing_file, ["no data file at", "none.jsonl; check the path: a relative one starts from"]),
    (missing_val_file, ["no data file at", "none.jsonl; check the path"]),
    (empty_file, ["holds no record", "expected one JSON object a line"]),
    (line_17, ["records.jsonl:17: not JSON", "1 of the 23 lines"]),
    (no_known_keys, ["records.jsonl:1", "records.jsonl:3", "'instructions' (did you mean 'instruction'?)"]),
    (empty_responses, ["none of the 3 records has a token to train on: 3 have an empty response", "fill the responses in"]),
    (no_validation, ["method bidora trains the magnitude on a validation split", "set data.val_file"]),
    (unknown_key, ["unknown key serach (did you mean 'search'?)"]),
    (wrong_type, ["adapter.rank: expected an integer, found '8'"]),
    (rank_0, ["adapter.rank must be at least 1, found 0"]),
    (no_such_module, ["no linear layer of this model matches 'q_porj' (did you mean 'q_proj'?)", "all-linear"]),
    (no_model_config, ["has no config.json", "point model.path at a Hugging Face model folder"]),
    (truncated, ["model.safetensors has", "fetch it again"]),
    (unsupported, ["model_type 'mamba' is not supported", "supported: llama, mistral, qwen2, qwen3"]),
    (no_tokenizer, ["no tokenizer in", "expected one of"]),
    (nothing_to_resume, ["nothing to resume", "start without --resume"]),
    (below_a_file, ["is a file", "choose another"]),
    (too_long, ["more than the 256 positions of the model; lower data.max_length"]),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "said"), REFUSALS, ids=[spoil.__name__ for spoil, _ in REFUSALS])
def test_bad_input_is_refused_with_the_remedy_before_anything_is_written(case, spoil, said, capfd):
    argv = [*case.argv, *spoil(case)]
    before = contents(case.folder)
    assert exit_status(argv) == 2
    out, err = capfd.readouterr()
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    assert "Traceback" not in out + err
    for part in said:
        assert part in err
    assert contents(case.folder) == before
    assert not case.output.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--data.train-file", "none.jsonl"], "error: no data file at none.jsonl"),
     (["--search.setps", "3"], "--search.steps"), (["--adapter.rank", "big"], "--adapter.rank"),
     (["--search.steps", "0", "--search.epochs", "0"], "there is nothing to train")],
)  # fmt: skip
def test_a_process_exits_with_2(case, flags, said):
    done = process(["-m", "bidora_jax.train", *case.argv, *flags])
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not case.output.exists()


def test_all_values_that_cannot_be_meant_are_listed(case, capfd):
    flags = ["--keep", "0", "--data.max-length", "1", "--seed", "-1", "--data.val-fraction", "1.5", "--search.steps", "0",
             "--search.epochs", "0"]  # fmt: skip
    assert exit_status([*case.argv, *flags]) == 2
    said = capfd.readouterr().err
    for part in ("keep must be at least 1, found 0", "data.max_length must be at least 2", "seed must be at least 0",
                 "data.val_fraction must be in [0, 1), found 1.5", "both set: keep one", "nothing to train"):  # fmt: skip
        assert part in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--adapter.method", "lora", "--search.gram-penalty", "1"], "which method lora does not have"),
     (["--adapter.method", "dora", "--search.lower-steps", "2"], "search.lower_steps needs two levels"),
     (["--adapter.method", "dora", "--data.val-file", "", "--search.patience", "1"], "patience needs a validation"),
     (["--adapter.method", "lora", "--adapter.norm", "constant"], "adapter.norm is set"),
     (["--model.path", ""], "model.path is not set"), (["--data.train-file", ""], "data.train_file is not set"),
     (["--outer.learning-rate", "-1"], "outer.learning_rate must be at least 0")],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(case, flags, said, capfd):
    assert exit_status([*case.argv, *flags]) == 2
    assert said in capfd.readouterr().err
    assert not case.output.exists()


@pytest.fixture
def begun(case):
    """A run folder as a run of `case` leaves it, and what is in it."""
    config, _ = parse_train(case.argv)
    (case.output / "checkpoints").mkdir(parents=True)
    (case.output / "config.json").write_text(to_json(config))
    (case.output / "metrics.jsonl").write_text('{"phase": "search", "step": 1}\n')
    return contents(case.output)


def test_a_changed_configuration_is_not_resumed(case, begun, capfd):
    changed = ["--adapter.rank", "2", "--inner.learning-rate", "0.5", "--save-every", "7"]
    assert exit_status([*case.argv, *changed, "--resume"]) == 2
    said = capfd.readouterr().err
    for part in ("adapter.rank: 3 → 2", "inner.learning_rate: 0.0002 → 0.5", "outer.learning_rate: 0.0004 → 1.0",
                 f"resume with --config {case.output / 'config.json'}"):  # fmt: skip
        assert part in said
    assert "save_every" not in said  # how often a run saves may change
    assert contents(case.output) == begun


def test_the_folder_of_another_run_is_left_alone(case, begun, capfd):
    assert exit_status(case.argv) == 2
    assert "holds another run: choose another one with --output-dir, or go on with --resume" in capfd.readouterr().err
    assert contents(case.output) == begun


def test_half_of_a_configuration_is_no_run(case):
    """A process was killed between writing it and giving it its name."""
    config, _ = parse_train(case.argv)
    case.output.mkdir()
    (case.output / ".config.json.tmp-4711").write_text("{")
    check_folder(config, False)
    (case.output / "x").touch()
    with pytest.raises(InputError, match="is not empty"):
        check_folder(config, False)


def test_a_copied_run_goes_on_in_the_copy(case, begun, capfd):
    """The folder is where config.json lies, unless another one is named."""
    copy = shutil.copytree(case.output, case.output.with_name("copy"))
    argv = ["--config", str(copy / "config.json")]
    assert parse_train([*argv, "--resume"])[0].output_dir == str(copy)
    assert f"resumes in {copy}, where its config.json lies, and not in {case.output}" in capfd.readouterr().err
    assert parse_train(argv)[0].output_dir == str(case.output)
    assert parse_train([*argv, "--resume", "--output-dir", "other"])[0].output_dir == "other"
    own = ["--config", str(case.output / "config.json"), "--resume"]
    assert parse_train(own)[0].output_dir == str(case.output)
    assert capfd.readouterr().err == ""


def test_a_folder_of_other_things_is_left_alone(case, capfd):
    case.output.mkdir()
    (case.output / "thesis.tex").write_text("x")
    assert exit_status(case.argv) == 2
    assert "is not empty: choose another one" in capfd.readouterr().err
    assert contents(case.output) == {"thesis.tex": b"x"}


def test_a_disk_that_is_full_at_the_start_leaves_nothing_in_the_way_of_the_next_try(case, monkeypatch, capfd):
    def full(path, *_, **__):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert exit_status([*case.argv, "--model.remat", "layer"]) == 2  # nothing to choose: nothing is compiled before
    said = capfd.readouterr().err
    assert (
        said
        == f"error: cannot write at {case.output / f'.config.json.tmp-{os.getpid()}'}: No space left on device; free some "
        "space or choose another output folder\n"
    )
    assert not case.output.exists()
