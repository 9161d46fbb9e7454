"""The files that a run writes beside its checkpoints and its adapter; runs/execution.py opens and closes them.

run.json        facts of the process (runs/folder.py)          metrics.jsonl   a line a step, and who follows it
changes.jsonl   how far each layer has moved (training/watchers/drift.py)  samples.jsonl   answers (training/watchers/samples.py)
report/         made from all of them at the end (runs/report.py)
"""

import uuid
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidora_jax.config import Config

if TYPE_CHECKING:
    from bidora_jax.runs.assembly import RunInputs
    from bidora_jax.training.loop import Watcher
    from bidora_jax.training.metrics_log import MetricsLog


def begin(config: Config, inputs: "RunInputs") -> "MetricsLog":
    """Writes the facts of the start (a resumed run writes them again), and opens metrics.jsonl with its followers."""
    from bidora_jax.data import packing
    from bidora_jax.machine import facts
    from bidora_jax.models.adapters.adapter import count, trainable
    from bidora_jax.models.base import dense_shapes
    from bidora_jax.runs import foundation
    from bidora_jax.runs.folder import read_facts, write_facts
    from bidora_jax.training.metrics_log import MetricsLog
    from bidora_jax.training.watchers import tracking

    problem, folder = inputs.problem, Path(config.output_dir)
    known, stands_on = read_facts(folder), inputs.stands_on or foundation.of(config, inputs)
    foundation.check(folder, known.get("stands_on"), stands_on)
    started = known.get("started") or datetime.now().astimezone().isoformat(timespec="seconds")
    run_id = known.get("id") or uuid.uuid4().hex[:12]
    parameters = {"frozen": count(dense_shapes(problem.config, "float32"))} | trainable(problem.adapter, problem.config)
    records = {"train": packing.count(problem.train), "val": packing.count(problem.val), "test": len(inputs.test)}
    write_facts(
        folder,
        id=run_id,
        started=started,
        parameters=parameters,
        records=records,
        stands_on=stands_on,
        **facts.machine(),
    )
    following = tracking.followers(
        folder, tensorboard=config.tensorboard, wandb=config.wandb, run_id=run_id, config=asdict(config)
    )
    return MetricsLog(folder / "metrics.jsonl", followers=following)


def watchers(config: Config, inputs: "RunInputs") -> "list[Watcher]":
    """The watchers of the loop: drift, and samples where they are asked for."""
    from bidora_jax.models.adapters.drift import drift
    from bidora_jax.training.watchers.drift import DriftLog
    from bidora_jax.training.watchers.samples import Samples, answerer

    problem, folder = inputs.problem, Path(config.output_dir)

    def measure(direction, magnitude):
        return drift(problem.adapter, problem.base, direction, magnitude)

    found: list[Watcher] = [DriftLog(folder, config.eval_every, measure)]
    if config.samples.every:
        answer = answerer(
            config.samples,
            problem.decoder,
            problem.adapter,
            problem.base,
            inputs.tokenizer,
            inputs.prompts,
            config.seed,
        )
        found.append(Samples(folder, config.samples.every, inputs.prompts, answer))
    return found


def note(config: Config, **found: Any) -> None:
    """Adds to run.json."""
    from bidora_jax.runs import folder

    folder.write_facts(Path(config.output_dir), **found)


def end(config: Config) -> None:
    """Writes the facts of the end and the report, and prints the summary."""
    from bidora_jax.machine import facts
    from bidora_jax.reporting import summary
    from bidora_jax.runs import report

    folder = Path(config.output_dir)
    finished = datetime.now().astimezone().isoformat(timespec="seconds")
    note(config, finished=finished, peak_memory=facts.peak_memory())
    if config.report:
        summary.show(report.write(folder, folder / "report"))
    else:
        summary.show(report.summarise(folder))
