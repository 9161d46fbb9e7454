"""Counts the steps that `python -m bidora_jax.models` lists, and writes bidora_jax/planning/published_steps.json, which ships.

    python benchmarks/memory/count_published.py [--only lora dora] [--family qwen3]

Run it when a step's memory has changed: tests/planning/test_published_steps.py counts some of them anew. 36 counts take 8 minutes
of processor time. What the file has of this very version is kept, so the command can be stopped and called again.
"""

import argparse
import json
import time

import jax

from bidora_jax.machine.files import write_json
from bidora_jax.models.architectures import published
from bidora_jax.planning import plans, published_steps, remat_choice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=published_steps.METHODS, default=published_steps.METHODS)
    parser.add_argument("--family", default="all")
    options = parser.parse_args()
    file = published_steps.SHIPPED
    made_by = {"jax": jax.__version__, "platform": jax.default_backend(), "batch": 1, "tokens": 1024}
    found = json.loads(file.read_text()) if file.is_file() else {}
    steps = found["steps"] if found.get("counted by") == made_by else {}
    for name in published.names(options.family):
        for method in options.only:
            if method in steps.get(name, {}):
                continue
            began = time.monotonic()
            plan = published_steps.listed_plan(method, "none", 1, 1024)
            parts = plans.counted(published.shape(name), plan, "bfloat16")
            steps.setdefault(name, {})[method] = remat_choice.needed(parts)
            write_json(file, {"counted by": made_by, "steps": steps})
            print(f"{name} {method}: {steps[name][method] / 1e9:.2f} GB, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
