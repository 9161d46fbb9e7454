"""metrics.jsonl: what a run writes for programs while it trains. What people see is in progress.py.

A line is one object with at least `phase` and `step`. Lines are ordered by (phase, step), so a resumed run can drop those of
the steps that it does again: apart from timings its file equals the uninterrupted run's. Followers (watchers/tracking.py) get
every line, and after such a cut all remaining lines again.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TextIO

from bidora_jax import strict_json
from bidora_jax.errors import InputError
from bidora_jax.machine.files import naming, write_whole

PHASES = ("search", "retrain")


class Follower(Protocol):
    """Receives every line that is written."""

    def append(self, record: dict[str, Any]) -> None: ...

    def restart(self, records: list[dict[str, Any]]) -> None:
        """Puts these lines in the place of all that it got, from earlier processes too."""
        ...

    def close(self) -> None: ...


class MetricsLog:
    """Appends one JSON object a line, on disk as soon as it is written; NaN and infinity are written as null."""

    def __init__(
        self, path: str | os.PathLike[str], phases: Sequence[str] = PHASES, followers: Sequence[Follower] = ()
    ) -> None:
        self.path = Path(path)
        self.phases = tuple(phases)
        self.followers = tuple(followers)
        self._file: TextIO | None = None

    def append(self, record: dict[str, Any]) -> None:
        """`record` has a phase (one of `phases`) and a step; numbers may be NumPy's or JAX's scalars."""
        self._position(record)
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        plain = _plain(record)
        with naming(self.path):
            self._file.write(json.dumps(plain, allow_nan=False) + "\n")
            self._file.flush()
        for follower in self.followers:
            follower.append(plain)

    def truncate(self, phase: str, step: int) -> list[dict[str, Any]]:
        """Drops the lines from (phase, step) on, that one included, and a last line that a kill cut short; returns the others.

        Raises InputError for another line that is not a record: the file is not this program's.
        """
        self._close_file()
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")
        whole = [(number, line) for number, line in enumerate(lines[:-1], 1) if line.strip()]
        kept = [line for number, line in whole if self._read(number, line) < (self.phases.index(phase), step)]
        write_whole(self.path, b"".join(line + b"\n" for line in kept))
        records = [json.loads(line) for line in kept]
        for follower in self.followers:
            follower.restart(records)
        return records

    def close(self) -> None:
        self._close_file()
        for follower in self.followers:
            follower.close()

    def _close_file(self) -> None:
        if self._file is not None:
            with naming(self.path):
                self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _position(self, record: dict[str, Any]) -> tuple[int, int]:
        return self.phases.index(record["phase"]), int(record["step"])

    def _read(self, number: int, line: bytes) -> tuple[int, int]:
        try:
            return self._position(strict_json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.path}:{number} is not a line of metrics with a phase and a step; move the file away and resume"
            ) from error


def _plain(value: Any) -> Any:
    """`value` as JSON has it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a scalar of NumPy or JAX
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
