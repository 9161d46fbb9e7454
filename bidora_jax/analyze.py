"""python -m bidora_jax.analyze --run DIR [--output DIR] [--json]

How a run moved the magnitude and the direction of every layer, checkpoint by checkpoint, and how the two go together:

    ΔM_t = mean over rows of |m_t − m_0|      ΔD_t = mean over rows of 1 − cos(V_t, W0)      ΔM ≈ k·ΔD + c, least squares

as in the DoRA paper (arXiv:2402.09353, section 3.2) and in BiDoRA's, where full fine-tuning has a negative slope k and LoRA a
positive one. One row an output; of LoRA the magnitude is the row norm of W'. Written are changes.csv and changes.png.

A run keeps its last checkpoints only, --keep of them (2): a run to be analysed is trained with, say, --keep 50 --save-every 20.
The adapter that the run ended with is always there. What changes.jsonl of the run holds are the same numbers at every
evaluation, which the report draws over the steps.
"""

import csv
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidora_jax.errors import InputError, command, program
from bidora_jax.machine.files import write_whole
from bidora_jax.runs.analysis import analyze

COLUMNS = ("checkpoint", "phase", "step", "module", "layer", "magnitude_change", "direction_change", "relative_change")


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
    _write(found, output)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    _show(found)
    print(f"written to {output / 'changes.csv'} and {output / 'changes.png'}")


def _write(found: dict[str, Any], output: Path) -> None:
    from bidora_jax.reporting import charts, style

    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows(point.values() for point in found["points"])
    figure = charts.scatter(found["points"], found["fits"])
    output.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("changes.csv", text.getvalue().encode()),
        ("changes.png", style.png(figure, "Change of magnitude over change of direction")),
    ):
        write_whole(output / name, content)


def _show(found: dict[str, Any]) -> None:
    """A row a module: the last checkpoint's changes over all layers, and the fit over all checkpoints."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    points = found["points"]
    last = points[-1]["checkpoint"]
    table = Table(
        box=box.ROUNDED, title=f"{len({point['checkpoint'] for point in points})} checkpoints; changes at {last}"
    )
    for name in ("module", "ΔM", "relative", "ΔD", "slope k", "correlation"):
        table.add_column(name, justify="left" if name == "module" else "right")
    for module, line in found["fits"].items():
        at = [point for point in points if point["module"] == module and point["checkpoint"] == last]
        means = [sum(point[kind] for point in at) / len(at) for kind in ("magnitude", "relative", "direction")]
        table.add_row(
            module,
            f"{means[0]:.4g}",
            f"{means[1]:.2%}",
            f"{means[2]:.4g}",
            *map(_number, (line["slope"], line["correlation"])),
        )
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    command(main)
