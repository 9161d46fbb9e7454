"""Exports of a finished run: a merged model and a PEFT adapter, proved, or nothing at all.

runs/exporting.py decides what to write; models/formats/export.py writes and proves it.
"""

import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from runs import contents, refused_export
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from bidora_jax import export
from bidora_jax.config import parse_train, to_json
from bidora_jax.errors import command
from bidora_jax.models import decoder
from bidora_jax.models.adapters.initial import prepare_base
from bidora_jax.models.formats import hf, hf_config, parity, peft
from bidora_jax.runs import folder

pytestmark = pytest.mark.slow  # they need the finished run


@pytest.fixture
def run(finished_run):
    return finished_run / "run"


def trained_logits(run: Path, tokens) -> np.ndarray:
    """Logits of the run's base with its adapter, unmerged."""
    config = folder.run_config(str(run))
    decoder_config = hf_config.read_config(config.model.path)
    adapter, direction, magnitude = peft.load_adapter(run / "adapter", decoder_config)
    base = prepare_base(hf.load_base(config.model.path, decoder_config), adapter)
    return np.asarray(decoder.logits(decoder_config, adapter, base, direction, magnitude, tokens))


def test_a_merged_model_is_the_one_the_run_wrote(run, tmp_path, capfd):
    command(export.main, ["--run", str(run), "--output", str(tmp_path / "new" / "merged")])
    assert "largest logit difference to the trained model" in capfd.readouterr().out
    wanted, found = contents(run / "merged"), contents(tmp_path / "new" / "merged")
    assert found == wanted
    assert set(found) == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_an_adapter_is_the_one_the_run_wrote(run, tmp_path):
    command(export.main, ["--run", str(run), "--format", "adapter", "--output", str(tmp_path / "adapter")])
    assert contents(tmp_path / "adapter") == contents(run / "adapter")


def test_training_changed_the_merged_weights_and_no_others(run):
    base = Path(folder.run_config(str(run)).model.path)
    before, after = load_file(base / "model.safetensors"), load_file(run / "merged" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)}


def test_the_merged_weights_can_be_rounded_to_bfloat16(run, tmp_path, capfd):
    argv = ["--run", str(run), "--output", str(tmp_path / "half"), "--dtype", "bfloat16", "--no-measure"]
    command(export.main, argv)
    assert "allowed for bfloat16" in (said := capfd.readouterr().out)
    assert float(re.findall(r"([\d.]+)% of what the adapter changes is kept", said)[0]) == pytest.approx(100, abs=5)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    exact = load_file(run / "merged" / "model.safetensors")
    with safe_open(tmp_path / "half" / "model.safetensors", "flax") as file:
        for name in file.keys():  # noqa: SIM118
            found, wanted = file.get_tensor(name), jnp.asarray(exact[name])
            assert found.dtype == jnp.bfloat16
            if "q_proj" in name:  # the nearest value or the other neighbour
                assert jnp.all(jnp.abs(found.astype(jnp.float32) - wanted) <= jnp.abs(wanted) * 2.0**-7)
            else:
                assert jnp.array_equal(found, wanted.astype(jnp.bfloat16))


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_what_is_written_is_scored_beside_the_adapter(run, tmp_path, capfd, kind):
    """The loss of the adapter is the one that the run noted at its end."""
    command(export.main, ["--run", str(run), "--format", kind, "--output", str(tmp_path / "out")])
    said = capfd.readouterr().out
    number = r"(\d+\.\d+)"
    found = re.search(rf"validation: loss {number} of the base, {number} of the adapter, {number} of what", said)
    assert found, said
    base, adapter, written = map(float, found.groups())
    assert adapter == written != base
    assert adapter == pytest.approx(folder.read_facts(run)["result_loss"], abs=1e-4)
    assert "greedy answers equal to the adapter's: 11 of 11" in said


def test_records_that_are_gone_are_named_and_nothing_is_compared(run, tmp_path, capfd):
    moved = shutil.copytree(run, tmp_path / "run")
    settings = json.loads((moved / "config.json").read_text())
    settings["data"]["train_file"] = str(tmp_path / "gone.jsonl")
    (moved / "config.json").write_text(json.dumps(settings))
    command(export.main, ["--run", str(moved), "--output", str(tmp_path / "out"), "--dtype", "bfloat16"])
    said = capfd.readouterr().out
    assert "note: the run's records can't be read, so what is written is not compared on them" in said
    assert "gone.jsonl" in said and "of the adapter, " not in said
    assert (tmp_path / "out" / "model.safetensors").is_file()


def dtypes_of(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "flax") as file:
        return {str(file.get_tensor(name).dtype) for name in file.keys()}  # noqa: SIM118


def test_half_is_float16_where_its_range_is_enough(run, tmp_path, capfd):
    command(export.main, ["--run", str(run), "--output", str(tmp_path / "half"), "--dtype", "half", "--no-measure"])
    assert "--dtype half: float16, as every weight fits" in capfd.readouterr().out
    assert dtypes_of(tmp_path / "half") == {"float16"}
    assert "--dtype half is for --run" in refused_export(["--model", "x", "--output", "y", "--dtype", "half"], capfd)


