"""An alarm or a limit ends what a file supplies, and leaves no trace."""

import re
import resource
import signal
import threading
import time

import pytest

from bidora_jax.errors import InputError
from bidora_jax.machine.bounds import at_most, little_memory


def late() -> InputError:
    return InputError("too late")


def loop() -> None:
    while True:
        pass


@pytest.mark.parametrize("work", [loop, lambda: re.fullmatch("([a-z]+)+!", "a" * 60), lambda: time.sleep(30)])
def test_what_takes_too_long_is_ended(work):
    begin, handler = time.monotonic(), signal.getsignal(signal.SIGALRM)
    with pytest.raises(InputError, match="too late"), at_most(0.2, late):
        work()
    assert time.monotonic() - begin < 5
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_what_is_quick_is_left_alone_and_so_is_an_earlier_alarm():
    rung = []
    handler = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with at_most(5, late):
            pass
        time.sleep(0.5)
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert rung == [1]


def test_in_another_thread_there_is_no_bound_and_no_error():
    found = []

    def work():
        with at_most(0.01, late):
            time.sleep(0.1)
            found.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [1]


def test_what_takes_too_much_memory_is_ended_and_the_limit_is_lifted_again(monkeypatch):
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # a worker may have another, asleep
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(MemoryError), little_memory(1 << 28):
        bytearray(1 << 29)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    with little_memory(1 << 29):
        assert len(bytearray(1 << 28)) == 1 << 28
        within = resource.getrlimit(resource.RLIMIT_AS)
    assert within[0] < 1 << 60 and within[1] == before[1]


def test_beside_another_thread_there_is_no_limit_on_memory():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        before = resource.getrlimit(resource.RLIMIT_AS)
        with little_memory(1 << 20):
            assert resource.getrlimit(resource.RLIMIT_AS) == before
    finally:
        stop.set()
        thread.join()
