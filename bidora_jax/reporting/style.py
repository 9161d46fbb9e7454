"""How a picture looks, and what it becomes: a PNG on white, or an SVG whose colours are those of the page around it.

Figures are drawn once, in the light colours; in the SVG each colour is replaced by the page's variable of its name, so that
one drawing serves a light page and a dark one. Colours are Okabe and Ito's, told apart by the colour-blind too.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LIGHT = {
    "ink": "#1c2430", "muted": "#5c6675", "line": "#d8dde5", "card": "#ffffff",
    "blue": "#0072b2", "orange": "#d55e00", "green": "#009e73", "pink": "#b8548c",
}  # fmt: skip
DARK = {
    "ink": "#e8ebf0", "muted": "#9aa5b4", "line": "#353d49", "card": "#1a1f27",
    "blue": "#5ab2f2", "orange": "#ff8f4d", "green": "#3ccfa4", "pink": "#ea8fc3",
}  # fmt: skip
LAYERS = "viridis"
"""Colours of layers and of heat maps: as light or dark to everybody, in grey too."""
STYLE: dict[Any, Any] = {
    "font.size": 8.5, "axes.titlesize": 9.5, "axes.labelsize": 8.5, "legend.fontsize": 8, "xtick.labelsize": 8,
    "ytick.labelsize": 8, "text.color": LIGHT["ink"], "axes.labelcolor": LIGHT["muted"], "axes.edgecolor": LIGHT["line"],
    "axes.titlecolor": LIGHT["ink"], "xtick.color": LIGHT["line"], "ytick.color": LIGHT["line"],
    "xtick.labelcolor": LIGHT["muted"], "ytick.labelcolor": LIGHT["muted"], "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y", "grid.color": LIGHT["line"],
    "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.titlelocation": "left", "axes.titlepad": 8,
    "legend.frameon": False, "lines.linewidth": 1.5, "lines.solid_capstyle": "round", "xtick.major.size": 3,
    "ytick.major.size": 0, "figure.facecolor": "none", "axes.facecolor": "none", "svg.fonttype": "none",
    "svg.hashsalt": "bidora_jax", "mathtext.default": "regular", "image.interpolation": "nearest",
}  # fmt: skip
WIDTH, HEIGHT, BROAD = 5.8, 2.9, 10.4
"""Inches of a chart of half the page, and the width of one of the whole page."""

Draw = Callable[[Figure], None]


class Picture(Figure):
    """A figure that a notebook shows on white, also where pyplot, which registers figures there, was never imported."""

    def _repr_png_(self) -> bytes:
        with rc_context(STYLE):
            return _printed(self, format="png", dpi=120, facecolor="white")


def figure(draw: Draw, width: float = WIDTH, height: float = HEIGHT) -> Figure:
    """A figure of its own, away from pyplot and its state."""
    with rc_context(STYLE):
        made = Picture(figsize=(width, height), layout="constrained")
        draw(made)
    return made


def png(made: Figure, title: str) -> bytes:
    """On white, at 200 dots an inch, under its title."""
    with rc_context(STYLE):
        made.suptitle(title, x=0.008, ha="left", fontsize=10.5, fontweight="bold")
        return _printed(made, format="png", dpi=200, facecolor="white")


def svg(made: Figure, title: str) -> str:
    """An <svg> element for a page that sets the variables of `variables`; `title` is what a screen reader says."""
    with rc_context(STYLE):
        text = _printed(made, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
    for name, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{name})")
    head, body = text.split(">", 1)
    head = re.sub(r' (?:width|height|version|xmlns:\w+|xmlns)="[^"]*"', "", head)
    body = body.replace("xlink:href", "href")
    return f'{head} role="img" aria-label="{title}">{body}'


def variables(colours: dict[str, str]) -> str:
    """The colours as CSS declarations."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def _printed(made: Figure, **how: Any) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from font"
        )  # of a label in another script; a page has its font
        made.savefig(stream, **how)
    return stream.getvalue()


def plain_steps(axes: Axes) -> None:
    """Whole numbers with thousands apart under the x axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.set_xlabel("step")
    axes.margins(x=0.01)


def few_values(axes: Axes, values: Any) -> None:
    """A logarithmic y axis where positive values go over more than two decades; else a linear one with one power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    positive = [value for value in values if value > 0]
    if positive and len(positive) == len(values) and max(positive) > 100 * min(positive):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if max(values, default=0) >= 1000:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        return
    formatter = ScalarFormatter(useMathText=True, useOffset=False)
    formatter.set_powerlimits((-3, 5))
    axes.yaxis.set_major_formatter(formatter)
