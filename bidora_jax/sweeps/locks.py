"""Locks in a sweep's folder. The system lets go of them however a process ends, so what a killed one held is free at once."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def waited_for(path: Path) -> Iterator[None]:
    """Holds the lock for as long as the block lasts; waits until it is free."""
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def taken(path: Path) -> TextIO | None:
    """The lock, held until the file is closed; None where another process holds it."""
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
