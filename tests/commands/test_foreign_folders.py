"""train.py, generate.py, evaluate.py, export.py: what folders of other programs hold, and what each command makes of it."""

import json
import shutil

import numpy as np
import pytest
from runs import SMALL, exit_status, inputs, refused_export, trained_run
from safetensors.numpy import load_file, save_file

from bidora_jax import export, generate
from bidora_jax.errors import command
from bidora_jax.models.adapters.settings import AdapterConfig

SETTINGS = AdapterConfig("lora", rank=3, target_modules=("q_proj",))


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy of the tiny model that a test may change."""
    return shutil.copytree(model_folder, tmp_path / "model")


def change(file, settings):
    """Rewrites a JSON file with these values; None takes a key out."""
    found = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def change_tensors(file, changed):
    """Rewrites a safetensors file with `changed` applied to its tensors."""
    save_file(changed(dict(load_file(file))), file, metadata={"format": "pt"})


def refused(main, argv, capfd) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(main, argv)
    said = capfd.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in said
    return said


def test_where_nothing_says_which_dtype_is_meant_the_flag_of_the_command_is_named(folder, data_files, tmp_path, capfd):
    change(folder / "config.json", {"dtype": None})
    change_tensors(folder / "model.safetensors", lambda all: all | {"model.norm.weight": np.ones(26, np.float16)})
    assert exit_status([*inputs(folder, data_files, tmp_path / "run"), *SMALL]) == 2
    assert "with --model.dtype float16 or float32" in capfd.readouterr().err
    assert "with --dtype float16" in refused(
        generate.main, ["--model", str(folder), "--prompt", "a", "--max-new-tokens", "3"], capfd
    )
    output = str(tmp_path / "out")
    assert "with --dtype float16" in refused_export(
        ["--model", str(folder), "--quantization", "int8", "--output", output], capfd
    )
    # Of a run that was told, the export does not ask again.
    run = trained_run(tmp_path / "trained", folder, SETTINGS, "--model.dtype", "float32")
    command(export.main, ["--run", str(run), "--output", output])
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {
        np.dtype("float32")
    }


def test_the_export_of_a_folder_of_two_dtypes_has_that_of_its_config_json(folder, tmp_path):
    change(folder / "config.json", {"dtype": "float16"})
    change_tensors(folder / "model.safetensors", lambda all: all | {"model.norm.weight": np.ones(26, np.float16)})
    for name, flags in (("dense", ()), ("int8", ("--model.quantization", "int8"))):
        run = trained_run(tmp_path / f"of {name}", folder, SETTINGS, *flags)
        command(export.main, ["--run", str(run), "--output", str(tmp_path / name)])
        written = load_file(tmp_path / name / "model.safetensors")
        assert {tensor.dtype for tensor in written.values()} == {np.dtype("float16")}
