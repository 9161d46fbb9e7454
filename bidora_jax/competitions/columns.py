"""What each column is: id, target, text, category, number, or left out, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Guess(NamedTuple):
    """A line of the plan: what was found, why, and the flag that says otherwise."""

    what: str
    found: str
    reason: str
    flag: str


@dataclass(frozen=True)
class Columns:
    id: str | None
    """None: the submission has no column but the target's."""
    targets: tuple[str, ...]
    """Of train. A target that the sample alone names is called differently in the submission: Target.outputs."""
    texts: tuple[str, ...]
    categories: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    group: str | None = None
    """Rows with the same value here are in the same fold."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Column -> the reason."""
