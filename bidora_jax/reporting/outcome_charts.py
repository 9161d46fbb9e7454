"""The pictures of a classifier's outcomes: metrics over steps, confusion, reliability, values against their targets."""

import math

import numpy as np
from matplotlib.figure import Figure

from bidora_jax.reporting import style
from bidora_jax.reporting.history import History, Line
from bidora_jax.reporting.style import LIGHT

COLOURS = ("orange", "blue", "green", "pink")
WRITTEN = 12
"""Labels up to which every cell of a confusion has its number."""
NAMED = 40
"""Labels up to which they are named beside a confusion."""
PALE = "#fefefe"
"""White that stays so on a dark page, where pure white becomes the colour of its cards."""
UNBOUNDED = ("log_loss", "rmse", "mae")
"""Metrics that are not drawn on one scale with the others, which are at most 1."""


def all_charts(history: History) -> dict[str, tuple[str, Figure]]:
    """Every picture that there is something for: its title and its figure, by the name of its file."""
    made: dict[str, tuple[str, Figure | None]] = {"metrics": ("Metrics on the validation split", _metrics(history))}
    curves = {split: one["reliability"] for split, one in history.outcomes.items() if one.get("reliability")}
    if curves:
        made["reliability"] = ("Reliability", style.figure(lambda figure: _reliability(curves, figure)))
    for split, one in history.outcomes.items():
        if "confusion" in one:
            made[f"confusion_{split}"] = (f"Confusion, {split}", _confusion(one))
        if "points" in one:
            made[f"values_{split}"] = (f"Predicted and true values, {split}", _values(one))
    return {name: (title, figure) for name, (title, figure) in made.items() if figure is not None}


def _metrics(history: History) -> Figure | None:
    """The metrics that are at most 1, as far as there are colours."""
    names = [name for name in history.metrics if name not in UNBOUNDED][: len(COLOURS)]
    if not names:
        return None

    from matplotlib.ticker import MaxNLocator

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, colour in zip(names, COLOURS, strict=False):
            curve = history.curve(f"evaluation_{name}")
            marker = "o" if len(curve.steps) <= 30 else ""
            axes.plot(
                curve.steps, curve.values, color=LIGHT[colour], marker=marker, markersize=3.2, label=in_words(name)
            )
        style.plain_steps(axes)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.legend(loc="best", handlelength=1.8)

    return style.figure(draw)


def in_words(name: str) -> str:
    """A metric's name for people: entity_f1 is entity F1."""
    written = {word.lower(): word for word in ("F1", "AUC", "QWK", "RMSE", "MAE", "Matthews", "Pearson", "Spearman")}
    return " ".join(written.get(word, word) for word in name.split("_"))


def _reliability(curves: dict[str, list[dict[str, float]]], figure: Figure) -> None:
    """The share of predictions that came true over their probability; the size of a point is the number of predictions."""
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=LIGHT["muted"], linewidth=0.9, linestyle=(0, (4, 2)))
    for (split, bins), colour in zip(curves.items(), COLOURS, strict=False):
        x, y, rows = (np.array([one[key] for one in bins]) for key in ("probability", "right", "rows"))
        axes.plot(x, y, color=LIGHT[colour], linewidth=1.1, label=split)
        axes.scatter(x, y, s=8 + 60 * rows / rows.sum(), color=LIGHT[colour], linewidths=0)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="probability that was predicted", ylabel="share that came true")
    axes.legend(loc="upper left", handlelength=1.8)


def _confusion(outcome: Line) -> Figure:
    """True labels downwards, predicted ones rightwards; the colour is the share of the row."""
    counts = np.array(outcome["confusion"])
    names = [cut(name) for name in outcome["names"]]
    size = len(names)
    side = min(max(2.4, 0.42 * size + 1.2), 5.2)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        image = axes.imshow(shares, cmap=style.LAYERS, vmin=0, vmax=1, aspect="auto")
        axes.grid(visible=False)
        if size <= NAMED:
            axes.set_xticks(range(size), names, rotation=40 if size > 3 else 0, ha="right" if size > 3 else "center")
            axes.set_yticks(range(size), names)
        axes.set(xlabel="predicted", ylabel="true")
        if size <= WRITTEN:
            for row, column in np.ndindex(size, size):
                light = shares[row, column] < 0.6
                axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=8.5,
                          color=PALE if light else "black")  # fmt: skip
        bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05, aspect=25)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue] - a Spine; the stubs say otherwise
        bar.set_label("share of the true label")

    return style.figure(draw, height=side)


def cut(name: str, most: int = 18) -> str:
    """A label as matplotlib draws it in one short line: a dollar sign would begin mathematics."""
    line = " ".join(name.split())
    return (line if len(line) <= most else line[: most - 1] + "…").replace("$", r"\$")


def _values(outcome: Line) -> Figure:
    """Predictions over targets, a panel a target, with the line on which they are equal."""
    names, panels = outcome["names"], outcome["points"]
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, name, points in zip(grid.flat, names, panels, strict=False):
            true, predicted = np.array(points).T
            ends = np.array([min(true.min(), predicted.min()), max(true.max(), predicted.max())])
            axes.plot(ends, ends, color=LIGHT["muted"], linewidth=0.9, linestyle=(0, (4, 2)))
            axes.scatter(true, predicted, s=9, color=LIGHT["orange"], alpha=0.45, linewidths=0)
            axes.set(xlabel="true", ylabel="predicted")
            if len(panels) > 1:
                axes.set_title(cut(name, 40), fontsize=8.5)

    return style.figure(draw, height=0.4 + 2.9 * rows)
