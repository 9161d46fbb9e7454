"""python -m bidora_jax.models [--family qwen3] [--batch 1] [--tokens 1024] [--memory-limit 24GB] [--json]

Models of the families that are read, and what a training step of each takes, by method and quantisation, on this machine.

Only the numbers of each config.json are typed in. Parameters are counted over the shapes of the tree, and the compiler counted
the memory of a step that it compiled from shapes: nothing is downloaded, nothing is allocated. The counts of this table at its
defaults ship with the package, for a CPU. Others take some seconds a step, with a line of progress, and are kept beside the
compiled programs for the next call.
"""

import json
from dataclasses import dataclass
from typing import Literal

from bidora_jax.errors import command, program
from bidora_jax.models.architectures.published import names
from bidora_jax.planning import recommendation
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
    models, rate = names(arguments.family), recommendation.rate()
    rows = counted(models, arguments.batch, arguments.tokens)
    if arguments.json:
        found = recommendation.choose(models, memory, rate)
        recommended = None if found is None else found._asdict()
        print(json.dumps({"memory": memory._asdict(), "models": dict(rows), "recommended": recommended}, indent=2))
        return
    seconds = {name: recommendation.step_seconds(name, rate) for name in models}
    for line in as_text(rows, memory, arguments.batch, arguments.tokens, seconds):
        print(line, flush=True)
    print(f"\n{recommendation.in_words(recommendation.choose(models, memory, rate), models)}")


if __name__ == "__main__":
    command(main)
