"""changes.jsonl of a run: how far each layer has moved, at the start, at every evaluation and at the end of each phase.

    {"phase": "search", "step": 20, "magnitude": {"self_attn.q_proj": [ΔM of layer 0, …]}, "direction": {… ΔD …}}

ΔM and ΔD as in models/adapters/drift.py; null for a layer that is not adapted. A run keeps few checkpoints; this file keeps
the way between them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from bidora_jax.models.adapters.drift import Drift
from bidora_jax.training.metrics_log import MetricsLog

FILE = "changes.jsonl"


class DriftLog:
    """A watcher of the loop; `measure` maps (direction, magnitude) to the changes of all layers."""

    def __init__(self, folder: Path, every: float, measure: Callable[[PyTree, PyTree], Sequence[Drift]]) -> None:
        self.name, self.every = "changes", every
        self._measure, self._log = measure, MetricsLog(folder / FILE)

    def look(self, phase: str, step: int, direction: PyTree, magnitude: PyTree) -> str:
        self._log.append({"phase": phase, "step": step} | by_module(self._measure(direction, magnitude)))
        self._log.close()
        return ""

    def truncate(self, phase: str, step: int) -> None:
        self._log.truncate(phase, step)


def by_module(changes: Sequence[Drift]) -> dict[str, dict[str, list[float | None]]]:
    """The changes as a line of the file has them: for "magnitude" and "direction", {module: one number a layer}."""
    layers = 1 + max(change.layer for change in changes)
    table: dict[str, Any] = {kind: {} for kind in ("magnitude", "direction")}
    for change in changes:
        for kind, modules in table.items():
            modules.setdefault(change.module, [None] * layers)[change.layer] = getattr(change, kind)
    return table
