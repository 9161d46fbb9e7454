"""How far every layer of a run has moved, at each checkpoint, in magnitude and direction."""

import csv
import io
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidora_jax.config import Config
from bidora_jax.errors import InputError
from bidora_jax.machine.files import write_whole

if TYPE_CHECKING:
    from bidora_jax.models.adapters.drift import Drift
    from bidora_jax.training.saved_adapters import Point


FINAL = "adapter"
COLUMNS = ("checkpoint", "phase", "step", "module", "layer", "magnitude_change", "direction_change", "relative_change")


def analyze(run: Path) -> dict[str, Any]:
    """{'points': a dictionary for each checkpoint, module and layer, 'fits': slope, intercept and correlation by module}."""
    from bidora_jax.models.adapters import initial
    from bidora_jax.models.adapters.drift import drift
    from bidora_jax.models.formats import hf, hf_config
    from bidora_jax.runs import labelling
    from bidora_jax.runs.folder import run_config

    config = run_config(str(run))
    _refuse_empty(run)
    folder = hf_config.resolve_folder(config.model.path)
    architecture = hf_config.read_config(folder)
    if labelling.is_asked(config, architecture):
        architecture = architecture.without_output()
    base = hf.load(config.model, folder, architecture)
    found: list[dict[str, Any]] = []
    before: list[Drift] = []
    prepared: dict[Any, Any] = {}
    for name, adapter, point in _points(run, config, architecture):
        if adapter not in prepared:  # the final adapter of a start that is not zero has twice the rank
            prepared = {adapter: initial.prepare_base(base, adapter)}
        now = drift(adapter, prepared[adapter], point.direction, point.magnitude)
        if name == FINAL and _same(now, before):  # the last checkpoint holds the same adapter
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


def _same(now: "Sequence[Drift]", before: "Sequence[Drift]") -> bool:
    """Whether two lists hold the same changes to rounding."""
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


def _refuse_empty(run: Path) -> None:
    checkpoints = run / "checkpoints"
    if not (run / "adapter").is_dir() and not (checkpoints.is_dir() and any(checkpoints.iterdir())):
        raise InputError(
            f"{run} has neither checkpoints nor adapter/ yet: nothing has been saved; wait for the first one (save_every) "
            f"or go on with train --config {run / 'config.json'} --resume"
        )


def _points(run: Path, config: Config, architecture: Any) -> "Iterator[tuple[str, Any, Point]]":
    """(name, adapter, point) of each kept checkpoint, then of the final adapter."""
    from bidora_jax.models.adapters import adapter as adapters
    from bidora_jax.models.formats import peft
    from bidora_jax.training.checkpoint import Checkpoints
    from bidora_jax.training.saved_adapters import Point, points

    adapter = adapters.resolve(config.adapter, architecture, strict=not config.adapter.path)
    ended: tuple[str, int | None] = ("", None)
    with Checkpoints(run / "checkpoints", None) as checkpoints:
        for point in points(checkpoints):
            chose = point.phase == "search" and point.best_step
            ended = (point.phase, point.best_step if chose else point.step)
            yield f"{point.phase} {point.step}", adapter, point
    if (run / "adapter").is_dir():
        adapter, direction, magnitude = peft.load_adapter(run / "adapter", architecture)
        yield FINAL, adapter, Point(*ended, None, direction, magnitude)


def write(found: dict[str, Any], output: Path) -> None:
    """Writes what `analyze` found to the folder `output`: changes.csv and changes.png."""
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


def show(found: dict[str, Any]) -> None:
    """Prints a row a module: the mean change over its layers at the last checkpoint, and the fit over all checkpoints."""
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
            f"{means[1]:.2%}" if math.isfinite(means[1]) else "–",  # of a magnitude that was zero
            f"{means[2]:.4g}",
            *map(_number, (line["slope"], line["correlation"])),
        )
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3g}"
