"""Quantised bases on a GPU: equal bits, bandwidth beside a copy's, speed beside bf16's, and memory.

    python benchmarks/gpu/quant.py [--out FILE.json] [--quick]

One command for an NVIDIA GPU. It builds the CUDA ops first if it finds nvcc. It prints five tables:

    1  device        bandwidth of a copy and rate of a bf16 product, to compare the others with
    2  correctness   CUDA op = XLA form = NumPy, compared bit by bit
    3  dequantise    one layer of a stack, GB/s of codes and scales read and matrix written            goal: 80 % of a copy
    4  linear        forward and gradient with respect to x at 4,096 tokens, times that of bf16        goal: 1.08
    5  steps         Qwen3-8B's shape, 1 x 1,024 tokens on each level: time and memory                 goal: QBiDoRA in 24 GB

Contestants take turns, and each round starts one further down the list. A figure is the median of the rounds, with the smallest
and the largest in brackets. Sections 1 to 4 run in one process. Every step of section 5 runs in a process of its own, because a
device counts its peak memory from the start of the process. Steps that --minutes leaves no time for are listed, not run.

Without a GPU everything runs at small sizes. Correctness is then still tested, with the CPU twin of the ops if g++ is there.
Times mean nothing, and memory is the compiler's count for the real shape on a CPU. The exit status is 1 if two results differ in
a bit or a part failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import jax
import numpy as np

from bidora_jax.errors import RunError
from bidora_jax.models.architectures.decoder import DecoderConfig

sys.path.insert(0, str(Path(__file__).parents[1]))  # measuring.py, random_models.py
import random_models
from measuring import has_cuda, op_calls, peak_bytes, save, side_by_side, sizes, spread, table
from quant_kernels import OP, kernel_sections

QWEN3_8B = DecoderConfig(
    vocab_size=151_936, hidden_size=4096, intermediate_size=12_288, num_layers=36, num_heads=32, num_kv_heads=8,
    head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=False, qk_norm=True, qkv_bias=False,
    o_bias=False, max_position_embeddings=40_960,
)  # fmt: skip
TINY = replace(QWEN3_8B, vocab_size=512, hidden_size=128, intermediate_size=384, num_layers=3, num_heads=4, num_kv_heads=2,
               head_dim=32)  # fmt: skip
BANDWIDTH_GOAL, LINEAR_GOAL, MEMORY_GOAL = 0.80, 1.08, 24e9
# The most telling first: the last ones are left out when time runs short.
CELLS = [(method, form) for method in ("bidora", "dora", "lora") for form in ("nf4-nested", "none", "int8")]


# --- the run: sections in processes of their own


def main() -> None:
    options = parsed()
    if options.child:
        child(json.loads(options.child))
        return
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report, failures = kernels(options, Path(folder))
        if "facts" not in report:
            sys.exit(f"nothing was measured: {failures[0]}")
        report["steps"], failed = steps(options, Path(folder), report["facts"], began)
    report["left_out"] = report.get("left_out", []) + failures + failed
    report["goals"] = goals(report)
    conclude(report, time.monotonic() - began)
    if options.out:
        Path(options.out).write_text(json.dumps(report, indent=1) + "\n")
    if failures or any(step.get("failed") for step in report["steps"]) or report.get("differing", 1):
        sys.exit(1)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="file for the figures, as JSON")
    parser.add_argument("--quick", action="store_true", help="half the shapes, fewer rounds, BiDoRA's steps only")
    parser.add_argument("--minutes", type=float, default=9.0, help="nothing starts, or lasts, after so many minutes")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.out and not Path(options.out).resolve().parent.is_dir():
        parser.error(f"--out {options.out}: there is no such folder")
    return options


def kernels(options, folder: Path) -> tuple[dict, list[str]]:
    """Sections 1 to 4, and what failed of them."""
    spec = {"part": "kernels", "quick": options.quick, "file": str(folder / "kernels.json"), "command": sys.argv}
    report, failure = in_child(spec, 60 * options.minutes, {})
    return report, [f"sections 1 to 4, from the failure on: {failure}"] if failure else []


def in_child(spec: dict, timeout: float | None, environment: dict[str, str]) -> tuple[dict, str]:
    """(what the process of this spec wrote to its file, why it ended early or nothing)."""
    line = [sys.executable, __file__, "--child", json.dumps(spec)]
    quiet = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}
    failure = ""
    settings = {"env": {**os.environ, **quiet, **environment}, "timeout": timeout, "check": False}
    try:
        run = subprocess.run(line, stderr=subprocess.PIPE, text=True, **settings)
        if run.returncode:
            failure = "\n".join(run.stderr.strip().splitlines()[-3:]) or f"exit status {run.returncode}"
    except subprocess.TimeoutExpired:
        failure = "no time left (--minutes)"
    file = Path(spec["file"])
    return (json.loads(file.read_text()) if file.exists() else {}), failure


def child(spec: dict) -> None:
    if spec["part"] == "kernels":
        kernel_sections(spec["quick"], Path(spec["file"]), " ".join(spec["command"]))
    else:
        step_cell(spec, Path(spec["file"]))


# --- 5. steps, each in a process of its own


def steps(options, folder: Path, facts: dict, began: float) -> tuple[list[dict], list[str]]:
    """The rows of section 5, and what of it was left out."""
    rows, left_out = [], []
    # Cells are many programs of the same products: what the compiler found out about one serves the next.
    environment = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")} if facts["cuda"] else {}
    for number, spec in enumerate(step_specs(options.quick, facts["cuda"])):
        spec |= {"part": "step", "quick": options.quick, "file": str(folder / f"step-{number}.json")}
        name = f"{spec['method']} x {spec['form']}" + ("" if spec["run"] else ", memory")
        remaining = 60 * options.minutes - (time.monotonic() - began)
        row, failure = in_child(spec, remaining, environment) if remaining > 5 else ({}, "no time left (--minutes)")
        outcome = failure or row.get("too_large", "")
        print(f"  {name}: " + (outcome or f"done in {row['wall_seconds']:.0f} s"), file=sys.stderr, flush=True)
        row["failed"] = bool(failure) and not failure.startswith("no time left")
        rows.append({**spec, **row})
        left_out += [f"step {name}: {outcome}"] if outcome else []
    step_table(rows, facts)
    return rows, left_out


def step_specs(quick: bool, cuda: bool) -> list[dict]:
    """On a GPU all cells at the real size; without one all at a tiny size, and the real size in the compiler alone."""
    cells = CELLS[:3] if quick else CELLS
    if cuda:
        return [{"method": method, "form": form, "tiny": False, "run": True} for method, form in cells]
    tiny = [
        {"method": method, "form": form, "tiny": True, "run": True} for method, form in cells[: 1 if quick else None]
    ]
    real = [
        {"method": method, "form": form, "tiny": False, "run": False} for method, form in cells[: 1 if quick else 3]
    ]
    return tiny + real


def step_cell(spec: dict, file: Path) -> None:
    """One step: compiled from shapes, so that the peak of the run is not that of compiling, then run on a random base."""
    began = time.monotonic()
    cuda = has_cuda()
    config, tokens = (TINY, 64) if spec["tiny"] else (QWEN3_8B, 1024)
    problem = random_models.Problem(spec["method"], spec["form"], config, tokens)
    step, shapes = problem.step(), jax.eval_shape(problem.arguments, problem.base_shapes(), jax.random.key(1))
    # What is compiled for a CPU is run to see that it runs; its memory is the same at either level.
    fast = None if cuda else {"xla_backend_optimization_level": 0}
    run = jax.jit(step, donate_argnums=0).lower(*shapes).compile(compiler_options=fast)
    row = {"tokens": tokens * (1 if spec["method"] != "bidora" else 2), "compile_seconds": time.monotonic() - began,
           "compiler": analysis(run), "op_calls": op_calls(run)}  # fmt: skip
    save(row, file)
    if spec["run"]:
        try:
            row |= stepped(run, problem, sizes(cuda, spec["quick"]).steps)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            row["too_large"] = "does not fit on this device"
    save(row | {"wall_seconds": time.monotonic() - began}, file)


def analysis(run) -> dict:
    """Bytes as the compiler has them; a donated argument is not counted again as a result."""
    memory = run.memory_analysis()
    parts = {name: getattr(memory, f"{name}_size_in_bytes") for name in ("argument", "temp", "output", "alias")}
    return {**parts, "total": parts["argument"] + parts["temp"] + parts["output"] - parts["alias"]}


def stepped(run, problem: random_models.Problem, count: int) -> dict:
    """Times of `count` steps after two to warm up, the last loss, and the device's peaks in bytes."""
    base = random_models.random_like(problem.base_shapes(), jax.random.key(0))
    state, *rest = jax.block_until_ready(problem.arguments(base, jax.random.key(1)))
    del base
    made, seconds = peak_bytes(), []
    for _ in range(count + 2):
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(run(state, *rest))
        seconds.append(time.perf_counter() - began)
    loss = float(metrics["train_loss"])
    if not np.isfinite(loss):
        raise RunError(f"the loss of {problem.method} x {problem.form} is {loss}")
    return {"seconds": seconds[2:], "train_loss": loss, "peak_bytes": peak_bytes(), "peak_bytes_before": made}


