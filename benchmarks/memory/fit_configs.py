"""Compiles every record of configs/qwen3.py from shapes and compares its peak with the memory it is meant for.

    JAX_PLATFORMS=cpu python benchmarks/memory/fit_configs.py --gpu h100 [--sizes 0.6b 8b] [--pick]

It needs no weights and no data, and allocates nothing. planning/footprint.py counts for the platform it runs on, or with --gpu
for a GPU of gpu_target.py, which need not be there. --pick searches for the records instead. For each size and memory it tries
bidora, then dora, then lora, each dense, in int8 and in nf4, and prints the first that fits, with the most records in the device
at a time (4, 2 or 1). Counts are cached beside the compiled programs, so that a second call takes seconds.
"""

import argparse
import itertools
import sys
from contextlib import nullcontext
from pathlib import Path

import jax

from bidora_jax import config
from bidora_jax.errors import command
from bidora_jax.models.architectures import published
from bidora_jax.planning import footprint, plans, published_steps, remat_choice
from bidora_jax.planning.plans import Plan
from bidora_jax.runs.auto import plan_of

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))  # gpu_target.py
import gpu_target

FILE = Path(__file__).parents[2] / "configs" / "qwen3.py"
SIZES = ("0.6b", "1.7b", "4b", "8b", "14b", "32b")
MEMORIES = (8, 16, 24, 40, 80)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--pick", action="store_true")
    parser.add_argument("--gpu", choices=tuple(gpu_target.GPUS), help="compile for this one")
    options = parser.parse_args(argv)
    with gpu_target.named(options.gpu) if options.gpu else nullcontext():
        if options.pick:
            for size in options.sizes:
                print(f'    "{size}": {picked(size)},', flush=True)
            return
        table(options.sizes, options.gpu or jax.default_backend())


def table(sizes: tuple[str, ...], platform: str) -> None:
    """Every record with its peak; exit status 1 where one has too much."""
    print(
        f"the compiler's count for a {platform}, jax {jax.__version__}; allowed: {remat_choice.FITS:.0%} of the memory"
    )
    print(
        "| record | method | quantization | batch x accumulation | peak | allowed |\n| --- | --- | --- | --- | --- | --- |"
    )
    wrong = 0
    for size in sizes:
        for memory in records()[size]:
            plan = read(f"{size}-{memory}gb")
            peak, allowed = count(size, plan), remat_choice.FITS * memory * 1e9
            wrong += peak > allowed
            cells = [f"{size}-{memory}gb", plan.adapter.method, plan.model.quantization,
                     f"{plan.data.batch_size} x {plan.data.accumulation}",
                     footprint.gigabytes(peak) + (" TOO MUCH" if peak > allowed else ""), footprint.gigabytes(allowed)]  # fmt: skip
            print("| " + " | ".join(cells) + " |", flush=True)
    sys.exit(1 if wrong else 0)


def records() -> dict[str, dict[int, tuple[str, str, int]]]:
    import runpy

    return runpy.run_path(str(FILE))["RECORDS"]


def read(argument: str) -> Plan:
    """The plan of a record, as `train` reads it."""
    return plan_of(config.resolve(config.read(f"{FILE}:{argument}")))


def count(size: str, plan: Plan) -> int:
    return published_steps.step_bytes(published.shape(f"Qwen/Qwen3-{size.upper()}"), plan)


def picked(size: str) -> dict[int, tuple[str, str, int]]:
    """The record for each memory that has one."""
    found: dict[int, tuple[str, str, int]] = {}
    for memory in MEMORIES:
        allowed = remat_choice.FITS * memory * 1e9
        for method, form in itertools.product(("bidora", "dora", "lora"), ("none", "int8", "nf4")):
            shape = published.shape(f"Qwen/Qwen3-{size.upper()}")
            if plans.base_bytes(shape, template(method, form, 1), "bfloat16") > allowed:
                continue
            if count(size, template(method, form, 1)) <= allowed:
                fitting_ones = (n for n in (4, 2, 1) if count(size, template(method, form, n)) <= allowed)
                found[memory] = (method, form, next(fitting_ones))
                break
    return found


def template(method: str, form: str, batch: int) -> Plan:
    """A record of configs/qwen3.py with these values."""
    import runpy

    space = runpy.run_path(str(FILE))
    space["RECORDS"]["0.6b"] = {8: (method, form, batch)}
    tree = config.defaults()
    with tree.ignore_type():
        tree.update(space["get_config"]("0.6b-8gb"))
    return plan_of(config.resolve(tree))


if __name__ == "__main__":
    command(main)
