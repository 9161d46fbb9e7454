"""Processes that step in turn. Each holds one contestant and does one step when the parent asks over a pipe, while all others
wait. Other load on the machine then slows all alike, and a ratio compares two steps of the same round.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from statistics import median


class Stopped(SystemExit):
    """A process that ended before it was told to."""


class Worker:
    """The parent's end of a process that runs `serve`. Building one starts it and waits until it is warm."""

    def __init__(
        self, name: str, script: str, job: dict, environment: dict[str, str], limit: float = threading.TIMEOUT_MAX
    ):
        """After `limit` seconds the process is killed, and whatever waits for it raises Stopped."""
        self.name, self.seconds = name, []
        command = [sys.executable, script, "--worker", json.dumps(job)]
        settings = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.process = subprocess.Popen(command, env=os.environ | environment, **settings)
        self.timer = threading.Timer(limit, self.process.kill)
        self.timer.daemon = True
        self.timer.start()
        try:
            self.ready = self._answer()
        except BaseException:
            self.stop()
            raise

    def step(self) -> dict:
        """What it answers to one step: its seconds, and what it counts besides."""
        with suppress(BrokenPipeError):  # of a process that has ended: there will be no answer
            print("step", file=self.process.stdin, flush=True)
        answer = self._answer()
        self.seconds.append(answer["seconds"])
        return answer

    def stop(self) -> None:
        self.timer.cancel()
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise Stopped(f"{self.name} stopped with exit code {self.process.wait()}; see above")
        return json.loads(line)


def in_turn(workers: list[Worker], rounds: int) -> Iterator[Worker]:
    """Each worker once a round, starting one further down the list every time."""
    for number in range(rounds):
        first = number % len(workers)
        yield from workers[first:] + workers[:first]


def serve(build: Callable[[], tuple[Callable | None, dict]], count: Callable[[], dict]) -> None:
    """Builds a step (and facts about it), does one to warm up, says what it gave, then does one for every line that comes in,
    with what `count` finds after it. Where `build` gives no step, the facts are all that is said."""
    # Libraries print; answers go out on a copy of stdout, and stdout itself joins stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    began = time.monotonic()
    step, facts = build()
    facts["build_seconds"] = time.monotonic() - began
    if step is None:
        print(json.dumps(facts), file=answers)
        return
    began = time.perf_counter()
    facts["first"] = step()
    facts["first_seconds"] = time.perf_counter() - began
    print(json.dumps(facts), file=answers)
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        print(json.dumps({"seconds": time.perf_counter() - began, **count()}), file=answers)


def peak_gb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6


def spread(values: list[float], form: str) -> str:
    return f"{median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def this_machine(*packages: str) -> str:
    """The date, the processor and the versions, for the head of a table."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = names[0].partition(":")[2].strip() if names else platform.machine()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return f"{datetime.date.today()}, {os.cpu_count()} x {processor}, Python {platform.python_version()}, {versions}"
