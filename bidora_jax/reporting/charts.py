"""The pictures of a run: curves over steps, heat maps of layers, and the direction's change against the magnitude's."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bidora_jax.reporting import style
from bidora_jax.reporting.history import Curve, History, Line, reach_of, smoothed
from bidora_jax.reporting.style import LIGHT

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
"""Of checkpoints, told apart without colour; from the eleventh on they come again."""

SINGLE, BUCKETS = 600, 200
"""Values up to which a curve is drawn value by value, and the parts into which a longer one is cut."""


def all_charts(history: History) -> dict[str, tuple[str, Figure]]:
    """Every picture that the history holds something for: its title and its figure, by the name of its file."""
    grads = history.curve("direction_grad_norm", "grad_norm")
    made = {
        "loss": ("Loss", style.figure(lambda figure: _loss(history, figure), style.BROAD, 3.3)),
        "learning_rate": ("Learning rate", style.figure(lambda figure: _rates(history, figure))),
        "direction_gradient": ("Gradient norm of the direction", _single(history, grads, "norm, before clipping", "blue")),
        "hypergradient": ("Hypergradient norm of the magnitude",
                          _single(history, history.curve("hypergrad_norm"), "norm, before clipping", "orange")),
        "speed": ("Throughput", _single(history, history.curve("tokens_per_second"), "tokens per second", "green",
                                        from_zero=True)),
        "magnitude": ("Magnitude change ΔM by layer", _heat(history, "magnitude", "ΔM, lengths of rows")),
        "direction": ("Direction change ΔD by layer", _heat(history, "direction", "ΔD, 1 − cos")),
    }  # fmt: skip
    return {name: (title, figure) for name, (title, figure) in made.items() if figure is not None}


def narrow_charts(history: History) -> dict[str, tuple[str, Figure]]:
    """The broad pictures once more, for a narrow page."""
    made = {
        "loss": ("Loss", style.figure(lambda figure: _loss(history, figure), height=3.3)),
        "magnitude": (
            "Magnitude change ΔM by layer",
            _heat(history, "magnitude", "ΔM, lengths of rows", most_columns=2),
        ),
        "direction": ("Direction change ΔD by layer", _heat(history, "direction", "ΔD, 1 − cos", most_columns=2)),
    }
    return {name: (title, figure) for name, (title, figure) in made.items() if figure is not None}


def _loss(history: History, figure: Figure) -> None:
    axes, drawn = figure.subplots(), [np.zeros(0)]
    for number, phase in enumerate(history.phases):
        train = history.curve("train_loss", phase=phase)
        drawn.append(_faint_and_smooth(axes, train, "blue", "training" if not number else None))
        batches = history.curve("val_loss", phase=phase)
        if len(batches.steps):
            reach = reach_of(len(batches.steps))
            drawn.append(smoothed(batches.values, reach))
            axes.plot(batches.steps, drawn[-1], color=LIGHT["pink"], linewidth=1.2, alpha=0.9,
                      linestyle=(0, (4, 1.6)), label="validation batches")  # fmt: skip
        val = history.curve("evaluation_loss", phase=phase)
        if not number and (before := history.facts.get("validation_before")):  # step 0
            val = Curve(np.array([0, *val.steps]), np.array([before["loss"], *val.values]))
        drawn.append(val.values)
        marker = "o" if len(val.steps) <= 30 else ""
        axes.plot(val.steps, val.values, color=LIGHT["orange"], marker=marker, markersize=3.6, markeredgewidth=0.8,
                  markeredgecolor=LIGHT["card"], label="validation split" if not number and len(val.steps) else None)  # fmt: skip
    values = np.concatenate(drawn)  # the noise of batches may leave the picture
    if len(values):
        low, high = values.min(), np.quantile(values, 0.995)  # one spike must not flatten the rest
        spread = (high - low) or 1.0
        axes.set_ylim(max(low - 0.08 * spread, 0), high + 0.15 * spread)
    axes.set_ylabel("loss" if history.labelled else "nats per token")
    style.plain_steps(axes)
    _mark_phases(history, axes)
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.93), handlelength=1.8)


def _rates(history: History, figure: Figure) -> None:
    axes, seen = figure.subplots(), []
    for name, colour, label in (
        ("inner_learning_rate", "blue", "direction"),
        ("outer_learning_rate", "orange", "magnitude"),
    ):
        for number, phase in enumerate(history.phases):
            curve = history.curve(name, phase=phase)
            if len(curve.steps):
                first = label if not number else None
                axes.plot(curve.steps, curve.values, color=LIGHT[colour], label=first, marker=_alone(curve))
                seen += list(curve.values)
    axes.set_ylabel("learning rate")
    axes.yaxis.get_offset_text().set_color(LIGHT["muted"])
    _linear(axes, seen)
    style.plain_steps(axes)
    _mark_phases(history, axes)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(loc="upper right", bbox_to_anchor=(1, 0.93), handlelength=1.8)


def _linear(axes: Axes, values: Any) -> None:
    style.few_values(axes, [0.0, *values])
    axes.set_ylim(0, axes.get_ylim()[1] * 1.08)


def _single(history: History, curve: Curve, label: str, colour: str, *, from_zero: bool = False) -> Figure | None:
    """One quantity, faint and smoothed, phase by phase; None where there is nothing of it."""
    if not len(curve.steps):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        starts = [*history.starts.values(), math.inf]
        for begin, end in pairwise(starts):
            inside = (curve.steps > begin) & (curve.steps <= end)
            if inside.any():
                _faint_and_smooth(axes, Curve(curve.steps[inside], curve.values[inside]), colour, None)
        axes.set_ylabel(label)
        axes.yaxis.get_offset_text().set_color(LIGHT["muted"])
        if from_zero:
            _linear(axes, curve.values)
        else:
            style.few_values(axes, curve.values)
        style.plain_steps(axes)
        _mark_phases(history, axes, curve.steps[-1])

    return style.figure(draw)


def _faint_and_smooth(axes: Axes, curve: Curve, colour: str, label: str | None) -> np.ndarray:
    """The values as they are, or of many the band that holds four fifths of them, and over it their smoothed course, which is
    returned."""
    count = len(curve.steps)
    if not count:
        return curve.values
    if count <= SINGLE:
        axes.plot(curve.steps, curve.values, color=LIGHT[colour], alpha=0.28, linewidth=0.8)
    else:
        parts = [np.array_split(array, BUCKETS) for array in (curve.steps, curve.values)]
        low, high = (np.array([np.quantile(part, share) for part in parts[1]]) for share in (0.1, 0.9))
        middles = np.array([part.mean() for part in parts[0]])
        axes.fill_between(middles, low, high, color=LIGHT[colour], alpha=0.2, linewidth=0)
    smooth = smoothed(curve.values, reach_of(count))
    axes.plot(curve.steps, smooth, color=LIGHT[colour], label=label, marker=_alone(curve))
    return smooth


def _alone(curve: Curve) -> str:
    """A line of one point would not be seen."""
    return "o" if len(curve.steps) == 1 else ""


def _mark_phases(history: History, axes: Axes, end: float = math.inf) -> None:
    """A line where a phase begins, and the names of the phases on top, up to step `end`; nothing where there is one."""
    starts = {phase: start for phase, start in history.starts.items() if start < end}
    if len(starts) < 2:
        return
    for phase, start in starts.items():
        if start:
            axes.axvline(start + 0.5, color=LIGHT["muted"], linewidth=0.9, linestyle=(0, (3, 3)))
        axes.annotate(phase, (start + 0.5 if start else axes.get_xlim()[0], 1), xycoords=("data", "axes fraction"),
                      xytext=(4, -1), textcoords="offset points", va="top", color=LIGHT["muted"], fontsize=8)  # fmt: skip


# Layers


def _heat(history: History, kind: str, label: str, most_columns: int = 4) -> Figure | None:
    """A panel a module: layers upwards, looks rightwards. A few layers that moved far more than the others leave the scale."""
    lines = [line for line in history.changes if line.get(kind)]
    if not lines:
        return None
    modules = list(lines[0][kind])
    columns = min(len(modules), most_columns)
    rows = math.ceil(len(modules) / columns)
    moved = [value for line in lines for layers in line[kind].values() for value in layers if value]
    most = max(moved, default=1.0)
    top = min(most, 2 * float(np.quantile(moved, 0.9))) if moved else most
    depth = max(len(layers) for layers in lines[0][kind].values())
    height = 0.75 + rows * min(max(0.55 + 0.085 * depth, 1.0), 2.6)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(modules) :]:
            axes.set_axis_off()
        image: Any = None
        for axes, module in zip(grid.flat, modules, strict=False):
            values = np.array([line[kind][module] for line in lines], float).T
            image = axes.imshow(values, aspect="auto", origin="lower", cmap=style.LAYERS, vmin=0, vmax=top)
            axes.set_title(module.rpartition(".")[2], fontsize=8.5)
            axes.grid(visible=False)
            axes.tick_params(labelbottom=True, labelleft=True)
            _step_ticks(axes, history, lines)
            _layer_ticks(axes, depth)
        for axes in grid[:, 0]:
            axes.set_ylabel("layer")
        for number, axes in enumerate(grid.flat[: len(modules)]):
            axes.set_xlabel("step" if number + columns >= len(modules) else "")
        beyond: Any = "max" if most > top else "neither"
        bar = figure.colorbar(image, ax=grid, pad=0.015, fraction=0.04, aspect=20, extend=beyond)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue] - a Spine; the stubs say otherwise
        bar.set_label(label if top == most else f"{label} (up to {most:.2g})")
        formatter: Any = bar.formatter
        formatter.set_powerlimits((-3, 4))
        formatter.set_useMathText(True)

    return style.figure(draw, width=style.BROAD if columns > 2 else style.WIDTH, height=height)


def _step_ticks(axes: Axes, history: History, lines: Sequence[Line]) -> None:
    """Steps of the whole run under at most four columns, and a line between the phases."""
    starts = history.starts
    steps = [starts.get(line["phase"], 0) + line["step"] for line in lines]
    places = sorted(set(np.linspace(0, len(steps) - 1, min(len(steps), 4)).round().astype(int)))
    axes.set_xticks(places, [f"{steps[place]:,}" for place in places])
    for place in range(1, len(lines)):
        if lines[place]["phase"] != lines[place - 1]["phase"]:
            axes.axvline(place - 0.5, color="white", linewidth=1.2)


def _layer_ticks(axes: Axes, depth: int) -> None:
    axes.set_yticks(sorted(set(np.linspace(0, depth - 1, min(depth, 5)).round().astype(int))))


# Direction against magnitude


def scatter(points: Sequence[dict[str, Any]], fits: dict[str, dict[str, Any]]) -> Figure:
    """ΔM over ΔD, a panel a module, the layer as colour and the checkpoint as marker, with the line of least squares.

    `points` are {module, layer, checkpoint, magnitude, direction}; `fits` has {slope, intercept, correlation} by module.
    """
    modules = list(dict.fromkeys(point["module"] for point in points))
    checkpoints = list(dict.fromkeys(point["checkpoint"] for point in points))
    depth = 1 + max(point["layer"] for point in points)
    columns = min(len(modules), 4 if len(modules) > 6 else 3)
    rows = math.ceil(len(modules) / columns)
    colours = colormaps[style.LAYERS].resampled(depth) if depth < 12 else colormaps[style.LAYERS]

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False)
        image: Any = None
        for axes in grid.flat[len(modules) :]:
            axes.set_axis_off()
        for axes, module in zip(grid.flat, modules, strict=False):
            own = [point for point in points if point["module"] == module]
            for number, checkpoint in enumerate(checkpoints):
                at = [point for point in own if point["checkpoint"] == checkpoint]
                image = axes.scatter(
                    [point["direction"] for point in at], [point["magnitude"] for point in at], s=20, cmap=colours,
                    c=[point["layer"] for point in at], vmin=-0.5, vmax=depth - 0.5, marker=MARKERS[number % len(MARKERS)],
                    edgecolors=LIGHT["card"], linewidths=0.4,
                )  # fmt: skip
            _fit(axes, own, fits[module])
            axes.set_title(f"{module.rpartition('.')[2]}   {_said(fits[module])}", fontsize=8.5)
            axes.set_xlabel("ΔD")
            axes.set_ylabel("ΔM")
            _scientific(axes)
        bar = figure.colorbar(image, ax=grid, pad=0.015, fraction=0.04, aspect=25)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue] - a Spine; the stubs say otherwise
        bar.set_label("layer")
        bar.set_ticks(sorted(set(np.linspace(0, depth - 1, min(depth, 6)).round().astype(int))))
        _legend(figure, checkpoints)

    return style.figure(draw, width=0.9 + 2.9 * columns, height=0.55 + 2.35 * rows)


def _fit(axes: Axes, points: Sequence[dict[str, Any]], fit: dict[str, Any]) -> None:
    if fit["slope"] is None:
        return
    ends = np.array([f([point["direction"] for point in points]) for f in (min, max)])
    axes.plot(ends, fit["intercept"] + fit["slope"] * ends, color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 2)))


def _said(fit: dict[str, Any]) -> str:
    if fit["slope"] is None:
        return ""
    correlation = "" if fit["correlation"] is None else f", r = {fit['correlation']:.2f}"
    return f"k = {fit['slope']:.3g}{correlation}".replace("-", "−")


def _scientific(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))
        formatter = ScalarFormatter(useMathText=True, useOffset=False)
        formatter.set_powerlimits((-2, 3))
        axis.set_major_formatter(formatter)
        axis.get_offset_text().set_color(LIGHT["muted"])


def _legend(figure: Figure, checkpoints: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=MARKERS[number % len(MARKERS)],
            color=LIGHT["muted"],
            markersize=4.5,
            label=name,
        )
        for number, name in enumerate(checkpoints)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
