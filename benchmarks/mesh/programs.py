"""Compiles steps for eight devices that are not here: what one of them holds, and what it is sent.

    JAX_PLATFORMS=cpu python benchmarks/mesh/programs.py --targets h100 v5e [--shapes 8b 14b 32b] [--methods lora dora bidora]
        [--quantizations none int8 nf4] [--shard 8] [--tensor 1] [--effort -1] [--results benchmarks/mesh/results/programs.jsonl]

A line is the step of `train` on a mesh of all devices, the base cut over `--shard` × `--tensor` of them and copied to the rest, at
Qwen3's shape: remat dots, or layer where dots does not fit. It is compiled from shapes, and nothing runs. What the results have
already is not compiled again. tables.py prints the tables. A TPU's compiler takes minutes for a step on two cores; with
`--effort -1` it searches less, and takes a tenth of that. What is sent is then the same, and what is held is some percent more
(0.6B, LoRA, v5e-8: 4.08 for 3.86 GB).

    held        bytes of one device at the peak, by the compiler's count: arguments, temporaries and results
    sent        bytes that one device takes in from the others: of each gather and sum in the compiled program, its result times
                (n − 1)/n of the n devices that take part (a sum: twice), times the turns of the loop it stands in: over the layers,
                or the blocks of an embedding
"""

import argparse
import itertools
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from targets import TARGETS, Target, devices

from bidora_jax.data.settings import DataConfig
from bidora_jax.errors import command
from bidora_jax.models import quantization
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures import published
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.settings import MeshConfig, ModelConfig
from bidora_jax.models.spread import Spread, mesh_over
from bidora_jax.planning import plans, remat_choice
from bidora_jax.training.phases import first_phase
from bidora_jax.training.settings import SearchConfig