def test_weights_beyond_the_range_of_float16_are_refused(run, tmp_path, capfd):
    moved = shutil.copytree(run, tmp_path / "run")
    tensors = load_file(moved / "adapter" / "adapter_model.safetensors")
    wide = {name: 1e8 * part if "magnitude" in name else part for name, part in tensors.items()}
    save_file(wide, moved / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    said = refused_export(["--run", str(moved), "--output", str(tmp_path / "out"), "--dtype", "float16"], capfd)
    assert "float16 reaches to 65,504" in said and "layers.self_attn.q_proj.weight" in said
    assert "use --dtype bfloat16 or float32" in said
    assert not (tmp_path / "out").exists()
    command(export.main, ["--run", str(moved), "--output", str(tmp_path / "out"), "--dtype", "half", "--no-measure"])
    assert "--dtype half: bfloat16, as layers.self_attn.q_proj.weight is beyond" in capfd.readouterr().out
    assert dtypes_of(tmp_path / "out") == {"bfloat16"}


def test_an_export_that_has_lost_the_adapter_is_removed(run, tmp_path, capfd, monkeypatch):
    """In bfloat16 the base itself is within what rounding allows."""
    monkeypatch.setattr("bidora_jax.models.rounded_merge.merge", lambda adapter, base, *_: base)
    monkeypatch.setitem(parity.TOLERANCE, jnp.dtype(jnp.bfloat16), 1e3)
    argv = ["--run", str(run), "--output", str(tmp_path / "out"), "--dtype", "bfloat16", "--no-measure"]
    said = refused_export(argv, capfd, status=1)
    share = re.search(r"([\d.-]+)% of what the adapter changes is kept; it was removed", said)
    assert share and abs(float(share[1])) < 2  # the base itself, rounded
    assert contents(tmp_path) == {}


def test_a_folder_that_is_no_run_or_not_finished_is_refused(run, tmp_path, capfd):
    output = ["--output", str(tmp_path / "out")]
    assert "is not a run folder" in refused_export(["--run", str(tmp_path / "none"), *output], capfd)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.json").write_text(to_json(parse_train([])[0]))
    said = refused_export(["--run", str(unfinished), *output], capfd)
    assert f"the run is not finished; go on with train --config {unfinished}/config.json --resume" in said
    assert not (tmp_path / "out").exists()


def test_a_full_output_folder_is_left_alone(run, tmp_path, capfd):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("1")
    for kind in ("merged", "adapter"):
        said = refused_export(["--run", str(run), "--format", kind, "--output", str(tmp_path / "out")], capfd)
        assert "is not empty; empty it or choose another output folder" in said
    assert contents(tmp_path) == {"out": None, "out/x": b"1"}


def test_a_dtype_for_an_adapter_is_refused(run, tmp_path, capfd):
    argv = ["--run", str(run), "--format", "adapter", "--dtype", "bfloat16", "--output", str(tmp_path / "out")]
    assert "--dtype is for --format merged" in refused_export(argv, capfd)
    assert contents(tmp_path) == {}


def test_a_base_that_is_gone_is_named(run, tmp_path, capfd):
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    settings = json.loads((moved / "config.json").read_text())
    settings["model"]["path"] = str(tmp_path / "gone")
    (moved / "config.json").write_text(json.dumps(settings))
    assert "there is no folder" in refused_export(["--run", str(moved), "--output", str(tmp_path / "out")], capfd)


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_an_export_that_fails_its_proof_is_removed(run, tmp_path, capfd, monkeypatch, kind):
    monkeypatch.setattr(parity, "TOLERANCE", {jnp.dtype(jnp.float32): -1.0})
    said = refused_export(["--run", str(run), "--format", kind, "--output", str(tmp_path / "out")], capfd, status=1)
    assert "is not the trained model: largest logit difference" in said
    assert "it was removed" in said
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_a_disk_that_fills_up_leaves_nothing(run, tmp_path, capfd, monkeypatch, kind):
    def full(*_):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("bidora_jax.models.formats.safetensors_file.np.ascontiguousarray", full)
    said = refused_export(["--run", str(run), "--format", kind, "--output", str(tmp_path / "out")], capfd)
    assert "cannot write at somewhere: No space left on device; free some space" in said
    assert contents(tmp_path) == {}


@pytest.mark.torch
def test_transformers_loads_the_merged_model_and_gives_the_adapters_logits(run):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run / "merged", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(run / "merged")
    tokens = tokenizer("repeat 37 x2v37; v37;", return_tensors="np")["input_ids"]
    with torch.no_grad():
        found = model(torch.from_numpy(tokens)).logits.numpy()
    wanted = trained_logits(run, jnp.asarray(tokens, jnp.int32))
    # Two float32 implementations that add in another order, logits up to 7: 1e-4 is what the project promises.
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)
