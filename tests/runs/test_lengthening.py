"""runs/lengthening.py: more steps for a run are exact where no rate depends on their number, and refused elsewhere."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import SMALL, exit_status, inputs, metrics

from bidora_jax.config import Config, read, resolve
from bidora_jax.errors import InputError
from bidora_jax.runs import lengthening
from bidora_jax.training.checkpoint import Checkpoints

WEIGHTS = Path("adapter", "adapter_model.safetensors")
CONSTANT = ["--inner.schedule", "constant", "--inner.warmup", "0"]


def begun(method: str = "bidora", **inner: object) -> Config:
    config = Config()
    inner = {"schedule": "constant", "warmup": 0.0} | inner
    return replace(
        config,
        adapter=replace(config.adapter, method=method),
        inner=replace(config.inner, **inner),
        outer=replace(config.outer, schedule="constant", warmup=0.0),
    )


def longer(config: Config, section: str = "search", **lengths: float) -> Config:
    return replace(config, **{section: replace(getattr(config, section), **lengths)})


def test_constant_rates_can_go_on(tmp_path):
    for old in (begun(), begun("lora")):
        lengthening.check(tmp_path, old, longer(old, epochs=6))
        lengthening.check(tmp_path, old, longer(old, "retrain", epochs=6))
        lengthening.check(tmp_path, old, old)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (begun(schedule="linear"), {"epochs": 6}, "inner.schedule linear decays over the planned steps"),
        (begun(warmup=0.1), {"epochs": 6}, "inner.warmup is 0.1 of the planned steps"),
        (begun(), {"epochs": 2}, "search.epochs 3 → 2: it can only grow"),
        (begun(), {"steps": 50}, "search.steps 0 → 50: the run began with search.epochs: change that"),
    ],
)
def test_what_would_make_the_steps_that_are_done_other_ones_is_refused(old, new, said, tmp_path):
    with pytest.raises(InputError, match="can't be lengthened") as refused:
        lengthening.check(tmp_path, old, longer(old, **new))
    assert said in str(refused.value) and f"--adapter.path {tmp_path / 'adapter'}" in str(refused.value)


def test_the_outer_rates_count_in_the_search_of_bidora_alone(tmp_path):
    old = begun()
    old = replace(old, outer=replace(old.outer, schedule="cosine"))
    with pytest.raises(InputError, match=r"outer\.schedule cosine decays"):
        lengthening.check(tmp_path, old, longer(old, epochs=6))
    lengthening.check(tmp_path, old, longer(old, "retrain", epochs=6))
    dora = replace(old, adapter=replace(old.adapter, method="dora"))
    lengthening.check(tmp_path, dora, longer(dora, epochs=6))


def test_a_search_that_retrain_stands_on_is_over(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", 2) as kept:
        kept.save(7, {"A": np.zeros(3)}, {"phase": "retrain"})
    with pytest.raises(InputError, match="the search has ended, and retrain stands on what it found"):
        lengthening.check(tmp_path, begun(), longer(begun(), epochs=6))


def test_a_finished_run_of_four_steps_becomes_one_of_six(model_folder, data_files, tmp_path, capfd):
    """Bit for bit; and config.json says so."""
    flags = [*SMALL, *CONSTANT, "--adapter.method", "dora", "--eval-every", "2", "--adapter.dropout", "0.1"]

    def trained(name: str, steps: str, *more: str) -> Path:
        run = tmp_path / name
        assert exit_status([*inputs(model_folder, data_files, run), *flags, "--search.steps", steps, *more]) == 0
        return run

    whole, run = trained("whole", "6"), trained("run", "4")
    assert json.loads((run / "config.json").read_text())["search"]["steps"] == 4
    trained("run", "6", "--resume")
    assert "resumed search after step 4 of 6" in capfd.readouterr().out
    assert (run / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert metrics(run) == metrics(whole)
    assert resolve(read(str(run / "config.json"))).search.steps == 6
    assert exit_status([*inputs(model_folder, data_files, run), *flags, "--search.steps", "4", "--resume"]) == 2
    assert "search.steps 6 → 4: it can only grow" in capfd.readouterr().err
