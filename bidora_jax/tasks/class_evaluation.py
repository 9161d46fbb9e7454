"""How good a head's outputs are on labelled records: the loss, and the metrics of the task (tasks/metrics.py)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from bidora_jax.data.batches import Batch
from bidora_jax.data.labels import Labels
from bidora_jax.models.adapters.adapter import Adapter
from bidora_jax.models.architectures.architecture import Architecture
from bidora_jax.models.compute import Compute
from bidora_jax.models.settings import ModelConfig
from bidora_jax.models.spread import BATCH, Spread
from bidora_jax.tasks import metrics
from bidora_jax.tasks.classification import Classification
from bidora_jax.tasks.task import Criterion

SHOWN = 3
"""Metrics in a line of the progress."""


class Outputs(NamedTuple):
    """What a head says of the records of some batches, in their order; of tokens a list with one array a text."""

    outputs: Any
    """Logits (N, C), standardised values (N, K), or of each text (T, C)."""
    targets: Any
    """What was asked: (N, C), (N, K), or of each text (T,) with −1 where nothing is asked."""
    loss: float


@dataclass(frozen=True)
class LabelScores:
    """`Scores` of a labelled file."""

    loss: float
    metrics: dict[str, float]
    records: int
    criterion: Criterion
    found: Outputs = field(repr=False)
    """What the scores are of."""
    notes: tuple[str, ...] = ()
    """Which metrics these records don't define, and why."""

    @property
    def rank(self) -> float:
        found = self.facts
        return self.criterion.rank(found[self.criterion.name]) if self.criterion.name in found else math.inf

    @property
    def in_words(self) -> str:
        first = [self.criterion.name] if self.criterion.name in self.metrics else []
        shown = dict.fromkeys([*first, *self.metrics])
        return ", ".join([f"loss {self.loss:.4f}", *(f"{name} {self.metrics[name]:.4f}" for name in [*shown][:SHOWN])])

    @property
    def facts(self) -> dict[str, float]:
        return {"loss": self.loss, **self.metrics, "records": self.records}


Reader = Callable[[PyTree, PyTree, PyTree, Iterable[Batch]], Outputs]
"""(base, direction, magnitude, batches) to the outputs."""


@lru_cache(maxsize=8)
def reader(
    task: Classification,
    config: Architecture,
    adapter: Adapter | None,
    model: ModelConfig,
    spread: Spread | None = None,
) -> Reader:
    """A function that gives a model's outputs on batches, forward only. Batches of one shape share a program, in every run that
    reads with equal arguments. `spread`: the devices, where they are several."""
    compute = Compute(remat="none", attention_chunk=model.attention_chunk)

    def rows(base, trained, batch):
        found = task.outputs(config, adapter, compute, base, trained, batch)
        return found, task.loss_of(found, batch)

    over_rows = rows if spread is None else spread.rows(rows)

    @jax.jit
    def one(base, trained, batch):
        return *over_rows(base, trained, batch), task.weight(batch)

    def read(base, direction, magnitude, batches) -> Outputs:
        outputs, targets, total, weight = [], [], 0.0, 0.0
        for batch in batches:
            micro = {name: part[0] for name, part in batch.items() if name in task.inputs}
            laid = micro if spread is None else spread.batch(micro, BATCH)
            found, loss, counted = one(base, (direction, magnitude), laid)
            found = found if spread is None else spread.gathered(found)
            for given, wanted in _documents(task, np.asarray(found), micro):
                outputs.append(given)
                targets.append(wanted)
            total, weight = total + float(loss), weight + float(counted)
        if task.type != "tokens":
            outputs, targets = np.array(outputs), np.array(targets)
        return Outputs(outputs, targets, total / max(weight, 1e-9))

    return read


def _documents(task: Classification, found: np.ndarray, batch: Batch):
    """(outputs, targets) of every document of a batch, row by row."""
    labels = batch["labels"]
    if task.type != "tokens":
        # Not those that have a weight: a text without a label has none, and is predicted too.
        held = batch["lengths"] > 0 if "lengths" in batch else batch["segments"].max(axis=1, initial=0)
        for row, documents in enumerate(held):
            for slot in range(int(documents)):
                yield found[row, slot], labels[row, slot]
        return
    for row, length in enumerate(batch["lengths"]) if "lengths" in batch else ():
        if length:
            yield found[row, :length], labels[row, :length]
    for row, segments in enumerate(batch["segments"]) if "segments" in batch else ():
        for document in range(1, segments.max(initial=0) + 1):
            own = segments == document
            yield found[row, own], labels[row, own]


Evaluator = Callable[[PyTree, PyTree, PyTree, Iterable[Batch]], LabelScores]


def scored(found: Outputs, labels: Labels, criterion: Criterion) -> LabelScores:
    measured = metrics.measured(labels, *found[:2])
    return LabelScores(found.loss, measured.values, len(found.outputs), criterion, found, tuple(measured.notes))


def evaluator(read: Reader, labels: Labels, criterion: Criterion) -> Evaluator:
    """A function (base, direction, magnitude, batches) that gives the scores."""
    return lambda base, direction, magnitude, batches: scored(
        read(base, direction, magnitude, batches), labels, criterion
    )
