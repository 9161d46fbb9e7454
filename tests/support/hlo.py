"""What tests read in the text of a program: one function for each kind of law.

A program is what `.lower(…)` gives, in StableHLO as it was traced, or what `.compile()` gives, in HLO after XLA's passes.
The spelling of both changes with XLA, and then it changes here only.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax


def lowered(function: Callable, *arguments):
    """The function as it is traced, before any pass of XLA."""
    return jax.jit(function).lower(*arguments)


def compiled(function: Callable, *arguments):
    """The function as XLA compiles it for this machine."""
    return lowered(function, *arguments).compile()


# StableHLO


class Contraction(NamedTuple):
    """A matrix product without a batch axis, with the axis of each side that is summed over, such as "1" and "tensor<5x3xf32>"."""

    left_axis: str
    right_axis: str
    left: str
    right: str


def contractions(program) -> list[Contraction]:
    """Matrix products as they are traced: which side is read along which axis, so that a transpose shows."""
    found = r"contracting_dims = \[(\d)\] x \[(\d)\].*?\((tensor<[^>]+>), (tensor<[^>]+>)\)"
    return [Contraction(*one) for one in re.findall(found, program.as_text())]


def products(program) -> int:
    """How many products are traced: no number is computed twice, and none is left to XLA to find and drop."""
    return program.as_text().count("stablehlo.dot_general")


def bfloat16_products(program) -> int:
    """How many products of a bfloat16 array with a bfloat16 matrix are summed in float32: those with the base."""
    found = r"stablehlo\.dot_general.*xbf16>, tensor<(?:\d+x\d+)xbf16>\) -> tensor<[\dx]+xf32>"
    return len(re.findall(found, program.as_text()))


def foreign_calls(program, target: str = "") -> list[str]:
    """The lines that call `target`, or anything outside of XLA: an operand's type shows that a whole stack goes in."""
    return [line for line in program.as_text().splitlines() if re.search(rf"custom_call @{target or '.*'}\(", line)]


# HLO


def dots(program, dtype: str, *shape: int) -> int:
    """How many matrix products of this result are left: XLA has dropped those that nothing takes, and has made none twice."""
    return len(re.findall(rf"{dtype}\[{','.join(map(str, shape))}\]\S* dot\(", program.as_text()))


def widened(program) -> list[str]:
    """Names of the instructions that write a conversion to float32 out into memory, outside of any fusion."""
    text = program.as_text()
    return re.findall(r"%(\S*convert\S*) = f32\[", text[text.index("ENTRY") :])


def calls(program) -> list[str]:
    """The functions that are called: XLA's CPU backend compiles each one alone, and fuses nothing into it."""
    return re.findall(r" call\(.*to_apply=%?([\w.]+)", program.as_text())


def instructions(program, name: str, scope: str = "") -> int:
    """How many instructions of this name there are in a scope, fused ones too: what is computed once stands once."""
    return sum(line.count(f" {name}(") for line in program.as_text().splitlines() if scope in line)


def loops(program) -> list[str]:
    """The lines of the loops; each spells all arrays that go round, so that their dtypes and shapes show."""
    return [line for line in program.as_text().splitlines() if " while(" in line]


def arrays(program, dtype: str = r"\w+") -> set[tuple[int, ...]]:
    """Shapes of all arrays of a dtype: a copy that must not be made has a shape of its own."""
    found = re.findall(rf"\b{dtype}\[([\d,]+)\]", program.as_text())
    return {tuple(map(int, shape.split(","))) for shape in found}


def uses_host_memory(program) -> bool:
    """Whether an array lies in the host's memory, which is XLA's memory space 5."""
    return "S(5)" in program.as_text()


def foreign_kernels(program, target: str) -> list[str]:
    """The lines that call `target` in a compiled program: each of them runs as often as the loop around it."""
    return [line for line in program.as_text().splitlines() if f'custom_call_target="{target}"' in line]
