"""runs/serving.py: what a run folder stands for in evaluate, generate and train, wherever it is given.

models/formats/peft_config.py finds its adapter/, and models/formats/hf_config.py says what it is where a model is expected.
"""

import json

import pytest
from random_adapters import KINDS
from runs import trained_run

from bidora_jax import evaluate, export, generate, show_data
from bidora_jax.config import parse_train
from bidora_jax.errors import InputError, command
from bidora_jax.evaluate import EvaluateArguments
from bidora_jax.generation.served_model import open_folder
from bidora_jax.models.formats import hf_config, peft_config
from bidora_jax.runs.serving import named, settled

FORM = ("--model.quantization", "nf4", "--model.no-double-quant", "--model.quantized-modules", "q_proj", "down_proj")


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder, data_files):
    """A finished run on a base of which some layers are quantised, with test records, cut at 20 tokens."""
    flags = ("--data.train-file", str(data_files[0]), "--data.val-file", str(data_files[1]), "--data.test-file",
             str(data_files[2]), "--data.max-length", "20", "--data.loss-on", "all")  # fmt: skip
    return trained_run(tmp_path_factory.mktemp("serving") / "run", model_folder, KINDS["dora"], *FORM, *flags)


def meant(*argv, **fields):
    return settled(EvaluateArguments(**fields), named(argv))


def evaluated(*argv, to) -> dict:
    command(evaluate.main, [*map(str, argv), "--json", str(to)])
    return json.loads(to.read_text())


def refused(main, *argv, capfd) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(main, [*map(str, argv)])
    out, err = capfd.readouterr()
    assert (stopped.value.code, out, err.count("error: ")) == (2, "", 1)
    return err


def test_a_run_is_its_base_in_its_form_with_its_adapter(run, model_folder):
    found = meant(run=str(run))
    assert (found.model, found.adapter) == (str(model_folder), (f"{run}/adapter",))
    trained = hf_config.read_config(model_folder) and found.settings
    assert (trained.quantization, trained.double_quant) == ("nf4", False)
    assert trained.quantized_modules == ("q_proj", "down_proj")
    assert meant("--quantization=none", "--double-quant", run=str(run)).settings.quantization == "none"
    assert meant("--quantization=none", "--double-quant", run=str(run)).settings.double_quant is True
    both = meant(run=str(run), adapter=("other=x",))
    assert both.adapter == (f"{run}/adapter", "other=x")


@pytest.mark.parametrize("how", ["model", "adapter", "name", "its adapter", "both"])
def test_a_run_folder_is_taken_as_what_is_meant(run, model_folder, how):
    given = {
        "model": {"model": f"{run}"}, "adapter": {"adapter": (f"{run}",)}, "name": {"adapter": (f"mine={run}",)},
        "its adapter": {"adapter": (f"{run}/adapter",)}, "both": {"model": f"{run}", "adapter": (f"{run}/",)},
    }[how]  # fmt: skip
    found = meant(**given)
    assert (found.model, found.settings) == (str(model_folder), meant(run=str(run)).settings)
    names = {"adapter": [f"{run}"], "name": ["mine"]}.get(how, [f"{run}/adapter"])
    assert list(open_folder(found).members) == names


def test_an_adapter_of_a_run_goes_over_a_model_that_is_named(run, model_folder):
    found = meant(model=str(model_folder), adapter=(f"{run}",))
    assert found.settings.quantization == "none"
    assert open_folder(found).members[f"{run}"].adapter.magnitude


def test_evaluate_takes_the_records_that_the_run_was_tested_on(run, model_folder, data_files, tmp_path, capfd):
    found = evaluated("--run", run, to=tmp_path / "run.json")
    assert f"records     {data_files[2]}: the run's test records\n" in capfd.readouterr().out
    typed = ["--model", model_folder, "--adapter", run / "adapter", "--quantization", "nf4", "--no-double-quant",
             "--quantized-modules", "q_proj", "--quantized-modules", "down_proj", "--data-file", data_files[2],
             "--max-length", "20", "--loss-on", "all"]  # fmt: skip
    assert found == evaluated(*typed, to=tmp_path / "typed.json")
    assert found["records_cut"] > 0
    other = evaluated("--run", run, "--data-file", data_files[1], "--max-length", "99", to=tmp_path / "other.json")
    assert (other["data_file"], other["records"], other["records_cut"]) == (str(data_files[1]), 11, 0)


