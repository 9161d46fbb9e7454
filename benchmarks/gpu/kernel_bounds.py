"""What the kernels of a compiled GPU program compute and move, read from XLA's text of the program.

    least time of a kernel = calls · max(bytes / bandwidth, operations / rate)

Bytes count each operand and each result once; where a kernel reads or writes one slice of a stack, they count the slice.
Operations are those of its products; cuDNN's attention counts the half of the scores that a causal mask leaves. A kernel in a loop
counts once for each turn of the loop. Launches and caches do not count, and every kernel is assumed to reach the card's rates: this
is a bound to compare programs by, not a time.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
          "s64": 8, "u64": 8, "f64": 8, "s4": 0.5, "u4": 0.5, "token": 0}  # fmt: skip
LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)(?= [a-z])|\S+) ([a-z\-]+)\((.*)$")
"""(root, name, shape, code, operands and all that follows) of an instruction"""
NO_KERNEL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "fusion-done", "copy-done",
             "partition-id"}  # fmt: skip
VIEWS = {"bitcast", "bitcast-convert", "reshape"}
ATTENTION, OPS = "__cudnn$fmhaSoftmax", 'custom_call_target="bidora_'


class Kernel(NamedTuple):
    calls: int
    bytes: float
    """Of one call."""
    operations: float
    kind: str
    """product, attention, copy or other"""
    source: str
    """Where the program had it from."""

    def seconds(self, bandwidth: float, rate: float) -> float:
        """The least time of all calls."""
        return self.calls * max(self.bytes / bandwidth, self.operations / rate)


class Instruction(NamedTuple):
    shape: str
    code: str
    operands: list[str]
    rest: str
    """Attributes, and what stands in the place of operands of a parameter: its number."""
    root: bool

    def called(self, name: str) -> str:
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""


Computation = dict[str, Instruction]


def kernels(text: str) -> list[Kernel]:
    """All kernels of a compiled program's text."""
    computations, entry = _parsed(text)
    return list(_walk(computations, entry, 1))


def _parsed(text: str) -> tuple[dict[str, Computation], str]:
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if start := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            current = computations[start[2]] = {}
            entry = start[2] if start[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := LINE.match(line)):
            inside = _balanced(found[5])
            operands = re.findall(r"%([\w.\-]+)", inside)
            rest = found[5] if operands else f"{inside} {found[5]}"
            current[found[2]] = Instruction(found[3], found[4], operands, rest, bool(found[1]))
    return computations, entry


