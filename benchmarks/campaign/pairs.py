"""20 pairs of runs at once on one cache, and 10 tries of two runs at one output folder.

    python benchmarks/campaign/pairs.py [--pairs 20] [--tries 10]

A pair starts two processes at the same moment, with one empty cache folder for tokens and compiled programs, and a third when both
have ended. Right is: all three end with status 0 and the bytes of a run that was alone, nothing but whole files is left in the
cache, and the third one compiles nothing and makes no tokens. Of a try's two processes, which have one output folder, one has to
end with status 0 and the bytes of a run that was alone, and the other with status 2 and a message that says who holds the folder.
Wrong ones are printed; the last line has the counts. Exit status 1 where there is a wrong one.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import files as damaged

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from bidora_jax.data import token_cache
token_cache.encode_all.__kwdefaults__["worth"] = 0.0  # tokens of so few records are made in less than they are kept for
from bidora_jax import train
from bidora_jax.errors import command
command(train.main, sys.argv[1:])
"""
ARGV = [
    "--model.path", "model", "--data.train-file", "train.jsonl", "--data.val-fraction", "0.3",
    "--adapter.target-modules", "q_proj", "--adapter.rank", "3", "--data.buckets", "1", "--inner.learning-rate", "0.1",
    "--search.steps", "2", "--retrain.steps", "2", "--no-report",
]  # fmt: skip


class Ended(NamedTuple):
    status: int
    said: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--tries", type=int, default=10)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
        folder = Path(scratch) / "inputs"
        damaged.make(folder)
        cache = Path(scratch) / "cache"
        [alone] = at_once(folder, cache, "alone")
        if alone.status:
            sys.exit(f"a run that is alone fails: {alone.said[-2000:]}")
        wanted = weights(folder / "alone")
        for kind, count, judge in (("pair", options.pairs, pair), ("try", options.tries, one_folder)):
            for number in range(count):
                if kind == "pair":
                    shutil.rmtree(cache)
                wrong = list(judge(folder, cache, wanted))
                counts[f"{kind} wrong" if wrong else f"{kind} right"] += 1
                if wrong:
                    print(f"{kind} {number}: {'; '.join(wrong)}", flush=True)
                for name in ("one", "other", "third"):
                    shutil.rmtree(folder / name, ignore_errors=True)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    sys.exit(int(any("wrong" in name for name in counts)))


def pair(folder: Path, cache: Path, wanted: bytes) -> Iterator[str]:
    both = at_once(folder, cache, "one", "other")
    entries = set(cache.rglob("*-cache"))
    [third] = at_once(folder, cache, "third")
    for name, ended in zip(("one", "other", "third"), [*both, third], strict=True):
        if ended.status or "damaged" in ended.said or "Traceback" in ended.said:
            yield f"{name} ended with {ended.status}: {ended.said[-500:]}"
        elif weights(folder / name) != wanted:
            yield f"{name} has other weights"
    left = [str(path) for path in cache.rglob("*") if path.is_file() and ".tmp-" in path.name]
    if left:
        yield f"left {left}"
    if new := {path.name for path in cache.rglob("*-cache")} - {path.name for path in entries}:
        yield f"the third run compiles {sorted(new)}"
    if not re.search(r"tokens read in", third.said):
        yield f"the third run makes its tokens anew: {third.said[-500:]}"


def one_folder(folder: Path, cache: Path, wanted: bytes) -> Iterator[str]:
    both = at_once(folder, cache, "one", "one")
    if sorted(ended.status for ended in both) != [0, 2]:
        yield f"ended with {[ended.status for ended in both]}: {[ended.said[-300:] for ended in both]}"
        return
    [loser] = (ended for ended in both if ended.status)
    if not re.search(r"error: \S+ is in use: process \d+ on \S+, since .* trains in it; wait", loser.said):
        yield f"says {loser.said[-500:]!r}"
    if weights(folder / "one") != wanted:
        yield "other weights"


def at_once(folder: Path, cache: Path, *outputs: str) -> list[Ended]:
    """A run for each of the output folders, all at the same time."""
    given = {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")} | given
    runs = [
        subprocess.Popen([sys.executable, "-c", RUN, *ARGV, "--output-dir", output], cwd=folder, env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for output in outputs
    ]  # fmt: skip
    return [Ended(run.wait(), said) for run, said in [(run, run.communicate()[0]) for run in runs]]


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


if __name__ == "__main__":
    main()
