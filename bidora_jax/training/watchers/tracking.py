"""The curves of a run in TensorBoard and in Weights & Biases: followers of metrics.jsonl, each only where it is asked for.

TensorBoard's files are in tensorboard/PHASE of the run folder, so that it draws the phases over one another. A resumed run
begins a new file, which voids all earlier ones (purge_step 0), and writes all of metrics.jsonl to it: so the lines that a
killed process had not yet written are there too. In Weights & Biases a resumed run goes on as the same run, and sends the
steps that it does again once more, with the same values.
"""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bidora_jax.errors import InputError
from bidora_jax.training.metrics_log import Follower

PACKAGES = {
    "tensorboard": ("tensorboardX", "pip install 'bidora_jax[tensorboard]'"),
    "wandb": ("wandb", "pip install wandb"),
}
POSITION = ("phase", "step")


def missing(wanted: Sequence[str]) -> list[str]:
    """A line for each of the `wanted` trackers (names of settings) whose package is not installed."""
    return [
        f"{name} is set, and the package {package} is not installed: {command}, or leave {name} out"
        for name, (package, command) in PACKAGES.items()
        if name in wanted and importlib.util.find_spec(package) is None
    ]


def followers(folder: Path, *, tensorboard: bool, wandb: str, run_id: str, config: dict[str, Any]) -> list[Follower]:
    """The trackers that the settings ask for. `wandb` names a project; `config` is the configuration that it shows."""
    found: list[Follower] = [TensorBoard(folder / "tensorboard")] if tensorboard else []
    return found + ([WeightsAndBiases(folder, wandb, run_id, config)] if wandb else [])


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line that are points of curves. A null, which was not finite or not known yet, is none."""
    return {
        name: value
        for name, value in record.items()
        if name not in POSITION and isinstance(value, int | float) and not isinstance(value, bool)
    }


class TensorBoard:
    """Event files through tensorboardX, one folder a phase."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def append(self, record: dict[str, Any]) -> None:
        writer = self._writer(record["phase"])
        for name, value in numbers(record).items():
            writer.add_scalar(name, value, record["step"])

    def restart(self, records: list[dict[str, Any]]) -> None:
        self.close()
        for phase in (path.name for path in self._folder.glob("*") if path.is_dir()):
            self._writer(phase)  # voids what it wrote, even if no line of this phase is left
        for record in records:
            self.append(record)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _writer(self, phase: str) -> Any:
        if phase not in self._writers:
            from tensorboardX import SummaryWriter

            folder = self._folder / phase
            files = len(list(folder.glob("events.*")))
            # Without a suffix two files of one second would have one name.
            self._writers[phase] = SummaryWriter(
                str(folder), purge_step=0 if files else None, filename_suffix=f".{os.getpid()}.{files}", flush_secs=10
            )
        return self._writers[phase]


class WeightsAndBiases:
    """A run of a W&B project; each phase has its own steps. InputError where the package can't start, for want of a login."""

    def __init__(self, folder: Path, project: str, run_id: str, config: dict[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports] - not a dependency

        how = {"project": project, "name": folder.name, "id": run_id, "resume": "allow", "config": config}
        try:
            self._run = wandb.init(dir=str(folder), **how)
        except wandb.Error as error:
            raise InputError(
                f"Weights & Biases did not start: {error}; log in (wandb login), set WANDB_MODE=offline or leave wandb out, and "
                "go on with --resume"
            ) from error

    def append(self, record: dict[str, Any]) -> None:
        phase = record["phase"]
        self._run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        self._run.log(
            {f"{phase}/{name}": value for name, value in (numbers(record) | {"step": record["step"]}).items()}
        )

    def restart(self, records: list[dict[str, Any]]) -> None:
        """Nothing to do: the service keeps what was sent."""

    def close(self) -> None:
        self._run.finish()