def step_table(rows: list[dict], facts: dict) -> None:
    """Of what ran, and without a GPU of what was only compiled."""
    ran, analysed = ([row for row in rows if "compiler" in row and row["run"] is flag] for flag in (True, False))
    notes = [
        "nf4-nested is what model.quantization=nf4 makes; tokens of BiDoRA count both levels, rank 8 on all seven linears"
    ]
    if facts["cuda"]:
        notes.append(
            "peak: the device's own count in a process of its own; compiler: its arguments + temporaries + results"
        )
        table("5. steps, Qwen3-8B's shape, random weights, 1 x 1,024 tokens a level", facts, 2, STEP_HEADER,
              [step_line(row) for row in ran], notes)  # fmt: skip
        return
    notes.append("a toy, compiled without optimisation: it shows that the steps run, and nothing else")
    table("5a. steps of a toy of 3 layers x 128, 1 x 64 tokens a level", facts, 2, STEP_HEADER,
          [step_line(row) for row in ran], notes)  # fmt: skip
    lines = [[row["method"], row["form"], *(f"{row['compiler'][part] / 1e9:.2f}" for part in ("argument", "temp", "total"))]
             for row in analysed]  # fmt: skip
    notes = ["the compiler's count for a CPU; nothing was allocated"]
    table("5b. memory of a step, Qwen3-8B's shape, 1 x 1,024 tokens a level, GB", facts, 2,
          ["method", "base", "arguments", "temporaries", "in all"], lines, notes)  # fmt: skip


