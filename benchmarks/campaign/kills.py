"""200 kills: a run that is killed at a file event, or at a random time, and resumed, ends with the bytes of one that was not.

    python benchmarks/campaign/kills.py [--events 100] [--times 100] [--seed 0] [--log FILE]

Trains a tiny BiDoRA run whole, with a report and a merged model. A file event is the opening of a file of the run for writing, its
renaming, removal or truncation, or the making or removal of a folder, by Python (what orbax writes by itself lies between these).
Each case kills a fresh run with SIGKILL right before one of its events, spread over all of them, or after a random share of the
time that the whole run took; and a third of them again while they are resumed. Then the run goes on by its own config.json, or
anew where there is none yet. Right is: the weights, the merged model, metrics, changes and samples are those of the whole run, and
so is the list of all files; temporaries that a dead process left are aged first, since a minute has to pass before they go. Wrong
ones are printed; the last line has the counts. Exit status 1 where there is a wrong one.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import files as damaged
import forks

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
SECONDS = 300.0
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ARGV = [
    "train", "--model.path", "model", "--data.train-file", "train.jsonl", "--data.val-fraction", "0.3", "--output-dir", "trained",
    "--adapter.target-modules", "q_proj", "--adapter.rank", "3", "--adapter.dropout", "0.1", "--data.buckets", "1",
    "--inner.learning-rate", "0.1", "--search.steps", "4", "--retrain.steps", "4", "--eval-every", "1", "--save-every", "2",
    "--merged", "--samples.every", "2", "--samples.count", "1", "--samples.max-new-tokens", "3", "--report",
]  # fmt: skip
RESUME = ["train", "--config", "trained/config.json", "--resume"]
CLOCKS = ("tokens_per_second", "seconds")
EXACT = ("adapter/adapter_model.safetensors", "merged/model.safetensors", "changes.jsonl", "samples.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
        inputs, whole = Path(scratch) / "inputs", Path(scratch) / "whole"
        seconds, events = prepared(inputs, whole)
        print(f"a whole run: {events} file events, {seconds:.1f} s", flush=True)
        for number in range(options.events + options.times):
            chance = random.Random(f"{options.seed} {number}")
            at_event = number < options.events
            at = 1 + number * events // max(options.events, 1) if at_event else chance.uniform(0.1, 1.0) * seconds
            again = chance.random() < 1 / 3
            case = Path(scratch) / "case"
            fates = list(killed(inputs, case, at, again, chance))
            wrong = (
                list(differences(whole / "trained", case / "trained"))
                if fates[-1] == 0
                else [f"ended with {fates[-1]}: {LAST[-1]}"]
            )
            counts["wrong" if wrong else "right"] += 1
            counts["kills"] += sum(fate == -signal.SIGKILL for fate in fates)
            counts["kills at file events"] += at_event and fates[0] == -signal.SIGKILL
            line = {"seed": options.seed, "case": number, "at": at, "fates": fates, "wrong": wrong}
            log(options.log, line)
            if wrong:
                print(f"case {number}, at {'event' if at_event else 'second'} {at:g}: {'; '.join(wrong)}", flush=True)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    sys.exit(int(counts["wrong"] > 0))


LAST = [""]
"""The end of what the last child said."""


def prepared(inputs: Path, whole: Path) -> tuple[float, int]:
    """Writes the inputs, and trains a run on them to its end; its seconds without compiling, and its file events."""
    damaged.make(inputs)
    damaged.imported()
    forks.run(["info"], SECONDS)
    trained(inputs, whole)  # compiles
    shutil.rmtree(whole)
    return trained(inputs, whole)


def log(file: Path | None, line: dict) -> None:
    if file is not None:
        with file.open("a") as out:
            out.write(json.dumps(line) + "\n")


@contextmanager
def own_caches() -> Iterator[None]:
    """Caches of this process's own, in which every program is kept."""
    with tempfile.TemporaryDirectory(prefix="campaign-cache-") as folder:
        os.environ |= {"XDG_CACHE_HOME": folder, "JAX_COMPILATION_CACHE_DIR": f"{folder}/programs",
                       "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # fmt: skip
        yield


def trained(inputs: Path, folder: Path) -> tuple[float, int]:
    """A whole run: its seconds and its file events."""
    shutil.copytree(inputs, folder)
    counted = folder / "events"
    ended = forks.run(ARGV, SECONDS, lambda: (os.chdir(folder), at_event(0, counted)))
    if ended.status:
        sys.exit(f"the run that is not killed fails: {ended.err[-2000:]}")
    count = int(counted.read_text())
    counted.unlink()
    return ended.seconds, count


def killed(inputs: Path, case: Path, at: float, again: bool, chance: random.Random) -> Iterator[int]:
    """Trains in a fresh folder, is killed, and goes on until the run ends; how each process ended."""
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(inputs, case)
    points = [at] + (
        [chance.randrange(1, 40) if isinstance(at, int) else chance.uniform(0.1, 1.0) * at] if again else []
    )
    for point in [*points, None]:
        yield ended(case, point)
        age(case)


def age(case: Path) -> None:
    """Temporaries of a dead process go when they are a minute old."""
    for left in case.rglob(".*.tmp-*"):
        os.utime(left, (time.time() - 120,) * 2)


def started(case: Path, before: Callable[[], object] = lambda: None) -> forks.Ended:
    """Trains in the folder, or goes on there; `before` runs in the child, first."""
    argv = RESUME if (case / "trained/config.json").is_file() else ARGV
    return forks.run(argv, SECONDS, lambda: (os.chdir(case), before()))


def ended(case: Path, point: float | None) -> int:
    def before() -> None:
        if point is not None:
            at_event(point) if isinstance(point, int) else at_time(point)

    found = started(case, before)
    LAST[0] = " | ".join(found.err.strip().splitlines()[-3:])[-500:]
    return found.status


def at_time(seconds: float) -> None:
    """Kills this process after the seconds, by a process that does nothing else."""
    own = os.getpid()
    if not os.fork():
        time.sleep(seconds)
        if os.getppid() == own:
            os.kill(own, signal.SIGKILL)
        os._exit(0)


def at_event(number: int, counted: Path | None = None) -> None:
    """Kills this process right before the file event of this number in the run folder; 0 only counts, into a file."""
    seen, own = 0, os.path.abspath("trained")

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event not in EVENTS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
            return
        if not os.path.abspath(os.fsdecode(arguments[0])).startswith(own):
            return
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        if counted is not None:
            with os.fdopen(os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as out:
                out.write(str(seen))

    sys.addaudithook(hook)


def differences(whole: Path, run: Path) -> Iterator[str]:
    """What of the run is not as in the whole one."""
    files, others = ({str(path.relative_to(folder)) for path in folder.rglob("*")} for folder in (whole, run))
    files, others = ({path for path in paths if not path.startswith("checkpoints/")} for paths in (files, others))
    if files != others:
        yield f"missing {sorted(files - others)}, left {sorted(others - files)}"
    steps = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (whole, run)]
    if steps[0] != steps[1]:
        yield f"checkpoints {steps[1]}, expected {steps[0]}"
    for name in EXACT:
        if (run / name).is_file() and (whole / name).read_bytes() != (run / name).read_bytes():
            yield f"{name} differs"
    if metrics(whole) != metrics(run):
        yield "metrics.jsonl differs"


def metrics(run: Path) -> list[dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


if __name__ == "__main__":
    with own_caches():
        main()
