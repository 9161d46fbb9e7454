"""What a run shows people while it trains: a bar on a terminal and in a notebook, lines elsewhere."""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Self, TextIO

from bidora_jax.machine.facts import peak_memory

NORMS = {"grad_norm": "gradient", "direction_grad_norm": "gradient", "hypergrad_norm": "hypergradient"}
"""Norms that a line shows, by their names in the metrics."""


class Speed:
    """Tokens and steps a second over the last steps. The first step only starts the clock, as it may compile."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, window: int = 50) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque(maxlen=window + 1)  # (time, tokens so far) after each step

    def step(self, tokens: int) -> None:
        so_far = self._marks[-1][1] if self._marks else 0
        self._marks.append((self._clock(), so_far + tokens))

    @property
    def tokens_per_second(self) -> float | None:
        """None before the second step."""
        return self._rate(self._marks[-1][1] - self._marks[0][1]) if self._marks else None

    @property
    def seconds_per_step(self) -> float | None:
        rate = self._rate(len(self._marks) - 1)
        return 1 / rate if rate else None

    def _rate(self, amount: int) -> float | None:
        elapsed = self._marks[-1][0] - self._marks[0][0] if self._marks else 0.0
        return amount / elapsed if elapsed > 0 else None


class Progress:
    """A bar with loss, tokens/s and time left on a terminal and in a notebook; elsewhere a line at most every `every` seconds.

    Use it as a context. Of the `total` steps, `done` were done before the run was resumed.
    """

    def __init__(
        self,
        phase: str,
        total: int,
        *,
        done: int = 0,
        every: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.phase, self.total, self.done = phase, total, done
        self.speed = Speed(clock)
        self._clock, self._every, self._next_line = clock, every, -math.inf
        self._stream = sys.stderr if stream is None else stream
        self._notebook = redraws_in_notebook()
        self._bar = _bar(self._stream, notebook=self._notebook) if self._notebook or self._stream.isatty() else None
        self._task = self._bar.add_task(phase, total=total, completed=done, said="") if self._bar else None

    def step(self, metrics: Mapping[str, float], tokens: int) -> None:
        """Counts a step that is done, with its metrics and its number of tokens."""
        self.done += 1
        self.speed.step(tokens)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, said=self._state(metrics))
            if self._clock() >= self._next_line or self.done == self.total:
                self._draw()
        elif self._clock() >= self._next_line or self.done == self.total:
            self._next_line = self._clock() + self._every
            self.note(f"{self.phase} {self.done}/{self.total}  {self._state(metrics)}")

    def note(self, text: str) -> None:
        """A line that stays, above the bar."""
        if self._bar is not None and not self._notebook:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    @contextmanager
    def doing(self, text: str) -> Iterator[None]:
        """Shows `text` while the block runs, and then how long it took."""
        began = self._clock()
        if self._bar is not None:
            self._bar.update(self._task, said=text)
            self._draw()
        else:
            print(f"{text} … ", end="", file=self._stream, flush=True)
        try:
            yield
        except BaseException:
            self.note("")  # so that the error's message begins a new line
            raise
        took = f"{self._clock() - began:.1f} s"
        self.note(took if self._bar is None else f"{text} … {took}")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _draw(self) -> None:
        """Draws the bar in a notebook, a few times a second; on a terminal it draws itself."""
        if self._notebook and self._bar is not None:
            self._next_line = self._clock() + REDRAWN
            self._bar.refresh()

    def _state(self, metrics: Mapping[str, float]) -> str:
        rate, seconds = self.speed.tokens_per_second, self.speed.seconds_per_step
        parts = [f"loss {metrics['train_loss']:.4f}"]
        parts += [f"{word} {metrics[name]:.2g}" for name, word in NORMS.items() if name in metrics]
        parts += [f"{rate:,.0f} tokens/s"] if rate is not None else []
        parts += [f"{_duration(seconds * (self.total - self.done))} left"] if seconds is not None else []
        peaks = peak_memory()
        parts += [f"peak {peaks[where] / 2**30:.1f} GiB" for where in ("device", "host") if where in peaks][:1]
        return "  ".join(parts)


REDRAWN = 0.2
"""Seconds between two drawings of a notebook's bar: each is a message to the browser."""


def redraws_in_notebook() -> bool:
    """Whether this is a notebook's kernel that can redraw its output, which takes ipywidgets; IPython on a terminal is none."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel") and find_spec("ipywidgets") is not None


def _bar(stream: TextIO, *, notebook: bool) -> Any:
    """In a notebook it is drawn from this thread only: rich's own would catch what others print meanwhile, and wipe it away."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}", markup=False),
    )
    own = not notebook  # a notebook shows what is printed where it is printed
    console = Console(file=stream, force_jupyter=notebook)
    return Bar(*columns, console=console, auto_refresh=own, redirect_stdout=own, redirect_stderr=own)


def _duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
