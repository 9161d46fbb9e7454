"""What each column is: id, target, text, category, number, or left out, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bidora_jax.errors import InputError, did_you_mean


class Guess(NamedTuple):
    """A line of the plan: what was found, why, and the flag that says otherwise."""

    what: str
    found: str
    reason: str
    flag: str


class Chosen(NamedTuple):
    """Columns that the user names."""

    id: str = ""
    targets: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    group: str = ""


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


def named(names: tuple[str, ...] | list[str], limit: int = 12) -> str:
    """Columns in a message."""
    return ", ".join(map(repr, names[:limit])) + f", … and {len(names) - limit} more" * (len(names) > limit)


def check(flag: str, given: tuple[str, ...], path: object, columns: tuple[str, ...]) -> None:
    """InputError for columns that a flag names and a file lacks."""
    lost = [f"{name!r}{did_you_mean(name, columns)}" for name in given if name not in columns]
    if lost:
        raise InputError(f"{flag} names {', '.join(lost)}, which {path} lacks; it has {named(columns)}")
