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
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidora_jax.config import Config
from bidora_jax.errors import InputError, command, program

if TYPE_CHECKING:
    from bidora_jax.models.changes import Change
    from bidora_jax.training.trajectory import Point

COLUMNS = ("checkpoint", "phase", "step", "module", "layer", "magnitude_change", "direction_change", "relative_change")
FINAL = "adapter"


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


def analyze(run: Path) -> dict[str, Any]:
    """{'points': a dictionary for each checkpoint, module and layer, 'fits': slope, intercept and correlation by module}."""
    from bidora_jax.export import run_config
    from bidora_jax.models import adapters, hf
    from bidora_jax.models.changes import changes

    config = run_config(str(run))
    _require_something(run)
    folder = hf.resolve_folder(config.model.path)
    decoder_config = hf.read_config(folder)
    base = hf.load(config.model, folder, decoder_config)
    found: list[dict[str, Any]] = []
    before: list[Change] = []
    prepared: dict[Any, Any] = {}
    for name, adapter, point in _points(run, config, decoder_config):
        if adapter not in prepared:  # the final adapter of a start that is not zero has twice the rank
            prepared = {adapter: adapters.prepare_base(base, adapter)}
        now = changes(adapter, prepared[adapter], point.direction, point.magnitude)
        if name == FINAL and _same(now, before):  # it is the last checkpoint's
            continue
        before = now
        for change in now:
            found.append(
                {"checkpoint": name, "phase": point.phase, "step": point.step, "module": change.module, "layer": change.layer,
                 "magnitude": change.magnitude, "direction": change.direction, "relative": change.relative}
            )  # fmt: skip
    modules = dict.fromkeys(point["module"] for point in found)
    fits = {module: fit([point for point in found if point["module"] == module]) for module in modules}
    return {"points": found, "fits": fits}


def _same(now: "Sequence[Change]", before: "Sequence[Change]") -> bool:
    """Whether two lists hold the same changes, but for rounding."""
    pairs = list(zip(now, before, strict=False))
    close = [
        math.isclose(getattr(a, kind), getattr(b, kind), rel_tol=1e-4)
        for a, b in pairs
        for kind in ("magnitude", "direction")
    ]
    return len(now) == len(before) and all(close)


def fit(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Slope and intercept of ΔM over ΔD by least squares, and their correlation (Pearson), over layers and checkpoints.

    None where they are not defined: fewer than two points, or no spread.
    """
    import numpy as np

    x, y = (np.array([point[kind] for point in points], np.float64) for kind in ("direction", "magnitude"))
    dx, dy = x - x.mean(), y - y.mean()
    if not dx.any():
        return {"slope": None, "intercept": None, "correlation": None, "points": len(points)}
    slope = float(dx @ dy / (dx @ dx))
    correlation = float(dx @ dy / np.sqrt((dx @ dx) * (dy @ dy))) if dy.any() else None
    return {
        "slope": slope,
        "intercept": float(y.mean() - slope * x.mean()),
        "correlation": correlation,
        "points": len(points),
    }


def _require_something(run: Path) -> None:
    checkpoints = run / "checkpoints"
    if not (run / "adapter").is_dir() and not (checkpoints.is_dir() and any(checkpoints.iterdir())):
        raise InputError(
            f"{run} has neither checkpoints nor adapter/ yet: nothing has been saved; wait for the first one (save_every) "
            f"or go on with train --config {run / 'config.json'} --resume"
        )


def _points(run: Path, config: Config, decoder_config: Any) -> "Iterator[tuple[str, Any, Point]]":
    """(name, adapter, point) of each checkpoint that is kept, and of the final adapter."""
    from bidora_jax.models import adapters, peft
    from bidora_jax.training.checkpoint import Checkpoints
    from bidora_jax.training.trajectory import Point, points

    adapter = adapters.resolve(config.adapter, decoder_config, strict=not config.adapter.path)
    ended: tuple[str, int | None] = ("", None)
    with Checkpoints(run / "checkpoints", None) as checkpoints:
        for point in points(checkpoints):
            chose = point.phase == "search" and point.best_step
            ended = (point.phase, point.best_step if chose else point.step)
            yield f"{point.phase} {point.step}", adapter, point
    if (run / "adapter").is_dir():
        adapter, direction, magnitude = peft.load_adapter(run / "adapter", decoder_config)
        yield FINAL, adapter, Point(*ended, None, direction, magnitude)


def _write(found: dict[str, Any], output: Path) -> None:
    from bidora_jax.reporting import charts, ink

    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows(point.values() for point in found["points"])
    figure = charts.scatter(found["points"], found["fits"])
    output.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("changes.csv", text.getvalue().encode()),
        ("changes.png", ink.png(figure, "Change of magnitude over change of direction")),
    ):
        temporary = output / f".{name}.tmp"
        temporary.write_bytes(content)
        temporary.replace(output / name)


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
