"""The written history of a run: metrics.jsonl, changes.jsonl, samples.jsonl, run.json and outcomes.json, whole or cut short by a
kill."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bidora_jax import strict_json
from bidora_jax.errors import InputError
from bidora_jax.reporting import shapes

Line = dict[str, Any]
LAST_STEP, LONGEST_NAME = 10**12, 100
"""No run has as many steps, and no phase a name of as many characters; more is damage."""


@dataclass(frozen=True)
class Curve:
    """One quantity over a run."""

    steps: np.ndarray
    """Counted over all phases."""
    values: np.ndarray


@dataclass(frozen=True)
class History:
    """What a run wrote, in the order in which it happened."""

    lines: list[Line]
    changes: list[Line] = field(default_factory=list)
    samples: list[Line] = field(default_factory=list)
    facts: Line = field(default_factory=dict)
    outcomes: dict[str, Line] = field(default_factory=dict)
    """What a classifier makes of a split (tasks/outcomes.py), by the split's name."""

    @property
    def labelled(self) -> bool:
        """Whether records have labels: then scores are of records, and not of tokens."""
        scores = (self.facts.get("validation_before", {}), self.facts.get("test", {}).get("before", {}))
        return bool(self.outcomes) or any("records" in one for one in scores)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that a classifier was measured by on validation, beside its loss."""
        found = dict.fromkeys(name for line in self.lines for name in line if name.startswith("evaluation_"))
        names = [name.removeprefix("evaluation_") for name in found]
        return [name for name in names if name != "loss"] if self.labelled else []

    @property
    def phases(self) -> list[str]:
        """Names of the phases that have begun, in their order."""
        return list(dict.fromkeys(line["phase"] for line in self.lines))

    @property
    def starts(self) -> dict[str, int]:
        """Steps of the whole run before the first one of each phase."""
        starts, total = {}, 0
        for phase in self.phases:
            starts[phase] = total
            total += max(line["step"] for line in self.of(phase))
        return starts

    def of(self, phase: str) -> list[Line]:
        """The steps of one phase."""
        return [line for line in self.lines if line["phase"] == phase]

    def curve(self, *names: str, phase: str | None = None) -> Curve:
        """The first of `names` that a line has, of all phases or of one; lines without a number for it are left out."""
        starts = self.starts
        pairs = [
            (starts[line["phase"]] + line["step"], value)
            for line in self.lines
            if phase in (None, line["phase"])
            and (value := next((line[name] for name in names if _is_number(line.get(name))), None)) is not None
        ]
        steps, values = zip(*pairs, strict=True) if pairs else ((), ())
        return Curve(np.array(steps, int), np.array(values, float))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read(run: Path) -> History:
    """Reads what a run wrote. Raises InputError where there is no history, and for a broken line that is not the last one."""
    if not (run / "metrics.jsonl").is_file():
        what = "has no metrics.jsonl: nothing has been trained in it yet" if run.is_dir() else "is no folder"
        raise InputError(f"{run} {what}; point --run at the output_dir of a training run")
    lines = _lines(run / "metrics.jsonl", shapes.LINE)
    if not lines:
        raise InputError(f"{run / 'metrics.jsonl'} holds no step yet; the first one is written when it is done")
    changes, samples = _lines(run / "changes.jsonl", shapes.CHANGE), _lines(run / "samples.jsonl", shapes.SAMPLE)
    facts, outcomes = _facts(run / "run.json", shapes.FACTS), _facts(run / "outcomes.json", shapes.OUTCOMES)
    return History(lines, changes, samples, facts, outcomes)


def _lines(file: Path, shape: Any) -> list[Line]:
    if not file.is_file():
        return []
    texts = file.read_text(encoding="utf-8", errors="replace").split("\n")
    found = []
    for number, text in enumerate(texts[:-1], 1):  # after the last line end: nothing, or what a kill cut short
        if text.strip():
            found.append(_line(file, number, text, shape))
    return found


def _line(file: Path, number: int, text: str, shape: Any) -> Line:
    try:
        line = strict_json.loads(text)
        fault = shapes.fault(line, shape)
    except ValueError as error:
        line, fault = {}, f"it is not JSON ({error})"
    if not fault and not 0 <= line["step"] <= LAST_STEP:
        fault = "its step is no step"
    if not fault and not 0 < len(line["phase"]) <= LONGEST_NAME:
        fault = "its phase is no name"
    if fault:
        raise InputError(f"{file}:{number} is not a line of a run's history: {fault}; take that line out")
    return line


def _facts(file: Path, shape: Any) -> Line:
    if not file.is_file():
        return {}
    try:
        found = strict_json.loads(file.read_bytes())
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}); remove it, and the report leaves its facts out") from None
    if fault := shapes.fault(found, shape):
        raise InputError(f"{file}: {fault}; remove the file, and the report leaves its facts out")
    return {name: value for name, value in found.items() if value is not None}


def smoothed(values: np.ndarray, reach: int) -> np.ndarray:
    """The mean around each value, falling off linearly over `reach` values on both sides; nothing is made up at the ends."""
    weights = np.bartlett(2 * reach + 3)[1:-1]
    # Cut by hand: mode "same" has the longer length of the two.
    return (
        np.convolve(values, weights)[reach : reach + len(values)]
        / np.convolve(np.ones(len(values)), weights)[reach : reach + len(values)]
    )


def reach_of(count: int) -> int:
    """How far to smooth a curve of `count` values: a thirtieth of it on either side."""
    return max(count // 30, 1)
