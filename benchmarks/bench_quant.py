"""Quantised bases on a GPU: right to the bit, at the bandwidth of a copy, at the speed of bf16, and in how much memory.

    python benchmarks/bench_quant.py [--out FILE.json] [--quick]

One command for an NVIDIA GPU; the CUDA ops are built first where nvcc is found. Five tables:

    1  device        bandwidth of a copy and rate of a bf16 product, the yardsticks of what follows
    2  correctness   CUDA op = XLA form = NumPy, compared bit by bit
    3  dequantise    one layer of a stack, GB/s of codes and scales read and matrix written            goal: 80 % of a copy
    4  linear        forward and gradient with respect to x at 4,096 tokens, times that of bf16        goal: 1.08
    5  steps         Qwen3-8B's shape, 1 x 1,024 tokens on each level: time and memory                 goal: QBiDoRA in 24 GB

Contestants take turns, starting one further down the list every round; a figure is the median of the rounds, with the
smallest and largest beside it. Sections 1 to 4 run in one process and every step in one of its own, because the peak of a
device's memory counts from the start of a process. Steps that --minutes leaves no time for are named, not run.

Without a GPU everything runs at small sizes: correctness is then real (the ops are the CPU twin's, where g++ is found),
times are good for nothing, and memory is the compiler's for the real shape, as a CPU would need it.
Ends with 1 if two results differ in a bit, or if a part failed.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
import random_models

from bidora_jax.errors import InputError, RunError
from bidora_jax.kernels import dora, quant
from bidora_jax.kernels.cuda import build, ops
from bidora_jax.kernels.dynamic8 import dynamic_map
from bidora_jax.models.decoder import DecoderConfig

QWEN3_8B = DecoderConfig(
    vocab_size=151_936, hidden_size=4096, intermediate_size=12_288, num_layers=36, num_heads=32, num_kv_heads=8,
    head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=False, qk_norm=True, qkv_bias=False,
    o_bias=False, max_position_embeddings=40_960,
)  # fmt: skip
TINY = replace(QWEN3_8B, vocab_size=512, hidden_size=128, intermediate_size=384, num_layers=3, num_heads=4, num_kv_heads=2,
               head_dim=32)  # fmt: skip
# (O, I) of q_proj and o_proj, of k_proj and v_proj, of gate_proj and up_proj, of down_proj.
LINEARS = ((4096, 4096), (1024, 4096), (12_288, 4096), (4096, 12_288))
# An odd number of weights, with blocks that cross rows; bytes that end between two words; three nested blocks, the last
# short; and one of the real shapes.
CORRECTNESS = ((7, 13), (2, 62), (31, 1216), (1024, 4096))
PACKED = random_models.FORMS[1:]
BANDWIDTH_GOAL, LINEAR_GOAL, MEMORY_GOAL = 0.80, 1.08, 24e9
# The most telling first: the last ones are left out when time runs short.
CELLS = [(method, form) for method in ("bidora", "dora", "lora") for form in ("nf4-nested", "none", "int8")]
OP = "CUDA op"


@dataclass(frozen=True)
class Sizes:
    """How much is done: in full, in a hurry, or just to see that it runs."""

    copied: int
    """elements of the array that is copied"""
    matmul: tuple[int, int, int]
    tokens: int
    linears: tuple[tuple[int, int], ...]
    written: int
    """bytes that the dequantisations of one layer index write, past any cache"""
    layers: int
    """of a stack that is dequantised"""
    rounds: int
    seconds: float
    """of one contestant in one round"""
    steps: int
    """timed steps"""


GPU = Sizes(2**28, (4096, 4096, 12_288), 4096, LINEARS, 2**28, layers=8, rounds=9, seconds=0.03, steps=8)
CPU = Sizes(2**22, (64, 256, 768), 64, tuple((o // 16, i // 16) for o, i in LINEARS), 2**19, 3, 5, 0.01, 3)


def sizes(cuda: bool, quick: bool) -> Sizes:
    full = GPU if cuda else CPU
    return replace(full, linears=full.linears[::2], rounds=3, steps=3) if quick else full


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


def save(report: dict, file: Path) -> None:
    """Whole or not at all: the process may be ended at any time."""
    fresh = file.with_suffix(".part")
    fresh.write_text(json.dumps(report))
    os.replace(fresh, file)


# --- printing


def stamp(facts: dict) -> str:
    return f"{facts['device']}, JAX {facts['jax']}, {facts['date']}"


def table(title: str, facts: dict, texts: int, header: list[str], rows: list[list[str]], notes: list[str]) -> None:
    """A table under its title and the device it is of. The first `texts` columns are words, the others numbers."""
    print(f"\n{title}\n{stamp(facts)}")
    for note in notes:
        print(note)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        words = [cell.ljust(width) for cell, width in zip(row[:texts], widths[:texts], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[texts:], widths[texts:], strict=True)]
        print("  " + "  ".join(words + numbers).rstrip(), flush=True)


def spread(values: list[float], scale: float = 1.0) -> str:
    scaled = [value * scale for value in values]
    return f"{median(scaled):.4g} [{min(scaled):.4g}, {max(scaled):.4g}]"


def side_by_side(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


# --- timing


def in_turns(contestants: dict[str, Callable], size: Sizes) -> dict[str, list[float]]:
    """Seconds a call of each contestant in each round. Calls of a round are queued, and the last one is waited for."""
    calls = {name: _enough(call, size.seconds) for name, call in contestants.items()}
    names, seconds = list(contestants), {name: [] for name in contestants}
    for first in range(size.rounds):
        for offset in range(len(names)):
            name = names[(first + offset) % len(names)]
            seconds[name].append(_timed(contestants[name], calls[name]))
    return seconds


def _enough(call: Callable, seconds: float) -> int:
    """Calls that last so long, after two to warm up, and whose results fit into a quarter of the device all at once."""
    for _ in range(2):
        result = jax.block_until_ready(call())
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 2**32) // 4
    fitting = limit // max(1, quant.tree_bytes(result))
    del result
    return max(1, min(500, fitting, round(seconds / _timed(call, 3))))


def _timed(call: Callable, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / calls


def compiled(function: Callable, *arguments) -> Callable:
    """The function of no arguments that runs it on these."""
    return partial(jax.jit(function).lower(*arguments).compile(), *arguments)


def op_calls(executable) -> int:
    """Calls of the CUDA ops in a compiled program; one in a loop is one."""
    return executable.as_text().count('custom_call_target="bidora_')


@contextmanager
def xla_form() -> Iterator[None]:
    """What is traced inside dequantises by XLA's form, built ops or not."""
    found, ops.available = ops.available, lambda: False
    try:
        yield
    finally:
        ops.available = found


