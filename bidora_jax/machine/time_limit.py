"""A bound in time on what a file supplies: a regular expression or a template can run for years.

Python looks for signals between two instructions and inside of a search for a regular expression, so an alarm ends both. It needs a
Unix system and the main thread; elsewhere there is no bound.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def at_most(seconds: float, refusal: Callable[[], Exception]) -> Iterator[None]:
    """Raises `refusal()` in the block when it takes longer. An alarm that was set before goes on after it."""

    def late(number, frame):
        raise refusal()

    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    handler = signal.signal(signal.SIGALRM, late)
    earlier = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *earlier)
        signal.signal(signal.SIGALRM, handler)