STEP_HEADER = ["method", "base", "ms a step", "tokens/s", "peak GB", "compiler GB", "loss", "compiled in s", "op calls"]


def step_line(row: dict) -> list[str]:
    seconds = row.get("seconds")
    return [
        row["method"], row["form"], spread(seconds, 1e3) if seconds else row.get("too_large", "not run"),
        f"{row['tokens'] / median(seconds):.4g}" if seconds else "", peak_spelt(row),
        f"{row['compiler']['total'] / 1e9:.4g}", f"{row['train_loss']:.3f}" if seconds else "",
        f"{row['compile_seconds']:.0f}", str(row["op_calls"]),
    ]  # fmt: skip


def peak_spelt(row: dict) -> str:
    """The peak of the step, or a bound where the making of its arguments needed as much."""
    peak = row.get("peak_bytes")
    if not peak:
        return "no counter"
    return f"{'<= ' if peak == row['peak_bytes_before'] else ''}{peak / 1e9:.2f}"


# --- the end


def goals(report: dict) -> list[dict]:
    """The goals at the head of this file, each with what was found; `met` is None where this run can't tell."""
    found, gpu = [_correctness_goal(report)], report["facts"]["cuda"]
    copied, linear = (_contenders(report.get(section, []), gpu) for section in ("dequantise", "linear"))
    found.append(_worst(copied, "of_copy", min, f"dequantise at {BANDWIDTH_GOAL:.0%} of a copy", BANDWIDTH_GOAL))
    found.append(_worst(linear, "ratio", max, f"linear within {LINEAR_GOAL} of bf16's time", LINEAR_GOAL))
    step = next((row for row in report["steps"] if row["form"] == "nf4-nested" and row["method"] == "bidora"
                 and not row["tiny"] and "compiler" in row), {})  # fmt: skip
    peak, said = step.get("peak_bytes"), step.get("compiler", {}).get("total")
    text = (
        f"peak {peak / 1e9:.2f} GB"
        if peak
        else f"{said / 1e9:.2f} GB by the compiler, not run"
        if said
        else "not measured"
    )
    name = f"QBiDoRA's step in {MEMORY_GOAL / 1e9:.0f} GB"
    found.append({"goal": name, "met": peak <= MEMORY_GOAL if gpu and peak else None, "found": text})
    return found


def _correctness_goal(report: dict) -> dict:
    rows = report.get("correctness")
    if not rows:
        return {"goal": "bit equality", "met": None, "found": "not measured"}
    kind = OP if report["facts"]["cuda"] else "CPU twin"
    compared = [row for row in rows if row["differing_ops"] is not None]
    text = f"{report['differing']} values differ; {kind} compared in {len(compared)} of {len(rows)} cases"
    return {"goal": "bit equality", "met": not report["differing"] if compared else None, "found": text}


def _contenders(rows: list[dict], gpu: bool) -> list[dict]:
    """What the library would use on this GPU: the ops, or XLA's form where there are none. Nothing on a CPU."""
    by_op, by_xla = ([row for row in rows if row["contestant"].endswith(f", {end}")] for end in (OP, "XLA"))
    return (by_op or by_xla) if gpu else []


def _worst(rows: list[dict], field: str, choose: Callable, name: str, bound: float) -> dict:
    if not rows:
        return {"goal": name, "met": None, "found": "only a GPU can tell"}
    good = [row[field] >= bound if choose is min else row[field] <= bound for row in rows]
    worst = choose(rows, key=lambda row: row[field])
    text = f"in {sum(good)} of {len(good)} cases; worst: {worst[field]:.3f}, {worst['contestant']}, "
    return {"goal": name, "met": all(good), "found": text + side_by_side(worst["shape"])}


def conclude(report: dict, seconds: float) -> None:
    spelt = {True: "met", False: "MISSED", None: "open"}
    table("Goals", report["facts"], 3, ["goal", "", "found"],
          [[goal["goal"], spelt[goal["met"]], goal["found"]] for goal in report["goals"]], [])  # fmt: skip
    print("\nLeft out:" if report["left_out"] else "\nNothing was left out.")
    for line in report["left_out"]:
        print(f"  {line}")
    print(f"\n{seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
