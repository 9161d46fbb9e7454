"""Sections 1 to 4 of quant.py: the device, and the dequantisation ops alone and in a linear layer."""

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

from bidora_jax.kernels import dora, quantized
from bidora_jax.kernels.cuda import ops
from bidora_jax.kernels.dynamic_8bit import dynamic_map

sys.path.insert(0, str(Path(__file__).parents[1]))  # measuring.py, random_models.py
import random_models
from measuring import (
    Sizes,
    compiled,
    facts,
    has_cuda,
    in_turns,
    op_calls,
    ready,
    save,
    side_by_side,
    sizes,
    spread,
    stamp,
    table,
    xla_form,
)

# An odd number of weights, with blocks that cross rows; bytes that end between two words; three nested blocks, the last
# short; and one of the real shapes.
CORRECTNESS = ((7, 13), (2, 62), (31, 1216), (1024, 4096))
PACKED = random_models.FORMS[1:]
OP = "CUDA op"


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
    return quantized.opened(quantized.Layer(stack, layer))[0]


def _by_op(stack, layer):
    """The library's op by name: on a CPU, where `quantized.opened` never takes it, this is the twin."""
    if isinstance(stack, quantized.Int8):
        return ops.int8(stack.codes, layer, dtype=stack.dtype)
    settings = {"shape": stack.matrix_shape, "dtype": stack.dtype}
    if isinstance(stack.absmax, quantized.Nested):
        return ops.nf4_nested(stack.codes, *stack.absmax, layer, **settings)
    return ops.nf4(stack.codes, stack.absmax, layer, **settings)


def _by_numpy(stack, layer: int) -> np.ndarray:
    """The formula at the head of kernels/quantized.py, each product and sum rounded by itself."""
    one = jax.tree.map(lambda leaf: np.asarray(leaf)[layer], stack)
    if isinstance(one, quantized.Int8):
        return one.codes.astype(one.dtype)
    absmax = one.absmax
    if isinstance(absmax, quantized.Nested):
        groups = np.repeat(absmax.absmax, quantized.NESTED_BLOCK)[: absmax.codes.size]
        absmax = dynamic_map(signed=True)[absmax.codes] * groups + absmax.offset
    count = one.matrix_shape[0] * one.matrix_shape[1]
    indices = np.stack([one.codes >> 4, one.codes & 15], axis=1).reshape(-1)[:count]
    values = quantized.CODEBOOK[indices] * np.repeat(absmax, quantized.BLOCK)[:count]
    with np.errstate(over="ignore"):
        return values.astype(one.dtype).reshape(one.matrix_shape)


def _bits_off(found: np.ndarray, expected: np.ndarray) -> int:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return max(found.size, expected.size)
    whole = np.dtype(f"u{found.dtype.itemsize}")
    return int(np.count_nonzero(found.view(whole) != np.asarray(expected).view(whole)))


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
    return quantized.tree_bytes(weight.codes if isinstance(weight, quantized.Int8) else weight)


def _every_layer(one: Callable, layers: int, stacks: list) -> list:
    """Opens all layers in turn, each into the place of the one before."""

    def matrices(index):
        return [one(stack, index) for stack in stacks]

    def body(state):
        return state[0] + 1, matrices(state[0])

    return jax.lax.while_loop(lambda state: state[0] < layers, body, (jnp.int32(1), matrices(jnp.int32(0))))[1]


def _matrix_copies(executable, shape: tuple[int, int]) -> int:
    return len(re.findall(rf"= bf16\[{shape[0]},{shape[1]}\]\S* copy\(", executable.as_text()))


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
        layer = quantized.Layer(stack, jnp.int32(1))
        if timed_ops:
            contestants[f"{form}, {OP}"] = _two_passes(x, g, layer)
        with xla_form():
            contestants[f"{form}, XLA"] = _two_passes(x, g, layer)
    return contestants


def _two_passes(x, g, weight: quantized.Weight) -> list[Callable]:
    """y of a frozen layer, and the cotangent of x from that of y. One program would be free to open the weight once."""

    def forward(x, weight):
        matrix, row_scale = quantized.opened(weight)
        return dora.frozen(x, matrix, row_scale)

    def backward(x, g, weight):
        return jax.vjp(lambda x: forward(x, weight), x)[1](g)[0]

    return [compiled(forward, x, weight), compiled(backward, x, g, weight)]


def _all_of(programs: list[Callable]) -> list:
    return [program() for program in programs]
