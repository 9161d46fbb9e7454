"""10,000 steps of one run: does its memory grow, do files or threads stay open?

    python benchmarks/campaign/soak.py [--steps 10000]

Trains a tiny BiDoRA run with validation, samples and checkpoints, half of the steps in each phase, and reads /proc of its process
twice a second: resident memory, open files, threads. Right is where the line through what was seen in a phase, after its first
1,000 steps (pools of threads fill, and their memory) and before its last one (after which other programs run), rises by less than
1 MB, one file and one thread in 1,000 steps, in which there are 20 checkpoints. Exit status 1 where one does not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

SUPPORT = Path(__file__).parents[2] / "tests" / "support"
ARGV = [
    "--model.path", "model", "--data.train-file", "train.jsonl", "--data.val-fraction", "0.3", "--output-dir", "trained",
    "--adapter.target-modules", "q_proj", "--adapter.rank", "3", "--adapter.dropout", "0.1", "--inner.learning-rate", "1e-3",
    "--eval-every", "50", "--save-every", "50", "--samples.every", "250", "--samples.count", "1", "--samples.max-new-tokens", "3",
    "--no-report",
]  # fmt: skip
FIRST = 1000
INPUTS = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from tiny import write_model_folder, write_records

write_model_folder(Path("model"))
write_records(Path("train.jsonl"), 40, 0)
"""


class Seen(NamedTuple):
    """Of the process at one time."""

    phase: str
    step: int
    memory: float
    """Resident, in MB."""
    files: int
    threads: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
        folder = Path(scratch)
        subprocess.run([sys.executable, "-c", INPUTS, SUPPORT], cwd=folder, check=True)
        half = str(options.steps // 2)
        argv = [sys.executable, "-m", "bidora_jax.train", *ARGV, "--search.steps", half, "--retrain.steps", half]
        began = time.monotonic()
        with (folder / "said").open("w") as said:
            run = subprocess.Popen(argv, cwd=folder, stdout=said, stderr=said)
            seen = []
            while run.poll() is None:
                time.sleep(0.5)
                if (now := look(run.pid, folder / "trained" / "metrics.jsonl")) is not None:
                    seen.append(now)
        if run.returncode:
            sys.exit((folder / "said").read_text()[-2000:])
    phases = [[one for one in seen if one.phase == phase] for phase in ("search", "retrain")]
    phases = [[one for one in looks if FIRST < one.step < looks[-1].step] for looks in phases]
    if min(map(len, phases)) < 8:
        sys.exit(f"{len(phases[0])} and {len(phases[1])} looks after step {FIRST}: take more steps")
    wrong = [fault for looks in phases for fault in rising(looks)]
    print(f"{options.steps} steps in {time.monotonic() - began:.0f} s", *wrong, sep="\n")
    sys.exit(int(bool(wrong)))


def look(process: int, metrics: Path) -> Seen | None:
    try:
        line = json.loads(metrics.read_bytes().split(b"\n")[-2])
        status = Path(f"/proc/{process}/status").read_text()
        files = len(os.listdir(f"/proc/{process}/fd"))
    except (OSError, IndexError):  # it has not begun, or has just ended
        return None
    numbers = {name: int(rest.split()[0]) for name, _, rest in (one.partition(":") for one in status.splitlines())
               if name in ("VmRSS", "Threads")}  # fmt: skip
    if len(numbers) < 2:
        return None
    return Seen(line["phase"], line["step"], numbers["VmRSS"] / 1024, files, numbers["Threads"])


def rising(looks: list[Seen]) -> Iterator[str]:
    """What rises; prints what was seen."""
    first, last = looks[0], looks[-1]
    print(f"{first.phase}, after step {first.step:,} and after step {last.step:,}:")
    for name in ("memory", "files", "threads"):
        seen = [getattr(one, name) for one in looks]
        slope = 1000 * float(np.polyfit([one.step for one in looks], seen, 1)[0])
        print(f"  {name} {seen[0]:g} and {seen[-1]:g}, {min(seen):g} to {max(seen):g}, {slope:+.2f} in 1,000 steps")
        if slope >= 1:
            yield f"{first.phase}: {name} rise by {slope:.2f} in 1,000 steps"


if __name__ == "__main__":
    os.environ["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir() + "/campaign-soak-cache"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
