"""The rate of loading a dense checkpoint of 2.1 GB onto the device, against the rate of reading its bytes.

    python benchmarks/formats/load_rate.py --folder FOLDER [--rounds 5]

Writes a random checkpoint to FOLDER unless it exists: Qwen3-0.6B's shape with 56 layers, bf16. Each round reads the file into
fresh memory (`numpy.fromfile`) and then loads the model, each in a process of its own. The file is in the page cache. Goal: 80 %
of the read rate.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import load_memory

GOAL = 0.8


def read(folder: Path) -> dict:
    import numpy as np

    file = next(folder.glob("*.safetensors"))
    began = time.monotonic()
    held = np.fromfile(file, np.uint8)
    return {"bytes": held.nbytes, "seconds": time.monotonic() - began}


def load(folder: Path) -> dict:
    import jax

    from bidora_jax.kernels import quantized
    from bidora_jax.models.formats import hf, hf_config
    from bidora_jax.models.settings import ModelConfig

    jax.block_until_ready(jax.numpy.zeros(1))
    config = hf_config.read_config(folder)
    began = time.monotonic()
    base = jax.block_until_ready(hf.load(ModelConfig(), folder, config))
    return {"bytes": quantized.tree_bytes(base), "seconds": time.monotonic() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("read", "load"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps({"read": read, "load": load}[options.only](options.folder)))
        return
    if not options.folder.exists():
        load_memory.SIZES["num_hidden_layers"] = 56
        load_memory.make(options.folder)
    rates: dict[str, list[float]] = {"read": [], "load": []}
    for _ in range(options.rounds + 1):
        for name, found in rates.items():
            argv = [sys.executable, __file__, "--folder", str(options.folder), "--only", name]
            one = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
            found.append(one["bytes"] / one["seconds"] / 1e9)
    rates = {name: found[1:] for name, found in rates.items()}  # the first round brings the file into the page cache
    for name, found in rates.items():
        print(f"{name:5s} {median(found):.2f} GB/s ({min(found):.2f} to {max(found):.2f})")
    ratio = median(mine / plain for mine, plain in zip(rates["load"], rates["read"], strict=True))
    print(f"load over read: {ratio:.2f}, goal {GOAL}")


if __name__ == "__main__":
    main()
