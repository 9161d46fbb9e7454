"""python -m bidora_jax.analyze --run DIR [--output DIR] [--json]

How far a run moved the magnitude and the direction of every layer, checkpoint by checkpoint, and the line through the two:

    ΔM_t = mean over rows of |m_t − m_0|      ΔD_t = mean over rows of 1 − cos(V_t, W0)      ΔM ≈ k·ΔD + c, least squares

as in the DoRA paper (arXiv:2402.09353, section 3.2) and in BiDoRA's, where full fine-tuning has a negative slope k and LoRA a
positive one. A row belongs to one output; for LoRA the magnitude is the row norm of W'. The command writes changes.csv and
changes.png.

A run keeps its last checkpoints only, --keep of them (2): train a run that is to be analysed with, say, --keep 50
--save-every 20. The adapter that the run ended with is always there. The run's changes.jsonl holds the same numbers at every
evaluation; the report draws them over the steps.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from bidora_jax.errors import InputError, command, program
from bidora_jax.runs.analysis import analyze, show, write


@dataclass(frozen=True)
class AnalyzeArguments:
    """Print how far each layer's magnitude and direction moved, with their slope and correlation; write a CSV and a plot."""

    run: str
    """Folder of a run."""
    output: str = ""
    """Folder to write changes.csv and changes.png to; analysis/ of the run without it."""
    json: bool = False
    """Print all numbers as JSON instead of the table."""


def main(argv: list[str]) -> None:
    import tyro

    arguments = tyro.cli(AnalyzeArguments, args=argv, prog=program("analyze"))
    run = Path(arguments.run)
    output = Path(arguments.output) if arguments.output else run / "analysis"
    if output.exists() and not output.is_dir():
        raise InputError(f"cannot write to {output}: it is a file; name a folder with --output")
    found = analyze(run)
    write(found, output)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    show(found)
    print(f"written to {output / 'changes.csv'} and {output / 'changes.png'}")


if __name__ == "__main__":
    command(main)