# --- sections 1 to 4, in one process


def kernel_sections(quick: bool, file: Path, command: str) -> None:
    cuda = has_cuda()
    comparable, note = ready(cuda, file.parent)
    report = {"facts": facts(note, command), "left_out": [] if comparable else [f"CUDA op against XLA form: {note}"]}
    save(report, file)
    print(f"{stamp(report['facts'])}\nops: {note}")
    size, key = sizes(cuda, quick), jax.random.key(0)
    report["device"] = device_section(report["facts"], size, key)
    save(report, file)
    report["correctness"] = correctness_section(report["facts"], comparable, key, quick)
    report["differing"] = sum(row["differing_ops"] or 0 for row in report["correctness"])
    report["differing"] += sum(row["differing_numpy"] for row in report["correctness"])
    save(report, file)
    timed_ops = cuda and comparable
    if not timed_ops:
        report["left_out"].append("time of the CUDA op: " + (note if cuda else "no NVIDIA GPU"))
    report["dequantise"] = dequantise_section(report, size, key, timed_ops)
    save(report, file)
    report["linear"] = linear_section(report, size, key, timed_ops)
    save(report, file)


def has_cuda() -> bool:
    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:  # JAX knows no such platform here
        return False


def facts(note: str, command: str) -> dict:
    device = jax.devices()[0]
    return {
        "device": device.device_kind, "cuda": has_cuda(), "platform": device.client.platform_version,
        "jax": jax.__version__, "date": datetime.date.today().isoformat(), "ops": note,
        "memory": (device.memory_stats() or {}).get("bytes_limit"), "command": command,
    }  # fmt: skip


def ready(cuda: bool, folder: Path) -> tuple[bool, str]:
    """(whether there are ops to call, what they are or why there are none). Builds them where nothing has."""
    try:
        if not cuda:
            ops.register_twin(build.build_twin(folder))
            return True, "the CPU twin; no NVIDIA GPU"
        path = build.library_path()
        if not path.exists():
            build.build(build.find_nvcc(), path)
    except (InputError, RunError, OSError) as error:
        return False, f"not built: {error}"
    return ops.available(), ops.status()


