"""The analysis of a run: its fits against NumPy, what it reads of checkpoints, and a whole run against loops in float64.

analyze.py is the command; training/saved_adapters.py reads the checkpoints.
"""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drift_by_hand import rows
from safetensors.numpy import load_file

from bidora_jax import analyze
from bidora_jax.errors import command
from bidora_jax.runs import analysis
from bidora_jax.training.checkpoint import Checkpoints
from bidora_jax.training.saved_adapters import points
from bidora_jax.training.state import BilevelState, TrainState


def point(direction: float, magnitude: float) -> dict:
    return {"direction": direction, "magnitude": magnitude}


def test_a_fit_is_numpys():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 11))
    found = analysis.fit([point(*pair) for pair in zip(x, y, strict=True)])
    slope, intercept = np.polyfit(x, y, 1)
    assert (found["slope"], found["intercept"]) == pytest.approx((slope, intercept))
    assert found["correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1])


@pytest.mark.parametrize(("given", "slope", "correlation"), [
    ([point(1, 2)], None, None), ([point(1, 2), point(1, 3)], None, None), ([point(1, 2), point(2, 2)], 0.0, None),
    ([point(1, 5), point(3, 1)], -2.0, -1.0),
])  # fmt: skip
def test_a_fit_without_spread_is_not_defined(given, slope, correlation):
    found = analysis.fit(given)
    assert (found["slope"], found["correlation"]) == (slope, pytest.approx(correlation) if correlation else None)


def test_a_change_relative_to_nothing_is_a_dash(capsys):
    whole = point(1.0, 2.0) | {"checkpoint": 3, "relative": float("inf"), "module": "q_proj"}
    analysis.show({"points": [whole], "fits": {"q_proj": {"slope": None, "correlation": None}}})
    said = capsys.readouterr().out
    assert "inf" not in said and "│        – │" in said


def test_checkpoints_of_every_phase_give_direction_and_magnitude(tmp_path):
    """Written as the loop writes them: the state, and what the phase will hand on."""
    d, m, other = (
        {"layers": {"mlp": {"up_proj": {name: jnp.full((2, 3), value)}}}}
        for name, value in (("A", 1.0), ("m", 2.0), ("m", 7.0))
    )
    zero, key = jnp.zeros((), jnp.int32), jnp.zeros(2, jnp.uint32)
    states = {
        1: ("search", BilevelState(zero, d, m, {"mu": d}, {"mu": m}, key), (d, other), (d, m)),
        2: ("search", TrainState(zero, (d, m), {"mu": (d, m)}, key), (d, other), (d, m)),
        3: ("search", TrainState(zero, (d, {}), {"mu": (d, {})}, key), (d, {}), (d, {})),
        4: ("retrain", TrainState(zero, d, {"mu": d}, key), (d, m), (d, m)),
    }
    with Checkpoints(tmp_path / "checkpoints", 9) as checkpoints:
        for step, (phase, state, best, _) in states.items():
            checkpoints.save(step, {"state": state, "best": best}, {"phase": phase, "step": 10 * step, "best_step": 5})
    with Checkpoints(tmp_path / "checkpoints", None) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3, 4]
        found = list(points(checkpoints))
    assert [(at.phase, at.step, at.best_step) for at in found] == [("search", 10, 5), ("search", 20, 5), ("search", 30, 5),
                                                                   ("retrain", 40, 5)]  # fmt: skip
    for at, (*_, expected) in zip(found, states.values(), strict=True):
        np.testing.assert_equal(
            *(jax.tree.map(np.asarray, trees) for trees in ((at.direction, at.magnitude), expected))
        )


@pytest.mark.slow
def test_a_run_is_analysed_as_a_loop_over_rows_would(finished_run, model_folder, tmp_path, capsys):
    run = finished_run / "run"
    analyze.main(["--run", str(run), "--output", str(tmp_path / "out"), "--json"])
    said = json.loads(capsys.readouterr().out)
    base, trained = (
        load_file(model_folder / "model.safetensors"),
        load_file(run / "adapter" / "adapter_model.safetensors"),
    )
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn.q_proj"
        a, b, m = (
            trained[f"base_model.model.{name}.{part}"]
            for part in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
        )
        w0 = base[f"{name}.weight"]
        turn = rows(w0, a, b, 16 / 3)[1].mean()
        moved = np.abs(m - np.linalg.norm(w0.astype(np.float64), axis=1)).mean()
        at = next(one for one in said["points"] if one["layer"] == layer and one["checkpoint"] == "retrain 5")
        assert (at["magnitude"], at["direction"]) == pytest.approx((moved, turn), rel=1e-4)  # float32 sums
    # The adapter of a run that ends with a retraining is its last checkpoint.
    assert [one["checkpoint"] for one in said["points"]] == ["retrain 4"] * 2 + ["retrain 5"] * 2
    with (tmp_path / "out" / "changes.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(line["direction_change"]) for line in table] == [one["direction"] for one in said["points"]]
    assert (tmp_path / "out" / "changes.png").read_bytes().startswith(b"\x89PNG")
    last = json.loads((run / "changes.jsonl").read_text().splitlines()[-1])
    assert last["direction"]["self_attn.q_proj"] == pytest.approx([one["direction"] for one in said["points"][2:]])


@pytest.mark.parametrize(("argv", "said"), [
    (["--run", "none"], "none is not a run folder"), (["--run", "begun"], "has neither checkpoints nor adapter/ yet"),
    (["--run", "begun", "--output", "file"], "it is a file"), (["--rnu", "x"], "--run"),
])  # fmt: skip
def test_what_is_no_run_is_refused(tmp_path, monkeypatch, capfd, argv, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        command(analyze.main, argv)
    assert stopped.value.code == 2
    assert said in capfd.readouterr().err
