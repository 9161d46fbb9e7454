"""2,000 damaged files: each is refused in one message or read, quickly, in little memory, and nothing else is opened.

    python benchmarks/campaign/files.py [--cases 2000] [--seed 0] [--only config.json …] [--keep FOLDER] [--log FILE]

Takes the files of a model, an adapter, a run and data that are whole, damages one (mutations.py), and calls a command that reads it
(forks.py). A case is right where the command ends with 0, or with 2 and a message without a traceback; within SECONDS and MEMORY;
where nothing outside of the folder was opened, and no file was left in it. The wrong ones are printed, and kept in FOLDER; the last
lines are the counts. Exit status 1 where there is a wrong one. With --log a line a case is written, and cases that stand there are
not run again.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import forks
import mutations
from mutations import Mutation

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
SECONDS, MEMORY = 10.0, 10**9
GENERATE = ("generate", "--model", "model", "--prompt", "repeat 1 x1", "--max-new-tokens", "1")
WITH_ADAPTER = (*GENERATE[:3], "--adapter", "adapter", *GENERATE[3:])
DATA = ("data", "--model", "model", "--data.val-fraction", "0.2", "-t")


class Kind(NamedTuple):
    """A file, how it is damaged, and the command that reads it."""

    file: str
    mutation: Mutation
    argv: tuple[str, ...]


KINDS = [
    Kind("model/config.json", mutations.of_json, GENERATE),
    Kind("model/model.safetensors", mutations.of_safetensors, GENERATE),
    Kind("sharded/model.safetensors.index.json", mutations.of_json, ("generate", "--model", "sharded", *GENERATE[3:])),
    Kind("model/tokenizer.json", mutations.of_json, (*DATA, "train.jsonl")),
    Kind("model/tokenizer_config.json", mutations.of_template, (*DATA, "train.jsonl")),
    Kind("adapter/adapter_config.json", mutations.of_json, WITH_ADAPTER),
    Kind("adapter/adapter_model.safetensors", mutations.of_safetensors, WITH_ADAPTER),
    Kind("train.jsonl", mutations.of_lines, (*DATA, "train.jsonl")),
    Kind("train.csv", mutations.of_bytes, (*DATA, "train.csv")),
    Kind("train.json", mutations.of_json, (*DATA, "train.json")),
    Kind("train.parquet", mutations.of_bytes, (*DATA, "train.parquet")),
    Kind("train.jsonl.gz", mutations.of_bytes, (*DATA, "train.jsonl.gz")),
    Kind("run/metrics.jsonl", mutations.of_lines, ("report", "--run", "run")),
    Kind("run/run.json", mutations.of_json, ("report", "--run", "run")),
    Kind("run/config.json", mutations.of_json, ("report", "--run", "run")),
    Kind("settings.yaml", mutations.of_bytes, ("train", "--config", "settings.yaml", "--dry-run")),
]
IMPORTED = (
    "jax", "numpy", "transformers", "tokenizers", "pyarrow.parquet", "pyarrow.json", "matplotlib.pyplot", "rich", "tyro", "optax",
    "bidora_jax.config", "bidora_jax.runs.launch", "bidora_jax.runs.assembly", "bidora_jax.runs.report",
    "bidora_jax.generation.decoding", "bidora_jax.generation.ensembles", "bidora_jax.models.formats.hf",
)  # fmt: skip
"""What the commands import, once for all children."""
LEFT = {"report": ("run/report",)}
"""What a command writes, by its name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=[kind.file for kind in KINDS])
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if not options.only or kind.file in options.only]
    done = {}
    if options.log and options.log.is_file():
        done = {(line["seed"], line["case"]): line for line in map(json.loads, options.log.read_text().splitlines())}
    counts: Counter[str] = Counter()
    slowest, largest = 0.0, 0
    with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
        whole = Path(scratch) / "whole"
        make(whole)
        warm(whole)
        for number in range(options.cases):
            kind = kinds[number % len(kinds)]
            line = done.get((options.seed, number)) or one(
                kind, options.seed, number, whole, Path(scratch) / "case", options.keep
            )
            if options.log and (options.seed, number) not in done:
                with options.log.open("a") as out:
                    out.write(json.dumps(line) + "\n")
            counts["wrong" if line["wrong"] else f"exit {line['status']}"] += 1
            slowest, largest = max(slowest, line["seconds"]), max(largest, line["peak"])
            if line["wrong"]:
                print(f"case {number}, {line['file']}: {'; '.join(line['wrong'])}\n  {line['said']}", flush=True)
    print(f"{options.cases} damaged files: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    print(f"slowest {slowest:.1f} s, largest {largest / 1e6:.0f} MB")
    sys.exit(int(counts["wrong"] > 0))


def one(kind: Kind, seed: int, number: int, whole: Path, case: Path, keep: Path | None) -> dict:
    """Damages the file of this number and runs its command."""
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(whole, case)
    chance = random.Random(f"{seed} {number}")
    damaged = case / kind.file
    damaged.write_bytes(kind.mutation(damaged.read_bytes(), chance))
    before = set(listed(case))
    ended = forks.run(kind.argv, SECONDS, lambda: within(case))
    if ended.status == forks.TIMEOUT:
        ended = forks.run(kind.argv, SECONDS, lambda: within(case), alone=True)
    wrong = list(faults(ended, case))
    own = tuple(LEFT.get(kind.argv[0], ()))
    left = sorted(path for path in set(listed(case)) - before if not path.startswith(own or ("\0",)))
    wrong += [f"left behind: {', '.join(left)}"] if left else []
    if wrong and keep:
        keep.mkdir(parents=True, exist_ok=True)
        shutil.copy(damaged, keep / f"{number}-{damaged.name}")
    said = " | ".join(ended.err.strip().splitlines()[-3:])[-600:]
    return {"seed": seed, "case": number, "file": kind.file, "status": ended.status, "seconds": round(ended.seconds, 2),
            "peak": ended.peak, "wrong": wrong, "said": said if wrong else ""}  # fmt: skip


def within(case: Path) -> None:
    """What a child does first."""
    os.chdir(case)
    os.environ["TMPDIR"] = os.environ["XDG_CACHE_HOME"]
    tempfile.tempdir = None


def faults(ended: forks.Ended, case: Path) -> Iterator[str]:
    if ended.status == forks.TIMEOUT:
        yield f"did not end within {SECONDS:g} s"
    elif ended.status not in (0, 2):
        yield f"ended with {ended.status}"
    if "Traceback (most recent call last)" in ended.err or "panicked at" in ended.err:
        yield "a traceback"
    if ended.status == 2 and not ended.err.strip():
        yield "no message"
    if ended.peak > MEMORY:
        yield f"{ended.peak / 1e6:.0f} MB of memory"
    cache = os.environ["XDG_CACHE_HOME"]  # temporary files are in it too
    outside = sorted(
        path for path in ended.opened if not path.startswith((f"{case}/", cache, tempfile.gettempdir() + "/campaign-"))
    )
    if outside:
        yield f"opened {', '.join(outside[:5])}"


def listed(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*")]


def make(folder: Path) -> None:
    """All files, whole, by processes of their own: this one must not start JAX."""
    import subprocess

    made = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "whole.py"), str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        sys.exit(made.stderr)


def imported() -> None:
    """Imports what the commands import, once for all children."""
    import importlib

    for name in IMPORTED:
        importlib.import_module(name)


def warm(whole: Path) -> None:
    """Fills the caches of compiled programs by one call of each command."""
    imported()
    for argv in dict.fromkeys(kind.argv for kind in KINDS):
        ended = forks.run(argv, 120, lambda: os.chdir(whole))
        if ended.status:
            sys.exit(f"{' '.join(argv)} fails on files that are whole: {ended.err[-2000:]}")
        for left in LEFT.get(argv[0], ()):
            shutil.rmtree(whole / left, ignore_errors=True)


if __name__ == "__main__":
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="campaign-cache-")
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # of a caller: its files are outside
    try:
        main()
    finally:
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
