"""python -m bidora_jax.info [--json] [--recommend]

The versions that are installed, the devices and the machine: a bug report, a benchmark and a question need them.
--recommend adds the largest Qwen3 that can be trained here and how: the one that `models` recommends below its table.
"""

import json
from dataclasses import dataclass

from bidora_jax.errors import command, program
from bidora_jax.machine.facts import Section, as_text, devices, host, software
from bidora_jax.planning.recommendation import recommended


@dataclass(frozen=True)
class InfoArguments:
    """Print the versions, the devices and the machine."""

    json: bool = False
    """Print JSON; memory is in bytes."""
    recommend: bool = False
    """Count what fits, and print the command line of the largest Qwen3 that can be trained here."""


def main(argv: list[str]) -> None:
    import tyro

    arguments = tyro.cli(InfoArguments, args=argv, prog=program("info"))
    facts = gather()
    if arguments.recommend:
        facts["recommended"] = recommended()
    print(json.dumps(facts, indent=2) if arguments.json else as_text(facts))


def gather() -> dict[str, Section]:
    """All facts by section. What cannot be found out is None."""
    return {"software": software(), "devices": devices(), "cuda ops": cuda_ops(), "host": host()}


def cuda_ops() -> Section:
    from bidora_jax.kernels.cuda import ops

    return {"dequantisation": ops.status()}


if __name__ == "__main__":
    command(main)
