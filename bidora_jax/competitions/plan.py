"""The plan of a competition: what its files say, and how it is trained. plan.json keeps it for a run that goes on."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bidora_jax.competitions.columns import Columns, Guess
from bidora_jax.competitions.target import Target


@dataclass(frozen=True)
class Plan:
    folder: Path
    output: Path
    """Where submission.csv, oof.csv, report.html, plan.json and model/ go."""
    columns: Columns
    target: Target
    guesses: tuple[Guess, ...]
    model: str
    """A folder, or a name on the Hugging Face hub."""
    folds: int
    seed: int
    time: float | None
    """Seconds that all of it may take."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of `train` by dotted name: adapter.method, data.max_length, …"""
    notes: tuple[str, ...] = ()
    """What a user should know, a line each."""


def to_json(plan: Plan) -> str:
    values = dataclasses.asdict(plan) | {"folder": str(plan.folder), "output": str(plan.output)}
    values["guesses"] = [guess._asdict() for guess in plan.guesses]
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def from_json(text: str) -> Plan:
    """The plan that `to_json` wrote, equal to it in every field."""
    values = json.loads(text)
    parts = {
        "folder": Path(values["folder"]),
        "output": Path(values["output"]),
        "columns": Columns(**_tuples(values["columns"])),
        "target": Target(**_tuples(values["target"])),
        "guesses": tuple(Guess(**guess) for guess in values["guesses"]),
        "settings": _tuples(values["settings"]),
        "notes": tuple(values["notes"]),
    }
    return Plan(**(values | parts))


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""

    def whole(value: Any) -> Any:
        return tuple(map(whole, value)) if isinstance(value, list) else value

    return {name: whole(value) for name, value in values.items()}
