"""SIGINT (Ctrl-C) and SIGTERM (a machine that is taken away), noted for the one who works rather than thrown into the work.

The first signal sets `asked`, which a loop reads between its steps: it saves what it has and raises `Stopped`. While nothing is
unsaved, as when a program is compiled, the first signal ends the process. A second Ctrl-C always does. A second SIGTERM does not:
job schedulers send several.

Python runs a signal's handler between two instructions of the main thread, and a compiler can keep that thread for minutes. The
C library's handler also writes the signal's number to a pipe at once (signal.set_wakeup_fd). A thread reads it there. A notebook's
process must outlive the run, and its event loop has that pipe: there Python's handler raises KeyboardInterrupt where a process
would end.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Interrupts:
    """Which signal asked to stop, if one did."""

    def __init__(self, advice: str = "") -> None:
        """`advice` says how to go on; it is printed when the process ends at once."""
        self.advice = advice
        self.asked: signal.Signals | None = None
        self._unsaved = True

    @property
    def name(self) -> str:
        """The signal as people call it."""
        return "" if self.asked is None else NAMES[self.asked]

    def at_step(self) -> None:
        """A step is done: where several processes stop together, they agree here on which one is the last (machine/hosts.py)."""

    @contextmanager
    def nothing_unsaved(self) -> Iterator[None]:
        """In this context the process may end at any moment: all that was done is saved."""
        self._unsaved = False
        try:
            if self.asked is not None:
                self._end(self.asked)
            yield
        finally:
            self._unsaved = True

    def note(self, number: int) -> None:
        """A signal has come. Where ending loses nothing, or somebody insists, the process ends, and a notebook's cell."""
        received = signal.Signals(number)
        insisted = self.asked is not None and received == signal.SIGINT
        first, self.asked = self.asked is None, self.asked or received
        if insisted or not self._unsaved:
            self._end(received)
        elif first:
            name, again = NAMES[received], "; Ctrl-C again stops at once"
            print(f"\n{name}: stops after this step and saves it{again}", file=sys.stderr, flush=True)

    def _end(self, received: signal.Signals) -> None:
        if in_notebook():
            raise KeyboardInterrupt
        shown = "\033[?25h" * sys.stderr.isatty()  # a progress bar hides the cursor
        print(f"{shown}\nstopped by {NAMES[received]}; {self.advice}", file=sys.stderr, flush=True)
        os._exit(status(received))


def status(received: signal.Signals) -> int:
    """The exit status that shells give a program that this signal ended."""
    return 128 + received


@contextmanager
def noted(advice: str) -> Iterator[Interrupts]:
    """Notes both signals inside of the context. Python gives them to the main thread alone; in another one none is noted."""
    interrupts = Interrupts(advice)
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
    elif in_notebook():
        with _handled_by(lambda number, frame: interrupts.note(number)):
            yield interrupts
    else:
        with _handled_by(lambda number, frame: None), _listened_to(interrupts.note):
            yield interrupts


@contextmanager
def _handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def _listened_to(note: Callable[[int], None]) -> Iterator[None]:
    """Calls `note` in a thread for every signal that has a handler."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        while number := os.read(reader, 1):
            if number[0] in SIGNALS:
                note(number[0])

    listener = threading.Thread(target=listen, daemon=True, name="signals")
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        os.close(writer)  # ends the listener
        listener.join()
        os.close(reader)


def in_notebook() -> bool:
    """Whether somebody types at this process, who would lose it."""
    return "ipykernel" in sys.modules or hasattr(sys, "ps1")
