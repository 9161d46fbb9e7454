"""The tables of what programs.py compiled, and by them how a step grows from one machine to many.

    JAX_PLATFORMS=cpu python benchmarks/mesh/tables.py > benchmarks/mesh/tables.md

`products` and `wire` are the least times of a step's products and of what one device takes in, at the makers' peak rates; `bound`
is the longer one, as if all of the shorter passed beside it. Nothing of it was run.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from programs import RESULTS
from targets import TARGETS, Target

from bidora_jax.errors import command
from bidora_jax.models.architectures import published
from bidora_jax.planning.remat_choice import FITS

Line = dict[str, Any]
NODES = 400e9
"""Bytes a second that the eight GPUs of a machine take in together from other machines."""
RANK = 8
COLUMNS = (
    "step",
    "remat",
    "base, adapter, optimiser",
    "temporaries",
    "held",
    "of the memory",
    "takes in",
    "products",
    "wire",
    "bound",
)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    lines = [json.loads(line) for line in options.results.read_text(encoding="utf-8").splitlines()]
    print(
        "# Steps compiled for devices that are not here\n\nMade by `benchmarks/mesh/tables.py`, which says what a column is. (*): "
        "the compiler searched less (`programs.py --effort -1`); it holds some percent more than with all its passes.\n"
    )
    print("\n".join(tables(sorted(lines, key=_place))))


def _place(line: Line) -> tuple[float, int, int, int]:
    """Where a line stands: by size, method, the bits of the base, and its mesh."""
    methods, forms = ("lora", "dora", "bidora"), ("none", "int8", "nf4")
    size = float(line["shape"].rstrip("b"))
    return size, methods.index(line["method"]), forms.index(line["quantization"]), line["tensor"]


def tables(lines: Sequence[Line]) -> Iterator[str]:
    """All tables, a target after the other."""
    for name, target in TARGETS.items():
        own = [line for line in lines if line["target"] == name]
        if not own:
            continue
        first = own[0]
        yield f"### {target.title}, {first['rows']} x {first['length']:,} tokens on each device and level\n"
        yield f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"
        yield from (row(line, target) for line in own)
        yield ""
    if any(line["target"] == "h100" for line in lines):
        cut = [line for line in lines if line["target"] == "h100" and "held" in line and line["shard"] == 8]
        yield from growth(cut, TARGETS["h100"])


def row(line: Line, target: Target) -> str:
    """One step."""
    name = f"{line['shape']} {line['method']} {line['quantization']}" + (" (*)" if line.get("effort") else "")
    devices = TARGETS[line["target"]].count
    if line["shard"] < devices:
        name += (
            f", replica {devices // line['shard'] // line['tensor']}, shard {line['shard']}, tensor {line['tensor']}"
        )
    if "held" not in line:
        return (
            f"| {name} | {line['remat']} | "
            + " | ".join(["does not compile: " + line["failed"], *[""] * (len(COLUMNS) - 3)])
            + " |"
        )
    products, wire = times(line, target)
    cells = [
        name, line["remat"], f"{line['arguments'] / 1e9:.2f} GB", f"{line['temporaries'] / 1e9:.2f} GB",
        f"{line['held'] / 1e9:.2f} GB", share(line, target), f"{line['sent'] / 1e9:.2f} GB", f"{1e3 * products:.0f} ms",
        f"{1e3 * wire:.0f} ms", "products" if products >= wire else "wire",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def share(line: Line, target: Target) -> str:
    part = line["held"] / target.memory
    return f"{part:.0%}" + (", too much" if part > FITS else "")


def times(line: Line, target: Target) -> tuple[float, float]:
    """Seconds of the products, and of what is taken in."""
    return line["operations"] / target.product_rate, line["sent"] / target.wire


def growth(lines: Sequence[Line], target: Target) -> Iterator[str]:
    """Steps on more machines: the base is cut in each and copied to all, so that sums of the adapter's gradients alone cross."""
    yield "### From 8 to 1,024 H100s, `mesh.shard` 8 and `mesh.replica` the rest\n"
    yield (
        "A device has as many tokens as above, so a step has more rows the more devices there are. Crossing are the sums of the "
        f"adapter's float32 gradients, at rank {RANK}; a machine takes in {NODES / 1e9:.0f} GB/s. `over one` is the rate of all "
        "devices over the number of them times that of one, were the base whole on it.\n"
    )
    sizes = (8, 64, 1024)
    yield "| step | " + " | ".join(f"{size:,}: step, over one" for size in sizes) + " |"
    yield "|" + " --- |" * (1 + len(sizes))
    for line in lines:
        products, wire = times(line, target)
        cells = []
        for size in sizes:
            machines = size // 8
            crossing = 2 * adapter_bytes(line) * (machines - 1) / machines / NODES
            least = max(products, wire) + crossing
            cells.append(f"{1e3 * least:.0f} ms, {products / least:.0%}")
        yield f"| {line['shape']} {line['method']} {line['quantization']} | {' | '.join(cells)} |"


def adapter_bytes(line: Line) -> float:
    """Of the gradients that a step sums: of A and B, and of m where it is trained."""
    config = published.shape(f"Qwen/Qwen3-{line['shape'].upper()}")
    pairs = sum(RANK * sum(linear.shape) for linear in config.linears)
    magnitudes = sum(linear.shape[0] for linear in config.linears) if line["method"] != "lora" else 0
    # An exact step sums the direction's gradient on both levels.
    return 4.0 * config.num_layers * (pairs * (2 if line["method"] == "bidora" else 1) + magnitudes)


if __name__ == "__main__":
    command(main)
