"""A run that is stopped ten times, by Ctrl-C and by SIGTERM, and goes on each time: is its adapter the uninterrupted run's?

    python benchmarks/runs/stops.py [--stops 10] [--seed 0]

The steps to stop at are drawn by the seed, over both phases. Prints a row a stop: how long the process took to end, the step that
it saved, its exit status; at the end whether adapter and metrics are equal, bit for bit. Takes some minutes on two cores.
"""

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"search": 40, "retrain": 100}
ENDING = 10
"""Steps at the end that no stop is drawn from: a signal takes effect some steps after it was sent."""
TRAIN = [sys.executable, "-m", "bidora_jax.train"]
RUN = ["--config", "configs/quickstart.py", "--search.steps", str(STEPS["search"]), "--retrain.steps",
       str(STEPS["retrain"]), "--eval-every", "7", "--save-every", "9", "--data.test-file", "", "--no-merged",
       "--no-report"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, run = Path(folder, "whole"), Path(folder, "run")
        subprocess.run([*TRAIN, *RUN, "--output-dir", str(whole)], cwd=ROOT, check=True, capture_output=True)
        argv = [*RUN, "--output-dir", str(run)]
        for number_left in range(asked.stops, 0, -1):
            done = len(metrics(run))
            point = done + draw.randint(1, (sum(STEPS.values()) - ENDING - done) // number_left)
            number = draw.choice((signal.SIGINT, signal.SIGTERM))
            print(stop(argv, run, point, number), flush=True)
            argv = ["--config", str(run / "config.json"), "--resume"]
        subprocess.run([*TRAIN, *argv], cwd=ROOT, check=True, capture_output=True)
        weights = Path("adapter", "adapter_model.safetensors")
        print("adapters equal:", (run / weights).read_bytes() == (whole / weights).read_bytes())
        print("metrics equal:", metrics(run) == metrics(whole))


def stop(argv: list[str], run: Path, point: int, number: signal.Signals) -> str:
    """Runs until the metrics have step `point` of the run, sends the signal, and says what came of it."""
    process = subprocess.Popen([*TRAIN, *argv], cwd=ROOT, stdout=-1, stderr=-1, text=True)
    while process.poll() is None and len(metrics(run)) < point:
        time.sleep(0.01)
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate()
    found = re.search(r"stopped: (.*), which is saved", said)
    where = found[1] if found else said.strip().splitlines()[-1:]
    return (
        f"{number.name} at step {point:>3}: exit {process.returncode} after {time.monotonic() - began:.1f} s: {where}"
    )


def metrics(run: Path) -> list[dict]:
    """The whole lines of metrics.jsonl, without what a clock says."""
    file = run / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.is_file() else []
    timings = {"tokens_per_second", "seconds"}
    return [{name: value for name, value in json.loads(line).items() if name not in timings} for line in lines]


if __name__ == "__main__":
    main()
