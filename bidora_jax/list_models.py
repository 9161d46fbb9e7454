"""python -m bidora_jax.models [--family qwen3] [--batch 1] [--tokens 1024] [--memory-limit 24GB] [--json]

Models of the families that are read, and what a training step of each takes, by method and quantisation, on this machine.

Only the numbers of each config.json are typed in. Parameters are counted over the shapes of the tree (`jax.eval_shape`), and
the compiler counts the memory of a step that it compiles from shapes: nothing is downloaded, nothing is allocated. Layers are
scanned, so a large model compiles as fast as a small one. A count is kept beside the compiled programs for the next call.
"""

import json
from dataclasses import dataclass
from typing import Literal

from bidora_jax.errors import command, program
from bidora_jax.models.architectures.published import names
from bidora_jax.planning.published_steps import as_text, counted


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
    rows = counted(names(arguments.family), arguments.batch, arguments.tokens)
    if arguments.json:
        print(json.dumps({"memory": memory._asdict(), "models": dict(rows)}, indent=2))
        return
    for line in as_text(rows, memory, arguments.batch, arguments.tokens):
        print(line, flush=True)


if __name__ == "__main__":
    command(main)
