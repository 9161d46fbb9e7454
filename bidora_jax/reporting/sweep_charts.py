"""The pictures of a sweep: parallel coordinates, and the score over each setting that is a number, a curve a method."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bidora_jax.reporting import style
from bidora_jax.reporting.history import Line
from bidora_jax.reporting.outcome_charts import COLOURS, cut, in_words
from bidora_jax.reporting.style import LIGHT

MARKERS = ("o", "s", "^", "D")


def all_charts(outcome: Line) -> list[tuple[str, Figure, bool]]:
    """Title, figure and whether it takes the whole width."""
    scored = [one for one in outcome["trials"] if one["score"] is not None]
    if not scored:
        return []
    made = [("Points and their scores", _parallel(outcome, scored), True)]
    for axis in outcome["axes"]:
        if axis["name"] != "adapter.method" and _numbers(axis):
            made.append((f"{in_words(outcome['metric'])} over {axis['name']}", _curves(outcome, scored, axis), False))
    return made


def _numbers(axis: Line) -> list[float]:
    """The values of an axis whose values are numbers; the ends of a range."""
    if axis["scale"] != "choice":
        return [axis["low"], axis["high"]]
    try:
        return [float(label) for label in axis["labels"]]
    except ValueError:
        return []


def _colours(trials: Sequence[Line]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each method; a fifth method has the first again."""
    methods = list(dict.fromkeys(one["method"] for one in trials))
    return {method: (LIGHT[COLOURS[at % 4]], MARKERS[at % 4]) for at, method in enumerate(methods)}


# Parallel coordinates


def _parallel(outcome: Line, trials: Sequence[Line]) -> Figure:
    """A line a trial through its value on every axis, to its score; the colour is the score, and the best one is drawn in ink."""
    sign = 1 if outcome["higher_is_better"] else -1
    scores = [one["score"] for one in trials]
    low, high = min(scores), max(scores)
    shade = colormaps[style.LAYERS]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = range(len(outcome["axes"]) + 1)
        for one in sorted(trials, key=lambda one: sign * one["score"]):
            heights = [_height(axis, one["values"][axis["name"]]) for axis in outcome["axes"]]
            height = (one["score"] - low) / ((high - low) or 1.0)
            good = height if sign > 0 else 1 - height
            best = one["number"] == outcome["best"]
            colour = LIGHT["ink"] if best else shade(0.92 * (1 - good))
            axes.plot(
                places, [*heights, height], color=colour, alpha=1.0 if best else 0.65, linewidth=2.6 if best else 1.1
            )
        for place, axis in enumerate(outcome["axes"]):
            _upright(axes, place, _marks(axis))
        _upright(
            axes,
            len(outcome["axes"]),
            [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")] if high > low else [(0.0, f"{low:.4g}")],
        )
        axes.set_xticks(
            list(places), [cut(axis["name"], 28) for axis in outcome["axes"]] + [in_words(outcome["metric"])]
        )
        axes.set(yticks=[], ylim=(-0.06, 1.06), xlim=(-0.15, len(outcome["axes"]) + 0.35))
        axes.spines[["left", "bottom"]].set_visible(False)

    return style.figure(draw, style.BROAD, 3.6)


def _upright(axes: Axes, place: int, marks: Sequence[tuple[float, str]]) -> None:
    axes.axvline(place, color=LIGHT["muted"], linewidth=0.9)
    for height, text in marks:
        axes.annotate(text, (place, height), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5,
                      color=LIGHT["ink"])  # fmt: skip


def _height(axis: Line, value: Any) -> float:
    """Where a value lies on an axis that goes from 0 to 1."""
    if axis["scale"] == "choice":
        count = len(axis["labels"])
        return axis["labels"].index(value) / (count - 1) if count > 1 else 0.5
    low, high, at = axis["low"], axis["high"], value
    if axis["scale"] == "log":
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low)


def _marks(axis: Line) -> list[tuple[float, str]]:
    if axis["scale"] == "choice":
        return [(_height(axis, label), cut(label)) for label in axis["labels"]]
    low, high = axis["low"], axis["high"]
    middle = math.sqrt(low * high) if axis["scale"] == "log" else (low + high) / 2
    return [(_height(axis, value), f"{value:.3g}") for value in (low, middle, high)]


# Curves


def _curves(outcome: Line, trials: Sequence[Line], axis: Line) -> Figure:
    """The score of each trial over its value, with the spread of its seeds; a line joins the means of equal values by method.
    Where other settings vary too, trials of one value differ by those."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for method, (colour, marker) in _colours(trials).items():
            own = [one for one in trials if one["method"] == method]
            x = [float(one["values"][axis["name"]]) for one in own]
            y = [one["score"] for one in own]
            bars = [one["sd"] or 0.0 for one in own]
            axes.errorbar(x, y, bars, linestyle="", marker=marker, markersize=4, color=colour, elinewidth=0.9, alpha=0.75,
                          label=method)  # fmt: skip
            means = [
                (value, statistics.fmean(b for a, b in zip(x, y, strict=True) if a == value))
                for value in sorted(set(x))
            ]
            axes.plot(*zip(*means, strict=True), color=colour, linewidth=1.2)
        values = _numbers(axis)
        if axis["scale"] == "log" or (axis["scale"] == "choice" and min(values) > 0 and max(values) >= 8 * min(values)):
            axes.set_xscale("log")
        style.few_values(axes, [one["score"] for one in trials])
        axes.set(xlabel=axis["name"], ylabel=in_words(outcome["metric"]))
        figure.legend(loc="outside lower center", ncols=4, handlelength=1.8)

    return style.figure(draw)
