"""python -m bidora_jax.info [--json] [--recommend]

What this machine and this installation are: the part of a report, of a benchmark or of a question that is always missing.
--recommend adds which Qwen3 can be trained here and how, by the count that --auto goes by; it compiles for a minute the first
time.
"""

import json
from dataclasses import dataclass

from bidora_jax.errors import command, program
from bidora_jax.machine.facts import Section, Value, devices, host, software
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


def as_text(facts: dict[str, Section]) -> str:
    """Sections of aligned names and values."""
    width = max(len(name) for section in facts.values() for name in section)
    blocks = [
        "\n".join([title, *(f"  {name:<{width}}  {_spelt(name, value)}" for name, value in section.items())])
        for title, section in facts.items()
    ]
    return "\n\n".join(blocks)


def _spelt(name: str, value: Value) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, list):
        return " ".join(value) or "none"
    return f"{value / 2**30:.1f} GiB" if isinstance(value, int) and "memory" in name else str(value)


def cuda_ops() -> Section:
    from bidora_jax.kernels.cuda import ops

    return {"dequantisation": ops.status()}


if __name__ == "__main__":
    command(main)
