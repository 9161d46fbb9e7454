"""training/progress.py: the speed, and the line of progress on a terminal and in a file."""

import io

from bidora_jax.training.progress import Progress, Speed


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_speed_leaves_out_the_first_step_and_forgets_old_ones():
    clock = Clock()
    speed = Speed(clock, window=3)
    assert (speed.tokens_per_second, speed.seconds_per_step) == (None, None)
    clock.now += 60  # compiles
    speed.step(100)
    assert (speed.tokens_per_second, speed.seconds_per_step) == (None, None)
    for seconds, tokens in [(2, 50), (3, 100), (1, 150)]:
        clock.now += seconds
        speed.step(tokens)
    assert (speed.tokens_per_second, speed.seconds_per_step) == (50, 2)
    clock.now += 8
    speed.step(350)
    assert (speed.tokens_per_second, speed.seconds_per_step) == (50, 4)


def test_without_a_terminal_there_are_plain_lines_now_and_then():
    clock, stream = Clock(), io.StringIO()
    with Progress("search", 25, done=3, every=10, stream=stream, clock=clock) as progress:
        for step in range(3, 25):
            progress.step(loss=step / 8, tokens=1500)
            clock.now += 1
        progress.note("done")
    assert stream.getvalue().splitlines() == [
        "search 4/25  loss 0.3750",
        "search 14/25  loss 1.6250  1,500 tokens/s  0:11 left",
        "search 24/25  loss 2.8750  1,500 tokens/s  0:01 left",
        "search 25/25  loss 3.0000  1,500 tokens/s  0:00 left",
        "done",
    ]


def test_hours_are_written_out():
    clock, stream = Clock(), io.StringIO()
    progress = Progress("retrain", 3602, every=0, stream=stream, clock=clock)
    progress.step(1.0, 1)
    clock.now += 2
    progress.step(1.0, 1)
    assert stream.getvalue().splitlines()[-1].endswith("0 tokens/s  2:00:00 left")


def test_on_a_terminal_there_is_a_bar_and_notes_stay_above_it(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with Progress("search", 5, stream=stream) as progress:
        progress.step(0.5, 10)
        progress.note("val [bold] loss")
        progress.step(0.25, 10)
    shown = stream.getvalue()
    assert "search" in shown
    assert "2/5" in shown
    assert "loss 0.2500" in shown
    assert "val [bold] loss" in shown
    assert "\x1b[" in shown
