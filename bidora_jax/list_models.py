"""python -m bidora_jax.models [--family qwen3] [--batch 1] [--tokens 1024] [--memory-limit 24GB] [--json]

Models of the families that are read, and what a training step of each takes, by method and quantisation, on this machine.

Typed in are the numbers of each config.json alone. Parameters are counted over the shapes of the tree (`jax.eval_shape`),
memory by the compiler over the step compiled from shapes: nothing is downloaded, nothing is allocated. Layers are scanned, so
a large model compiles as fast as a small one. What was counted once is kept beside the compiled programs.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bidora_jax.errors import command, program
from bidora_jax.models.architectures.published import MODELS
from bidora_jax.planning.published_steps import FORMS, METHODS, counted

if TYPE_CHECKING:
    from bidora_jax.machine.memory import Memory


@dataclass(frozen=True)
class ModelsArguments:
    """List models with their parameters and the memory that a training step of each takes here."""

    family: Literal["qwen3", "qwen2", "llama", "mistral", "all"] = "qwen3"
    """Which models."""
    batch: int = 1
    """Records in a micro-batch, on each level."""
    tokens: int = 1024
    """Tokens of a record."""
    memory_limit: str = ""
    """Memory to fit, such as 24GB; empty: what the device has."""
    json: bool = False
    """Print JSON; memory is in bytes."""


def main(argv: list[str]) -> None:
    import tyro

    arguments = tyro.cli(ModelsArguments, args=argv, prog=program("models"))
    from bidora_jax.machine.memory import device_memory

    memory = device_memory(arguments.memory_limit)
    names = [name for name, (family, *_) in MODELS.items() if arguments.family in (family, "all")]
    rows = counted(names, arguments.batch, arguments.tokens)
    if arguments.json:
        print(json.dumps({"memory": memory._asdict(), "models": dict(rows)}, indent=2))
        return
    for line in as_text(rows, memory, arguments):
        print(line, flush=True)


def as_text(rows: Iterator[tuple[str, dict]], memory: "Memory", arguments: ModelsArguments) -> Iterator[str]:
    """The table, line by line."""
    import jax

    from bidora_jax.planning.footprint import gigabytes
    from bidora_jax.planning.remat_choice import FITS

    allowed = FITS * memory.bytes
    yield (f"GB at the peak of a step of {arguments.batch} x {arguments.tokens} tokens on each level: bf16, rank 8 on all linear "
           f"layers, remat layer,\nthe compiler's count for a {jax.default_backend()}; what fits is at most {gigabytes(allowed)}, "
           f"{FITS:.0%} of {gigabytes(memory.bytes)}, {memory.said}\n")  # fmt: skip
    columns = "  ".join(f"{method:^20s}" for method in METHODS)
    yield f"{'':27s} {'parameters':>10s}  {columns}"
    yield f"{'':38s}  " + "  ".join("".join(f"{form:>6s}" for form in FORMS) + "  " for _ in METHODS) + "  fits here"
    for name, row in rows:
        cells = "  ".join("".join(f"{row['steps'][m][f] / 1e9:6.1f}" for f in FORMS) + "  " for m in METHODS)
        fits = {m: next((f for f in FORMS if row["steps"][m][f] <= allowed), None) for m in METHODS}
        said = ", ".join(f"{m} {f}" for m, f in fits.items() if f) or "nothing"
        yield f"{name:27s} {row['parameters'] / 1e9:8.2f} B  {cells}  {said}"


if __name__ == "__main__":
    command(main)