def _balanced(text: str) -> str:
    """Up to the bracket that closes the one before `text`."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:place]
    return text


def _walk(computations: dict[str, Computation], name: str, calls: int) -> Iterator[Kernel]:
    computation = computations[name]
    for one in computation.values():
        if one.code == "while":
            turns = re.search(r'known_trip_count":\{"n":"(\d+)"', one.rest)
            if turns is None:
                raise ValueError(f"a loop of an unknown number of turns: {one.rest[:200]}")
            yield from _walk(computations, one.called("body"), calls * int(turns[1]))
        elif one.code == "conditional":  # the longest branch
            branches = re.findall(r"%([\w.\-]+)", re.search(r"branch_computations=\{(.*?)\}", one.rest)[1])
            yield from max((list(_walk(computations, branch, calls)) for branch in branches), key=len)
        elif one.code in ("call", "async-start"):
            yield from _walk(computations, one.called("to_apply") or one.called("calls"), calls)
        elif one.code not in NO_KERNEL:
            yield _kernel(one, computation, computations, calls)


def _kernel(one: Instruction, computation: Computation, computations: dict[str, Computation], calls: int) -> Kernel:
    source = re.search(r'op_name="([^"]*)"', one.rest)
    operations, kind = 0.0, "other"
    if one.code in ("fusion", "fusion-start"):
        moved = _fusion_bytes(computations[one.called("calls")], computations)
        operations = _products(computations[one.called("calls")], computations)
    elif one.code in ("dynamic-slice", "copy-start"):
        moved = 2 * _bytes(one.shape if one.code == "dynamic-slice" else computation[one.operands[0]].shape)
    elif one.code == "dynamic-update-slice":
        moved = 2 * _bytes(computation[one.operands[1]].shape)
    else:
        read = sum(_bytes(computation[name].shape) for name in one.operands if name in computation)
        if OPS in one.rest:  # they are given whole stacks, and read one layer
            read /= _extents(computation[one.operands[0]].shape)[0]
        moved = read + _bytes(one.shape)
        operations = _attention(one, computation) + _products({"": one}, computations, computation)
    if operations:
        kind = "attention" if ATTENTION in one.rest else "product"
    elif one.code in ("dynamic-slice", "copy", "copy-start", "fusion-start"):
        kind = "copy"
    return Kernel(calls, moved, operations, kind, source[1] if source else one.code)


def _attention(one: Instruction, computation: Computation) -> float:
    if ATTENTION not in one.rest:
        return 0.0
    batch, heads, queries, size = _extents(computation[one.operands[0]].shape)
    keys = _extents(computation[one.operands[1]].shape)[2]
    products = 5 if "Backward" in one.rest else 2
    return products * 2 * batch * heads * queries * keys * size / 2


def _products(
    computation: Computation, computations: dict[str, Computation], named: Computation | None = None
) -> float:
    """Operations of all products in a computation and those it calls. `named` has the operands, where they are elsewhere."""
    found = 0.0
    for one in computation.values():
        if one.code == "dot":
            left = _extents((named or computation)[one.operands[0]].shape)
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)[1]
            found += 2 * prod(_extents(one.shape)) * prod(left[int(axis)] for axis in contracted.split(",") if axis)
        elif (inner := one.called("calls")) in computations:
            found += _products(computations[inner], computations)
    return found


def _fusion_bytes(fused: Computation, computations: dict[str, Computation]) -> float:
    readers: dict[str, list[tuple[str, Instruction]]] = defaultdict(list)
    for name, one in fused.items():
        for operand in one.operands:
            readers[operand].append((name, one))

    def read(name: str) -> float:
        """What of a value is read: all, unless only slices of it are."""
        whole, parts = _bytes(fused[name].shape), 0.0
        for reader, one in readers[name]:
            if one.code in ("dynamic-slice", "gather") and one.operands[0] == name:
                parts += _bytes(one.shape)
            elif one.code in VIEWS:
                parts += read(reader)
            elif one.code == "fusion":
                parts += _read_inside(computations[one.called("calls")], one.operands.index(name))
            elif not (one.code == "dynamic-update-slice" and one.operands[0] == name):
                return whole
        return min(parts, whole)

    def written(name: str) -> float:
        one = fused[name]
        if one.code == "tuple":
            return sum(map(written, one.operands))
        if one.code == "dynamic-update-slice":
            return _bytes(fused[one.operands[1]].shape)
        through = one.code in VIEWS and fused[one.operands[0]].code == "dynamic-update-slice"
        return written(one.operands[0]) if through else _bytes(one.shape)

    parameters = [name for name, one in fused.items() if one.code == "parameter"]
    root = next(name for name, one in fused.items() if one.root)
    return sum(map(read, parameters)) + written(root)


def _read_inside(fused: Computation, number: int) -> float:
    name = next(name for name, one in fused.items() if one.code == "parameter" and one.rest.startswith(f"{number} "))
    readers = [one for one in fused.values() if name in one.operands]
    sliced = all(one.code == "dynamic-slice" and one.operands[0] == name for one in readers)
    return sum(_bytes(one.shape) for one in readers) if sliced else _bytes(fused[name].shape)


def _extents(shape: str) -> list[int]:
    return [int(extent) for extent in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if extent]


def _bytes(shape: str) -> float:
    """Of an array, or of all arrays of a tuple."""
    arrays = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
    return sum(WIDTHS[kind] * prod(int(extent) for extent in extents.split(",") if extent) for kind, extents in arrays)
