"""Ctrl-C as a flag, while something is computed.

Python raises KeyboardInterrupt wherever it happens to be. In a callback that JAX registered (it has one for garbage collection)
the exception is printed as ignored, and is lost.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from bidora_jax.errors import interrupted


class CtrlC:
    """In its `with` block Ctrl-C raises nothing and sets a flag, but for where `raised` says so. Elsewhere than in the main thread,
    where Python handles no signals, it changes nothing."""

    def __init__(self) -> None:
        self._pressed = False
        self._before: Any = None

    def __enter__(self) -> "CtrlC":
        self._before = _handled_by(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        _handled_by(self._before)

    def taken(self) -> bool:
        """Whether Ctrl-C was pressed since the last call."""
        pressed, self._pressed = self._pressed, False
        return pressed

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Ctrl-C raises KeyboardInterrupt here, as where a line is typed."""
        _handled_by(interrupted)
        try:
            yield
        finally:
            _handled_by(self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._pressed = True


def _handled_by(handler: Any) -> Any:
    """Lets `handler` have Ctrl-C; returns the one before."""
    return signal.signal(signal.SIGINT, handler) if threading.current_thread() is threading.main_thread() else None
