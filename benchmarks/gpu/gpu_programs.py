"""Compiles the steps of bench_gpu.py for a GPU that need not be there: their memory, kernels, bytes and products.

    JAX_PLATFORMS=cpu python benchmarks/gpu/gpu_programs.py --gpu h100 [--shapes 8b 0.6b] [--methods lora dora bidora] [--json OUT]

A row is the step of `train` in the form that `train` would choose on that card, or with a remat setting of --remat. gpu_target.py
compiles it from shapes, and nothing runs. `bound` is the least time of its kernels at the card's rates (kernel_bounds.py). `of
the rate` is what bench_gpu.py would print if a step took no longer than its bound. Both compare programs; neither is a measurement.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import bench_gpu
import gpu_target
import jax
import kernel_bounds

from bidora_jax.errors import command
from bidora_jax.machine.memory import Memory
from bidora_jax.planning import footprint, remat_choice

COLUMNS = ("step", "form", "compiled in", "peak", "temporaries", "kernels", "products", "bytes", "bound", "of the rate")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--gpu", default="h100", choices=tuple(gpu_target.GPUS))
    add("--shapes", nargs="+", default=["8b", "0.6b"], choices=bench_gpu.SHAPES)
    add("--lengths", nargs="+", type=int, default=[1024])
    add("--methods", nargs="+", default=["lora", "dora", "bidora"], choices=["lora", "dora", "bidora"])
    add("--quantizations", nargs="+", default=["none", "nf4"], choices=["none", "int8", "nf4"])
    add("--tokens", type=int, default=4096, help="of a step, on each level")
    add("--rank", type=int, default=8)
    add("--attention", default="auto", choices=["auto", "chunked", "cudnn"])
    add("--remat", nargs="+", default=["auto"], choices=["auto", "none", "dots", "layer", "offload"])
    add("--most", type=int, default=0, help="print so many of a step's kernels too, by their least time")
    add("--json", help="file for the figures")
    options = parser.parse_args(argv)
    rows = []
    with gpu_target.named(options.gpu) as gpu:

        def of(one: kernel_bounds.Kernel) -> float:
            return one.seconds(gpu.bandwidth, gpu.product_rate)

        print(f"for an {gpu.title}, jax {jax.__version__}; nothing of it was run")
        print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
        for shape, length, method, form, remat in itertools.product(
            options.shapes, options.lengths, options.methods, options.quantizations, options.remat
        ):
            job = {"shape": shape, "method": method, "quantization": form, "batch": max(1, options.tokens // length),
                   "length": length, "rank": options.rank, "attention": options.attention, "remat": remat}  # fmt: skip
            row, found = counted(job, gpu)
            rows.append(row)
            print(line(row), flush=True)
            for seconds, one in sorted(((of(one), one) for one in found), reverse=True)[: options.most]:
                print(f"    {1e3 * seconds:6.2f} ms: {one.calls} x {one.bytes / 1e6:.1f} MB, {one.operations / 1e9:.1f} GFLOP, "
                      f"{one.kind}: {one.source[-90:]}")  # fmt: skip
    if options.json:
        Path(options.json).write_text(
            json.dumps({"gpu": gpu._asdict(), "jax": jax.__version__, "rows": rows}, indent=1) + "\n"
        )


def counted(job: dict, gpu: gpu_target.Gpu) -> tuple[dict, list[kernel_bounds.Kernel]]:
    """A row of the table, and the kernels of its step."""
    began = time.monotonic()
    config, plan, settled = bench_gpu.chosen(job, Memory(int(gpu.memory), f"an {gpu.title}'s"))
    program, length = remat_choice.largest(settled.phase)
    compiled = program.compile(settled.start.state, length)
    seconds = time.monotonic() - began
    parts = settled.footprint or footprint.of(settled.problem, settled.phase, settled.start.state, (program, length))
    found = kernel_bounds.kernels(compiled.as_text())
    bound = sum(one.seconds(gpu.bandwidth, gpu.product_rate) for one in found)
    row = job | {
        "form": bench_gpu.form_of(settled, job["method"]), "compile_seconds": seconds, "peak_bytes": parts.peak,
        "temporaries": parts.temporaries, "kernels": sum(one.calls for one in found),
        "operations": sum(one.calls * one.operations for one in found),
        "bytes": sum(one.calls * one.bytes for one in found), "bound_seconds": bound,
        "of_the_rate": bench_gpu.flops(config, plan, settled)["flops"] / bound / gpu.product_rate,
    }  # fmt: skip
    return row, found


def line(row: dict) -> str:
    cells = [
        f"{row['shape']} {row['method']} {row['quantization']}, {row['batch']} x {row['length']:,}", row["form"],
        f"{row['compile_seconds']:.0f} s", f"{row['peak_bytes'] / 1e9:.2f} GB", f"{row['temporaries'] / 1e9:.2f} GB",
        f"{row['kernels']:,}", f"{row['operations'] / 1e12:.1f} TFLOP", f"{row['bytes'] / 1e9:.0f} GB",
        f"{1e3 * row['bound_seconds']:.0f} ms", f"{row['of_the_rate']:.0%}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    command(main)
