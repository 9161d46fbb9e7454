"""Seconds of a step, for a budget of time: a short run of the same settings is timed once, before the first trial that has them.

Points that differ in what changes no step's work, such as a learning rate, share a measurement (timings.json). Compiling and
reading are not counted, nor is the last step of a phase, which ends with an evaluation. A process that trains beside this one
slows both.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidora_jax.config import Config
from bidora_jax.machine.files import write_whole
from bidora_jax.sweeps import locks, training
from bidora_jax.sweeps.budget import PerPhase, with_steps

if TYPE_CHECKING:
    from bidora_jax.runs.sharing import Shared

STEPS, WARM = 10, 3
"""Steps that are run, and of them those that are not counted, apart from the last one."""
IDLE = ("learning_rate", "multiplier", "weight_decay", "warmup", "schedule", "clip", "epochs", "steps")
"""Last parts of settings that change no step's work."""
TIMINGS = "timings.json"


def seconds_of_steps(
    folder: Path, config: Config, values: Mapping[str, Any], asked: PerPhase, shared: "Shared"
) -> PerPhase:
    """Of the search and of the retrain of a point, measured or measured before; `folder` is the sweep's."""
    own = {name: value for name, value in values.items() if name.rpartition(".")[2] not in IDLE}
    key = json.dumps({**own, "retrain": bool(asked.retrain)}, sort_keys=True)
    with locks.waited_for(folder / ".timing"):
        kept = folder / TIMINGS
        known = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
        if key not in known:
            known[key] = _measured(folder / "timing", config, asked, shared)
            write_whole(kept, json.dumps(known, indent=2) + "\n")
    return PerPhase(*known[key])


def _measured(folder: Path, config: Config, asked: PerPhase, shared: "Shared") -> list[float]:
    shutil.rmtree(folder, ignore_errors=True)
    short = with_steps(config, PerPhase(STEPS, STEPS if asked.retrain else 0))
    short = replace(short, eval_every=0, save_every=0)
    with training.logged(folder):
        training.train(short, folder, shared)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    shutil.rmtree(folder)
    phases = [[line["seconds"] for line in lines if line["phase"] == name] for name in ("search", "retrain")]
    return [max((times[-2] - times[WARM - 1]) / (STEPS - 1 - WARM), 1e-4) if times else 0.0 for times in phases]
