"""How long JAX traces and compiles in this process, by its own events: in all, and each function by its name."""

import math
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax

from bidora_jax.machine.memory import process_seconds

COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's event for a program that was compiled, or read from the persistent cache."""
TRACED = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")
"""JAX's events for a program that was traced."""


class Clock:
    """Seconds that the process has been running, and seconds in JAX's compiler since this clock was made."""

    def __init__(self) -> None:
        self._made = time.monotonic()
        self._compiled: list[tuple[float, float]] = []
        self._traced: list[tuple[float, float]] = []
        self._seconds: defaultdict[tuple[str, str], float] = defaultdict(float)  # by (event, function)
        self._main = threading.get_ident()
        jax.monitoring.register_event_duration_secs_listener(self._add)

    @property
    def compiling(self) -> float:
        """Seconds in which something was compiled: programs that are compiled at once count once."""
        return _covered(self._compiled)

    @property
    def tracing(self) -> float:
        """Seconds in which the thread that trains traced programs, each with those that it calls."""
        return _covered(self._traced)

    def compiled(self, name: str) -> float:
        """Seconds that functions of this name were compiled or read."""
        return self._seconds[COMPILED, name]

    def made(self, name: str) -> float:
        """Seconds that functions of this name were traced and compiled."""
        return sum(self._seconds[event, name] for event in (COMPILED, *TRACED))

    @property
    def running(self) -> float:
        """Seconds since the process began; where the system does not tell, since this clock was made, without the imports."""
        return process_seconds() or time.monotonic() - self._made

    def _add(self, event: str, duration_secs: float, **about: Any) -> None:
        now, name = time.monotonic(), str(about["fun_name"]) if "fun_name" in about else ""
        if event == COMPILED:
            self._compiled.append((now - duration_secs, now))
        elif event in TRACED and threading.get_ident() == self._main:
            self._traced.append((now - duration_secs, now))
        else:
            return
        self._seconds[event, name.removeprefix("jit_").removeprefix("jit(").removesuffix(")")] += duration_secs


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds that are in any of these spans of time."""
    total, end = 0.0, -math.inf
    for began, ended in sorted(spans):
        total, end = total + max(ended - max(began, end), 0.0), max(end, ended)
    return total