def device_section(facts: dict, size: Sizes, key) -> dict:
    x = random_models.random_like(jax.ShapeDtypeStruct((1024, size.copied // 1024), jnp.bfloat16), key)
    copies = in_turns({"copy": compiled(jnp.copy, x), "negation": compiled(jnp.negative, x)}, size)
    tokens, columns, rows = size.matmul
    a, w = (
        random_models.random_like(jax.ShapeDtypeStruct(shape, jnp.bfloat16), key)
        for shape in ((tokens, columns), (rows, columns))
    )
    products = in_turns({"product": compiled(lambda a, w: a @ w.T, a, w)}, size)["product"]
    moved, operations = 2 * x.nbytes, 2 * tokens * columns * rows
    lines = [[name, f"{moved / median(ones) / 1e9:.4g} GB/s", spread(ones, 1e3)] for name, ones in copies.items()]
    lines.append(["bf16 product", f"{operations / median(products) / 1e12:.4g} TFLOP/s", spread(products, 1e3)])
    notes = [f"copy and negation of {x.nbytes / 2**20:.0f} MiB, bytes read and written; "
             f"product of {side_by_side(size.matmul)}"]  # fmt: skip
    table("1. device", facts, 1, ["", "rate", "ms"], lines, notes)
    # The faster of a copy by the device's engine and one by a kernel is the yardstick.
    best = moved / min(map(median, copies.values()))
    return {"copy_bytes_per_s": best, "matmul_flops": operations / median(products),
            "seconds": copies | {"matmul": products}}  # fmt: skip


# --- 2. correctness


def correctness_section(facts: dict, comparable: bool, key, quick: bool) -> list[dict]:
    layers, rows = 3, []
    shapes = CORRECTNESS[:-1] if quick else CORRECTNESS
    for form in PACKED:
        for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
            kinds = [random_models.stack_shapes(form, (layers, *shape), dtype) for shape in shapes]
            stacks = _far_apart(random_models.random_like(kinds, key), key)
            rows.append({"form": form, "dtype": jnp.dtype(dtype).name, **differing(stacks, layers, comparable)})

    def spelt(count: int | None) -> str:
        return "not compared" if count is None else f"{count} differ" if count else "equal"

    lines = [
        [row["form"], row["dtype"], f"{row['values']:,}", spelt(row["differing_ops"]), spelt(row["differing_numpy"])]
        for row in rows
    ]
    notes = [
        f"all bits of {layers} layers of {', '.join(map(side_by_side, shapes))}; absmax over forty powers of two",
        f"ops: {facts['ops']}",
    ]
    op = f"{OP} = XLA form" if facts["cuda"] else "CPU twin = XLA form"
    table("2. correctness", facts, 2, ["form", "dtype", "values", op, "XLA form = NumPy"], lines, notes)
    return rows


def _far_apart(stacks: list, key) -> list:
    """The scales times powers of two: subnormal and infinite results in float16 among them."""

    def moved(leaf):
        if leaf.dtype != jnp.float32:
            return leaf
        return leaf * jnp.exp2(jax.random.randint(key, leaf.shape, -20, 20).astype(jnp.float32))

    return jax.tree.map(moved, stacks)


def differing(stacks: list, layers: int, comparable: bool) -> dict:
    """Values that differ in a bit: of the ops from the XLA form (None without ops), of the XLA form from NumPy."""
    with xla_form():
        by_xla = jax.jit(lambda stacks, layer: [_opened(stack, layer) for stack in stacks]).lower(stacks, jnp.int32(0))
    by_xla = by_xla.compile()
    by_ops = jax.jit(lambda stacks, layer: [_by_op(stack, layer) for stack in stacks])
    counts = {"values": 0, "differing_ops": 0 if comparable else None, "differing_numpy": 0}
    for layer in range(layers):
        found = jax.device_get(by_xla(stacks, jnp.int32(layer)))
        counts["values"] += sum(one.size for one in found)
        counts["differing_numpy"] += sum(map(_bits_off, found, [_by_numpy(stack, layer) for stack in stacks]))
        if comparable:
            counts["differing_ops"] += sum(map(_bits_off, found, jax.device_get(by_ops(stacks, jnp.int32(layer)))))
    return counts


def _opened(stack, layer):
    return quant.opened(quant.Layer(stack, layer))[0]


def _by_op(stack, layer):
    """The library's op by name: on a CPU, where `quant.opened` never takes it, this is the twin."""
    if isinstance(stack, quant.Int8):
        return ops.int8(stack.codes, layer, dtype=stack.dtype)
    settings = {"shape": stack.matrix_shape, "dtype": stack.dtype}
    if isinstance(stack.absmax, quant.Nested):
        return ops.nf4_nested(stack.codes, *stack.absmax, layer, **settings)
    return ops.nf4(stack.codes, stack.absmax, layer, **settings)


def _by_numpy(stack, layer: int) -> np.ndarray:
    """The formula at the head of kernels/quant.py, each product and sum rounded by itself."""
    one = jax.tree.map(lambda leaf: np.asarray(leaf)[layer], stack)
    if isinstance(one, quant.Int8):
        return one.codes.astype(one.dtype)
    absmax = one.absmax
    if isinstance(absmax, quant.Nested):
        groups = np.repeat(absmax.absmax, quant.NESTED_BLOCK)[: absmax.codes.size]
        absmax = dynamic_map(signed=True)[absmax.codes] * groups + absmax.offset
    count = one.matrix_shape[0] * one.matrix_shape[1]
    indices = np.stack([one.codes >> 4, one.codes & 15], axis=1).reshape(-1)[:count]
    values = quant.CODEBOOK[indices] * np.repeat(absmax, quant.BLOCK)[:count]
    with np.errstate(over="ignore"):
        return values.astype(one.dtype).reshape(one.matrix_shape)


def _bits_off(found: np.ndarray, expected: np.ndarray) -> int:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return max(found.size, expected.size)
    whole = np.dtype(f"u{found.dtype.itemsize}")
    return int(np.count_nonzero(found.view(whole) != np.asarray(expected).view(whole)))


# --- 3. dequantisation


def dequantise_section(report: dict, size: Sizes, key, timed_ops: bool) -> list[dict]:
    copy = report["device"]["copy_bytes_per_s"]
    rows = []
    for shape in size.linears:
        for row in dequantised(shape, size, key, timed_ops):
            rate = row["bytes"] / median(row["seconds"])
            rows.append(row | {"shape": shape, "bytes_per_s": rate, "of_copy": rate / copy})
    lines = [
        [side_by_side(row["shape"]), row["contestant"], spread(row["seconds"], 1e6), f"{row['bytes_per_s'] / 1e9:.4g}",
         f"{100 * row['of_copy']:.0f} %", str(row["copies"])]
        for row in rows
    ]  # fmt: skip
    notes = [
        f"one layer of a stack of {size.layers}, to bf16; the index of the layer is the counter of a loop on the device;",
        f"bytes are codes and scales read and matrix written, per cent those of the copy of section 1 ({copy / 1e9:.4g} GB/s);",
        "'negation' reads and writes a bf16 matrix in the same loop: what the size and the loop allow at all;",
        "'copies': where the compiler copies matrices beside opening them, the row is slower than its kernel",
    ]
    header = ["shape", "contestant", "µs a layer", "GB/s", "of a copy", "copies"]
    table("3. dequantise", report["facts"], 2, header, lines, notes)
    return rows


def dequantised(shape: tuple[int, int], size: Sizes, key, timed_ops: bool) -> list[dict]:
    """Seconds and bytes a layer of all contestants on one shape, the negation of a dense matrix first."""
    output = 2 * shape[0] * shape[1]
    count = max(2, size.written // output)
    contestants, moved = {}, {}

    def enter(name: str, form: random_models.Form, one: Callable, read: int) -> None:
        stacks = _stacks(form, shape, size.layers, count, key)
        contestants[name] = compiled(partial(_every_layer, one, size.layers), stacks)
        moved[name] = read + output

    enter("negation", "none", lambda stack, i: -jax.lax.dynamic_index_in_dim(stack, i, keepdims=False), output)
    for form in PACKED:
        read = _bytes_read(random_models.stack_shapes(form, shape, jnp.bfloat16))
        if timed_ops:
            enter(f"{form}, {OP}", form, _by_op, read)
        with xla_form():
            enter(f"{form}, XLA", form, _opened, read)
    seconds = in_turns(contestants, size)
    return [
        {"contestant": name, "bytes": moved[name], "copies": _matrix_copies(call.func, shape),
         "seconds": [value / (size.layers * count) for value in seconds[name]]}
        for name, call in contestants.items()
    ]  # fmt: skip


def _stacks(form: random_models.Form, shape: tuple[int, int], layers: int, count: int, key) -> list:
    """As many stacks as it takes to write past the cache; one loop opens a layer of each, as a decoder does of its seven."""
    shapes = random_models.stack_shapes(form, (layers, *shape), jnp.bfloat16)
    return [random_models.random_like(shapes, jax.random.fold_in(key, number)) for number in range(count)]


def _bytes_read(weight) -> int:
    """Of a weight that is opened. int8's row scales belong on the product, and nothing here reads them."""
    return quant.tree_bytes(weight.codes if isinstance(weight, quant.Int8) else weight)


def _every_layer(one: Callable, layers: int, stacks: list) -> list:
    """Opens all layers in turn, each into the place of the one before."""

    def matrices(index):
        return [one(stack, index) for stack in stacks]

    def body(state):
        return state[0] + 1, matrices(state[0])

    return jax.lax.while_loop(lambda state: state[0] < layers, body, (jnp.int32(1), matrices(jnp.int32(0))))[1]


def _matrix_copies(executable, shape: tuple[int, int]) -> int:
    return len(re.findall(rf"= bf16\[{shape[0]},{shape[1]}\]\S* copy\(", executable.as_text()))


# --- 4. a linear layer, forward and backward


def linear_section(report: dict, size: Sizes, key, timed_ops: bool) -> list[dict]:
    rows = []
    for shape in size.linears:
        contestants = linears(shape, size, key, timed_ops)
        seconds = in_turns({name: partial(_all_of, programs) for name, programs in contestants.items()}, size)
        operations = 2 * 2 * size.tokens * shape[0] * shape[1]
        for name, values in seconds.items():
            ratios = [value / dense for value, dense in zip(values, seconds["bf16"], strict=True)]
            rows.append({"shape": shape, "contestant": name, "tokens": size.tokens, "seconds": values, "ratios": ratios,
                         "ratio": median(ratios), "flops": operations / median(values),
                         "op_calls": sum(op_calls(program.func) for program in contestants[name])})  # fmt: skip
    lines = [
        [side_by_side(row["shape"]), row["contestant"], spread(row["seconds"], 1e6), f"{row['flops'] / 1e12:.4g}",
         spread(row["ratios"]), str(row["op_calls"])]
        for row in rows
    ]  # fmt: skip
    notes = [
        f"{size.tokens} tokens in bf16: forward, then the gradient with respect to x, a program and a product each; a quantised",
        "weight is opened in both, as in the two passes of a step; time over bf16's in the same round",
    ]
    header = ["shape", "contestant", "µs", "TFLOP/s", "of bf16's time", "op calls"]
    table("4. linear", report["facts"], 2, header, lines, notes)
    return rows


def linears(shape: tuple[int, int], size: Sizes, key, timed_ops: bool) -> dict[str, list[Callable]]:
    """The two programs of each contestant."""
    matrix = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    x, g, dense = random_models.random_like(
        [jax.ShapeDtypeStruct((size.tokens, width), jnp.bfloat16) for width in shape[::-1]] + [matrix], key
    )
    contestants = {"bf16": _two_passes(x, g, dense)}
    for form in PACKED:
        stack = random_models.random_like(random_models.stack_shapes(form, (2, *shape), jnp.bfloat16), key)
        layer = quant.Layer(stack, jnp.int32(1))
        if timed_ops:
            contestants[f"{form}, {OP}"] = _two_passes(x, g, layer)
        with xla_form():
            contestants[f"{form}, XLA"] = _two_passes(x, g, layer)
    return contestants


def _two_passes(x, g, weight: quant.Weight) -> list[Callable]:
    """y of a frozen layer, and the cotangent of x from that of y. One program would be free to open the weight once."""

    def forward(x, weight):
        matrix, row_scale = quant.opened(weight)
        return dora.linear(x, matrix, row_scale=row_scale)

    def backward(x, g, weight):
        return jax.vjp(lambda x: forward(x, weight), x)[1](g)[0]

    return [compiled(forward, x, weight), compiled(backward, x, g, weight)]


def _all_of(programs: list[Callable]) -> list:
    return [program() for program in programs]


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


def peak_bytes() -> int | None:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


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
