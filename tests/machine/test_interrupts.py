"""machine/interrupts.py: signals are noted, end a process that has nothing to lose, and a second Ctrl-C ends any."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from bidora_jax.machine import interrupts

SCRIPT = """
import signal, sys, time
from contextlib import nullcontext
from bidora_jax.machine import interrupts

def busy():  # in C code that does not come back to the interpreter, as a compiler
    import hashlib
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 60_000_000)

with interrupts.noted("go on like this") as asked:
    with asked.nothing_unsaved() if "idle" in sys.argv else nullcontext():
        print("ready", flush=True)
        if "busy" in sys.argv:
            busy()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not asked.asked:
            time.sleep(0.01)
        print("asked by", asked.name, flush=True)
        time.sleep(20 * ("wait" in sys.argv))
sys.exit(3)
"""


def signalled(*how: str, signals: list[signal.Signals], pause: float = 0.3) -> tuple[int, str, str, float]:
    """Status, stdout, stderr and seconds of a process that gets these signals one after the other."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *how], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    for number in signals:
        time.sleep(pause)
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err, time.monotonic() - began


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_a_first_signal_is_noted_and_the_work_goes_on(number):
    status, out, err, _ = signalled(signals=[number])
    assert (status, out) == (3, f"asked by {interrupts.NAMES[number]}\n")
    assert f"{interrupts.NAMES[number]}: stops after this step and saves it; Ctrl-C again stops at once" in err


def test_a_second_ctrl_c_ends_at_once_and_a_second_sigterm_does_not():
    status, _, err, seconds = signalled("wait", signals=[signal.SIGTERM, signal.SIGINT])
    assert status == 130 and seconds < 10
    assert "stopped by Ctrl-C; go on like this" in err
    status, _, err, _ = signalled(signals=[signal.SIGINT, signal.SIGTERM], pause=0.05)
    assert status == 3 and "stopped by" not in err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_with_nothing_unsaved_the_first_one_ends_the_process_even_in_c_code(number, status):
    found, out, err, seconds = signalled("idle", "busy", signals=[number])
    assert (found, out) == (status, "") and seconds < 5
    assert f"stopped by {interrupts.NAMES[number]}; go on like this" in err


def test_a_notebook_lives_on(monkeypatch, capfd):
    monkeypatch.setattr(interrupts, "in_notebook", lambda: True)
    with interrupts.noted("") as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.name == "Ctrl-C"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with interrupts.noted("") as asked, asked.nothing_unsaved(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert "Ctrl-C" in capfd.readouterr().err


def test_the_handlers_and_the_pipe_of_before_come_back():
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with interrupts.noted(""):
        assert [signal.getsignal(number) for number in interrupts.SIGNALS] != before
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert not [thread for thread in threading.enumerate() if thread.name == "signals"]


def test_in_another_thread_nothing_is_noted_and_nothing_breaks():
    found = []

    def work():
        with interrupts.noted("") as asked:
            found.append(asked.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]
