"""A bound in time and in memory on what a file supplies: a regular expression or a template can run for years.

Python looks for signals between two instructions and inside of a search for a regular expression, so an alarm ends both. It needs a
Unix system and the main thread; elsewhere there is no bound. Memory is the address space that Linux lets a process have.
"""

import signal
import sys
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


@contextmanager
def little_memory(extra: int) -> Iterator[None]:
    """Lets the block take this many bytes of address space beside what the process has: MemoryError beyond. It needs Linux, and no
    other thread of Python's, which would have to do with as little; elsewhere there is no bound."""
    if sys.platform != "linux" or threading.active_count() > 1:
        yield
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as statm:
        held = int(statm.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [limit for limit in (held + extra, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
