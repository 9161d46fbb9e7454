"""Compares what `train --dry-run` predicts with what the run then takes: peak resident memory and time.

    python benchmarks/memory/dry_run.py --folder FOLDER [--layers 12] [--steps 12] [--only lora …]

Writes a random bf16 checkpoint of SmolLM2-135M's width as a Qwen3 to FOLDER, with the quickstart's tokenizer, and keeps it. For
each of four configurations it calls the dry run and then the run, each in a process of its own, on the quickstart's data. The peak
is the VmHWM of the run's process, with interpreter and libraries; the time is that of the whole process. Compiled programs are
cached in FOLDER/compiled, as `train` caches them: the run finds what the dry run compiled, and the prediction counts on that.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))  # load_memory.py
import load_memory

SIZES = {"vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
         "num_key_value_heads": 3, "head_dim": 64}  # fmt: skip
RUNS = {
    "lora": ["--adapter.method", "lora"],
    "dora": ["--adapter.method", "dora"],
    "bidora": [],
    "bidora, nf4": ["--model.quantization", "nf4"],
}
WATCH = """
import sys
from bidora_jax import train
from bidora_jax.errors import command
from bidora_jax.machine.memory import resident
command(train.main, sys.argv[1:])
print("peak", resident("VmHWM"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--steps", type=int, default=16, help="of each phase")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    options = parser.parse_args()
    model = options.folder / f"model-{options.layers}"
    if not model.exists():
        make(model, options.layers)
    print("| run | foretold peak | measured | difference | foretold time | measured | difference |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.only:
        told, found = both(options.folder, model, RUNS[name], options.steps)
        cells = [name]
        for key, unit, scale in (("peak", "GB", 1e9), ("seconds", "s", 1)):
            cells += [f"{told[key] / scale:.2f} {unit}", f"{found[key] / scale:.2f} {unit}",
                      f"{told[key] / found[key] - 1:+.1%}"]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


def make(folder: Path, layers: int) -> None:
    """A random checkpoint with the quickstart's tokenizer."""
    from bidora_jax.quickstart import MODEL

    load_memory.SIZES.update(SIZES, num_hidden_layers=layers)
    load_memory.make(folder)
    for path in Path(MODEL).glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)


def both(folder: Path, model: Path, flags: list[str], steps: int) -> tuple[dict, dict]:
    """What was foretold, and what was found."""
    from bidora_jax.quickstart import DATA

    output, val = folder / "run", folder / "val.jsonl"
    val.write_text("".join((DATA / "val.jsonl").read_text().splitlines(keepends=True)[:32]))
    shutil.rmtree(output, ignore_errors=True)
    argv = ["--model.path", str(model), "--data.train-file", str(DATA / "train.jsonl"), "--data.val-file", str(val),
            "--data.buckets", "1", "--search.steps", str(steps), "--retrain.steps", str(steps), "--eval-every", "0",
            "--compilation-cache", str(folder / "compiled"), "--output-dir", str(output), *flags]  # fmt: skip
    said = process([*argv, "--dry-run"])["said"]
    peak = re.search(r"memory: (\S+ \wB) is needed", said)
    whole = re.search(r"^time: (\S+) (s|min|h) = ", said, re.MULTILINE)
    assert peak and whole, said
    size, unit = peak[1].split()
    found = process(argv)
    told = {"peak": float(size) * {"GB": 1e9, "MB": 1e6}[unit],
            "seconds": float(whole[1]) * {"s": 1, "min": 60, "h": 3600}[whole[2]]}  # fmt: skip
    assert json.loads((output / "config.json").read_text())["model"]["remat"] != "auto"
    return told, found


def process(argv: list[str]) -> dict:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *argv], capture_output=True, text=True, env=os.environ, check=False
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    peak = re.search(r"^peak (\d+)$", done.stdout, re.MULTILINE)
    assert peak is not None
    return {"said": done.stdout, "peak": int(peak[1]), "seconds": time.monotonic() - began}


if __name__ == "__main__":
    main()
