"""What the GPU benchmarks ask of a device: its facts, the time of a call, its peak memory; and the tables they print."""

import datetime
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import jax

from bidora_jax.errors import InputError, RunError
from bidora_jax.kernels import quantized
from bidora_jax.kernels.cuda import build, ops

# (O, I) of q_proj and o_proj, of k_proj and v_proj, of gate_proj and up_proj, of down_proj.
LINEARS = ((4096, 4096), (1024, 4096), (12_288, 4096), (4096, 12_288))


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


def save(report: dict, file: Path) -> None:
    """Whole or not at all: the process may be ended at any time."""
    fresh = file.with_suffix(".part")
    fresh.write_text(json.dumps(report))
    os.replace(fresh, file)


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
    fitting = limit // max(1, quantized.tree_bytes(result))
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


def peak_bytes() -> int | None:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