def test_evaluate_takes_validation_records_where_they_are_a_source_of_their_own(
    model_folder, data_files, tmp_path, capfd
):
    files = ("--data.train-file", str(data_files[0]), "--data.val-file", str(data_files[1]))
    run = trained_run(tmp_path / "run", model_folder, KINDS["bidora"], *files, "--retrain.steps", "1")
    assert evaluated("--run", run, to=tmp_path / "out.json")["records"] == 11
    said = f"records     {data_files[1]}: the run's validation records, which its last phase has trained on\n"
    assert said in capfd.readouterr().out
    shared = ("--data.train-file", str(data_files[0]), "--data.val-fraction", "0.2")
    run = trained_run(tmp_path / "split", model_folder, KINDS["lora"], *shared)
    said = refused(evaluate.main, "--run", run, capfd=capfd)
    assert f"{run} names no test file and no validation file: give records with --data-file; its validation" in said


def test_generate_takes_a_run(run, model_folder, tmp_path):
    def answer(*argv):
        command(
            generate.main, [*map(str, argv), "--prompt", "abc", "--max-new-tokens", "7", "--json", str(tmp_path / "o")]
        )
        return json.loads((tmp_path / "o").read_text())[0]["answer"]

    form = (
        "--quantization",
        "nf4",
        "--no-double-quant",
        "--quantized-modules",
        "q_proj",
        "--quantized-modules",
        "down_proj",
    )
    assert answer("--run", run) == answer("--model", model_folder, "--adapter", run, *form)
    assert answer("--run", run) != answer("--model", model_folder)


def test_what_cannot_be_meant_is_refused_with_the_right_path(run, model_folder, tmp_path, capfd):
    say = {
        "names the model already: leave --model": ("--run", run, "--model", model_folder),
        f"other adapters need --model {model_folder}": ("--model", run, "--adapter", "elsewhere"),
        "name a run folder with --run, or a model with --model": (),
    }
    for said, argv in say.items():
        assert said in refused(generate.main, *argv, "--prompt", "a", capfd=capfd)
    assert "is not a run folder" in refused(generate.main, "--run", tmp_path, "--prompt", "a", capfd=capfd)
    assert "evaluate needs records" in refused(evaluate.main, "--model", model_folder, capfd=capfd)
    command(export.main, ["--run", str(run), "--format", "adapter", "--output", str(tmp_path / "alone")])
    capfd.readouterr()
    said = refused(generate.main, "--adapter", tmp_path / "alone", "--prompt", "a", capfd=capfd)
    assert f"name it with --model; the adapter was made for {model_folder}" in said
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_bytes((run / "config.json").read_bytes())
    for argv in (("--run", tmp_path / "begun"), ("--model", model_folder, "--adapter", tmp_path / "begun")):
        assert "has no adapter/: the run is not finished; go on with train --config" in refused(
            generate.main, *argv, "--prompt", "a", capfd=capfd
        )


def test_training_starts_from_the_adapter_of_a_run(run):
    config, _ = parse_train(["--adapter.path", str(run)])
    assert (config.adapter.path, config.adapter.rank) == (f"{run}/adapter", KINDS["dora"].rank)
    assert peft_config.meant(run / "adapter") == run / "adapter"


def test_a_run_is_no_model_to_train_on(run, data_files, capfd):
    argv = ("-m", run, "-t", data_files[0], "--method", "lora")
    said = refused(show_data.main, *argv, capfd=capfd)
    assert f"{run} is a run folder, which holds an adapter; a model is expected here: write one with" in said
    assert f"--run {run} --format merged --output {run}-merged" in said
    (run / "merged").mkdir()
    (run / "merged" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"the model that it made is {run}/merged: name that"):
        hf_config.read_config(run)