RESULTS = Path(__file__).parent / "results" / "programs.jsonl"
KEYS = ("target", "shape", "method", "quantization", "rows", "length", "dtype", "shard", "tensor")
WIDTHS = {"u8": 1, "s8": 1, "pred": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
SENDING = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
COLLECTIVE = re.compile(rf"= (?P<results>.*?) (?P<kind>{SENDING})(?P<start>-start)?\((?P<rest>.*)$")


class Sent(NamedTuple):
    """One collective of a compiled program."""

    kind: str
    bytes: int
    """Of its results."""
    turns: int
    """How often it runs in a step."""
    devices: int
    """That take part."""

    @property
    def taken_in(self) -> float:
        """Bytes that one device has from the others in a step: of a gather what it does not hold, of a sum twice that."""
        times = 2.0 if self.kind == "all-reduce" else 1.0
        return times * self.turns * self.bytes * (self.devices - 1) / self.devices


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--targets", nargs="+", default=["h100", "v5e", "v5p"], choices=TARGETS)
    add("--shapes", nargs="+", default=["8b", "14b", "32b"])
    add("--methods", nargs="+", default=["lora", "dora", "bidora"], choices=["lora", "dora", "bidora"])
    add("--quantizations", nargs="+", default=["none", "int8", "nf4"], choices=["none", "int8", "nf4"])
    add("--rows", type=int, default=4, help="that a device takes, on each level")
    add("--length", type=int, default=1024)
    add("--shard", type=int, help="devices that a copy of the base is cut over; all that --tensor leaves")
    add("--tensor", type=int, default=1, help="devices that share each product")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    add("--effort", type=float, default=0.0, help="of a TPU's compiler, from -1 to 1")
    add("--results", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    cells = itertools.product(options.targets, options.shapes, options.methods, options.quantizations)
    for target, shape, method, form in cells:
        shard = options.shard or TARGETS[target].count // options.tensor
        sizes = options.rows, options.length, options.dtype, shard, options.tensor
        job = dict(zip(KEYS, (target, shape, method, form, *sizes), strict=True))
        if any(all(line[key] == value for key, value in job.items()) for line in known):
            continue
        line = compiled(job, TARGETS[target], options.effort)
        with options.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        said = (
            f"holds {line['held'] / 1e9:.2f} GB, takes in {line['sent'] / 1e9:.2f} GB"
            if "held" in line
            else line["failed"]
        )
        print(f"{target} {shape} {method} {form}: {said}, compiled in {line['compile_seconds']:.0f} s", flush=True)


def compiled(job: dict[str, Any], target: Target, effort: float) -> dict[str, Any]:
    """The line of a cell: in remat dots, or in layer where the compiler finds no room for dots."""
    began, line = time.monotonic(), {}
    for remat in ("dots", "layer"):
        line = job | {"jax": jax.__version__, "effort": effort, "remat": remat} | step(job, target, remat, effort)
        if "held" in line and line["held"] <= remat_choice.FITS * target.memory:
            break
    return line | {"compile_seconds": time.monotonic() - began}


def step(job: dict[str, Any], target: Target, remat: str, effort: float) -> dict[str, Any]:
    """What the compiler says of one step."""
    config, length = published.shape(f"Qwen/Qwen3-{job['shape'].upper()}"), job["length"]
    there = devices(target)
    mesh = MeshConfig(len(there) // (job["shard"] * job["tensor"]), job["shard"], job["tensor"])
    plan = plans.Plan(
        ModelConfig(dtype=job["dtype"], quantization=job["quantization"], remat=remat, attention="chunked"),
        AdapterConfig(method=job["method"], rank=8, alpha=16.0),
        DataConfig(batch_size=job["rows"] * mesh.row_parts, max_length=length, buckets=1),
        search=SearchConfig(steps=1, hypergradient="exact"),
        mesh=mesh,
    )
    with mock.patch("jax.default_backend", return_value=target.platform):
        adapter = adapters.resolve(plan.adapter, config)
        base = quantization.base_shapes(plan.model, config, jnp.dtype(job["dtype"]))
        problem = remat_choice.synthetic(config, plan.model, adapter, base, plan.data, length)
        over = mesh_over(there, mesh.replica, mesh.shard, mesh.tensor)
        problem = problem if len(there) == 1 else replace(problem, spread=Spread(over, problem.base))
        phase, start = first_phase(job["method"], problem, plan.search, plan.inner, plan.outer)
        program, longest = remat_choice.largest(phase)
        lowered = program.lower(start.state, longest)
    operations = plans.arithmetic(config, replace(plan, model=replace(plan.model, remat=remat))) / len(there)
    try:
        made = lowered.compile({"exec_time_optimization_effort": effort} if effort else None)
    except jax.errors.JaxRuntimeError as error:
        return {"failed": str(error).splitlines()[0], "operations": operations}
    counted, found = made.memory_analysis(), list(sent(made.as_text(), config, target.platform))
    assert counted is not None
    return {
        "arguments": counted.argument_size_in_bytes,
        "temporaries": counted.temp_size_in_bytes,
        "held": counted.argument_size_in_bytes
        + counted.temp_size_in_bytes
        + counted.output_size_in_bytes
        - counted.alias_size_in_bytes,
        "operations": operations,
        "sent": sum(one.taken_in for one in found),
        "gathers": sum(one.turns for one in found if one.kind == "all-gather"),
        "sums": sum(one.turns for one in found if one.kind == "all-reduce"),
        "others": sorted({one.kind for one in found} - {"all-gather", "all-reduce"}),
    }


def sent(text: str, config: DecoderConfig, platform: str) -> Iterator[Sent]:
    """The collectives of a compiled program. A TPU's compiler writes one several times, between pieces of the products that it runs
    beside: those have one channel."""
    seen: set[str] = set()
    for line in text.splitlines():
        if (found := COLLECTIVE.search(line)) is None:
            continue
        channel = re.search(r"channel_id=(\d+)", found["rest"]) if platform == "tpu" else None
        if channel is not None:
            if channel[1] in seen:
                continue
            seen.add(channel[1])
        results = found["results"]
        if found["start"] and found["kind"] == "all-gather":  # (operands, results)
            results = results[results.index(")") :] if results.startswith("((") else results[results.index("]") :]
        arrays = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", results)
        shapes = [[int(extent) for extent in extents.split(",") if extent] for _, extents in arrays]
        size = sum(WIDTHS[kind] * prod(shape) for (kind, _), shape in zip(arrays, shapes, strict=True))
        turns = 1
        if "while/body" in line:
            turns = config.num_layers if "_proj/" in line else -(-config.vocab_size // shapes[0][0])
        yield Sent(found["kind"], size, turns, _group(found["rest"]))


def _group(attributes: str) -> int:
    """How many devices take part, by the three ways in which XLA writes them."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(found[1])
    found = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes)
    if found is None:
        raise ValueError(f"no groups of devices in {attributes[:200]}")
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
    return prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", found[2]))


if __name__ == "__main__":
    command(main)
