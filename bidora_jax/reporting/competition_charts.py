"""The pictures of a competition: scores by fold, labels of test beside those of train, and those of a classifier's outcome."""

import numpy as np
from matplotlib.figure import Figure

from bidora_jax.reporting import outcome_charts, style
from bidora_jax.reporting.history import History, Line
from bidora_jax.reporting.outcome_charts import COLOURS, cut
from bidora_jax.reporting.style import LIGHT

LABELS = 24
"""Up to which shares are drawn."""
MARKERS = ("o", "s", "^", "D")


def all_charts(outcome: Line) -> dict[str, tuple[str, Figure]]:
    """Title and figure by name; `outcome` is the JSON of a competition's outcome."""
    made = {}
    if any(score is not None for one in outcome["scores"].values() for score in one["folds"]):
        made["scores"] = ("Score by fold", style.figure(lambda figure: _scores(outcome, figure)))
    kept = {key: outcome[key] for key in ("confusion", "points") if outcome[key] is not None}
    if kept:
        columns = outcome["names"] if len(outcome["points"] or "") > 1 else ["value"]
        split = {"names": outcome["names"] if "confusion" in kept else columns} | kept
        made |= outcome_charts.all_charts(History([], outcomes={"out of fold": split}))
    if outcome["kind"] != "regression" and 1 < len(outcome["shares"]) <= LABELS:
        made["shares"] = ("Labels of train, and predicted for test", _shares(outcome["shares"]))
    return made


def _scores(outcome: Line, figure: Figure) -> None:
    axes = figure.subplots()
    for (name, one), colour, marker in zip(outcome["scores"].items(), COLOURS, MARKERS, strict=False):
        values = [np.nan if score is None else score for score in one["folds"]]
        axes.plot(range(1, len(values) + 1), values, color=LIGHT[colour], marker=marker, markersize=4, label=name)
    count = max(len(one["folds"]) for one in outcome["scores"].values())
    axes.set_xticks(range(1, count + 1) if count <= 20 else np.unique(np.linspace(1, count, 6).round()))
    axes.set_xlabel("fold" if outcome["higher_is_better"] else "fold (less is better)")
    figure.legend(loc="outside lower center", ncols=4, handlelength=1.8)


def _shares(shares: Line) -> Figure:
    names = [cut(name) for name in shares]
    places = np.arange(len(names))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for at, (split, colour) in enumerate((("train", "blue"), ("test", "orange"))):
            values = [one[split][0] for one in shares.values()]
            axes.barh(places + 0.4 * (at - 0.5), values, 0.36, color=LIGHT[colour], label=split)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_xlabel("share of the rows")
        figure.legend(loc="outside lower center", ncols=2, handlelength=1.2)

    return style.figure(draw, height=max(1.6, 0.9 + 0.34 * len(names)))
