"""What a quantised base costs in quality: the quickstart's run on each form of the base, with several seeds.

    python benchmarks/quality/quantized_base.py [--seeds 3] [--forms none int8 nf4] [--folder FOLDER]

Each cell is the quickstart with another `model.quantization` and `seed`. It reports the test loss of base + adapter by `evaluate`,
and exact matches of the greedy answers on the 96 test records, before and after training.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def call(module: str, *argv: str, cache: Path) -> str:
    """Standard output of a command of the package; programs compiled by one run serve the next seed's."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", f"bidora_jax.{module}", *argv]
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout


def cell(form: str, seed: int, folder: Path) -> dict[str, float]:
    """One run: exact matches before and after, and the test loss."""
    from bidora_jax.quickstart import DATA, MODEL

    run, result, cache = folder / f"{form}-{seed}", folder / f"{form}-{seed}.json", folder / "compiled"
    said = call("train", "--config", "configs/quickstart.py", "--output-dir", str(run), "--seed", str(seed),
                "--model.quantization", form, cache=cache)  # fmt: skip
    found = re.search(r"exact match on \d+ test records: before (\d+) .*after (\d+)", said)
    assert found, said
    call("evaluate", "--model", str(MODEL), "--dtype", "float32", "--quantization", form, "--adapter",
         str(run / "adapter"), "--data-file", str(DATA / "test.jsonl"), "--json", str(result), cache=cache)  # fmt: skip
    loss = json.loads(result.read_text())["loss"]
    print(f"{form} seed {seed}: before {found[1]}, after {found[2]}, test loss {loss:.4f}", flush=True)
    return {"before": int(found[1]), "after": int(found[2]), "loss": loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--forms", nargs="+", default=["none", "int8", "nf4"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.mkdtemp()))
    options = parser.parse_args()
    rows = {form: [cell(form, seed, options.folder) for seed in range(options.seeds)] for form in options.forms}
    print(
        "\n| base | test loss, mean (each seed) | exact match of 96, mean (each seed) | before |\n| --- | --- | --- | --- |"
    )
    for form, cells in rows.items():
        losses, right = [one["loss"] for one in cells], [one["after"] for one in cells]
        print(f"| {form} | {statistics.mean(losses):.4f} ({', '.join(f'{loss:.4f}' for loss in losses)}) | "
              f"{statistics.mean(right):.1f} ({', '.join(map(str, right))}) | {cells[0]['before']} |")  # fmt: skip


if __name__ == "__main__":
    main()
