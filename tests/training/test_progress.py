"""training/progress.py: the speed, and the line of progress on a terminal, in a notebook and in a file."""

import importlib
import io
import sys

import pytest

from bidora_jax.training import progress as progress_module
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


def test_without_a_terminal_there_are_plain_lines_now_and_then(monkeypatch):
    monkeypatch.setattr(progress_module, "peak_memory", lambda: {"host": 3 * 2**29})
    clock, stream = Clock(), io.StringIO()
    with Progress("search", 25, done=3, every=10, stream=stream, clock=clock) as progress:
        for step in range(3, 25):
            progress.step({"train_loss": step / 8, "grad_norm": 0.25, "lr": 1.0}, tokens=1500)
            clock.now += 1
        progress.note("done")
    assert stream.getvalue().splitlines() == [
        "search 4/25  loss 0.3750  gradient 0.25  peak 1.5 GiB",
        "search 14/25  loss 1.6250  gradient 0.25  1,500 tokens/s  0:11 left  peak 1.5 GiB",
        "search 24/25  loss 2.8750  gradient 0.25  1,500 tokens/s  0:01 left  peak 1.5 GiB",
        "search 25/25  loss 3.0000  gradient 0.25  1,500 tokens/s  0:00 left  peak 1.5 GiB",
        "done",
    ]


def test_hours_are_written_out():
    clock, stream = Clock(), io.StringIO()
    progress = Progress("retrain", 3602, every=0, stream=stream, clock=clock)
    progress.step({"train_loss": 1.0}, 1)
    clock.now += 2
    progress.step({"train_loss": 1.0, "direction_grad_norm": 2.0, "hypergrad_norm": 3e-5}, 1)
    assert "loss 1.0000  gradient 2  hypergradient 3e-05  0 tokens/s  2:00:00 left" in stream.getvalue()


def test_on_a_terminal_there_is_a_bar_and_notes_stay_above_it(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with Progress("search", 5, stream=stream) as progress:
        progress.step({"train_loss": 0.5}, 10)
        progress.note("val [bold] loss")
        progress.step({"train_loss": 0.25}, 10)
    shown = stream.getvalue()
    assert "search" in shown
    assert "2/5" in shown
    assert "loss 0.2500" in shown
    assert "val [bold] loss" in shown
    assert "\x1b[" in shown


# Stand-ins for Jupyter's packages, some of which are not installed: what rich calls of them, and what it showed.
KERNEL = {
    "IPython/__init__.py": "class Shell:\n    kernel = None\n\n\ndef get_ipython():\n    return Shell()\n",
    "IPython/display.py": "shown = []\n\n\ndef display(*what, **how):\n    shown.append(what[0])\n",
    "ipywidgets/__init__.py": "class Output:\n    def __enter__(self): ...\n    def __exit__(self, *_): ...\n"
    "    def clear_output(self, wait): ...\n",
}


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Makes this process a notebook's kernel, without some of the packages; returns what a notebook would have shown."""

    def start(*without: str) -> list:
        for name, text in KERNEL.items():
            if name.partition("/")[0] not in without:
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        return importlib.import_module("IPython.display").shown

    real = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in ("IPython", "ipywidgets")}
    for name in real:
        del sys.modules[name]
    yield start
    for name in ("IPython", "IPython.display", "ipywidgets"):
        sys.modules.pop(name, None)
    sys.modules.update(real)


def drawn(shown: list) -> list[str]:
    texts = [one._repr_mimebundle_([], [])["text/plain"] for one in shown if hasattr(one, "_repr_mimebundle_")]
    return [text for text in texts if "search" in text]


def test_in_a_notebook_there_is_a_bar_that_is_drawn_now_and_then_and_notes_are_printed(kernel):
    shown, clock, stream = kernel(), Clock(), io.StringIO()
    with Progress("search", 25, stream=stream, clock=clock) as progress:
        for _ in range(25):
            clock.now += 0.04
            progress.step({"train_loss": 0.5}, 10)
            progress.note("a note")
    assert stream.getvalue() == "a note\n" * 25
    bars = drawn(shown)
    assert "25/25" in bars[-1] and "loss 0.5000" in bars[-1]
    assert 5 <= len(bars) <= 8  # a second, drawn every fifth of it; at the start and at the end


def test_a_notebook_that_cannot_redraw_has_lines(kernel):
    shown, stream = kernel("ipywidgets"), io.StringIO()
    with Progress("search", 1, stream=stream) as progress:
        progress.step({"train_loss": 0.5}, 10)
    assert shown == [] and stream.getvalue().startswith("search 1/1  loss 0.5000")
