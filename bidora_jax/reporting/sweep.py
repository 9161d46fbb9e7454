"""sweep.html and the table of a sweep: what is best, by how much, and how the score follows each setting. One file, no requests."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from bidora_jax.reporting import page, style, sweep_charts
from bidora_jax.reporting.history import Line
from bidora_jax.reporting.outcome_charts import in_words
from bidora_jax.reporting.summary import duration

HONEST = (
    "The best of many points is chosen by the records that its score is computed on, so that score flatters it; the test records, "
    "if there are any, do not."
)


def render(outcome: Line) -> str:
    """The page. `outcome` is what results.json holds."""
    charts = [(title, style.svg(figure, title), wide) for title, figure, wide in sweep_charts.all_charts(outcome)]
    said = verdict(outcome)
    about = f"{outcome['name']} · {judged_by(outcome)}" + (
        f" · budget {outcome['budget']}" if outcome["budget"] else ""
    )
    return page.document(
        f"{outcome['name']}: {said}",
        [
            f"<header><h1>{escape(said)}</h1><p>{escape(about)}</p></header>",
            '<dl class="tiles">' + "".join(page.tile(*one) for one in _tiles(outcome)) + "</dl>",
            '<div class="charts">' + "".join(_picture(*chart) for chart in charts) + "</div>",
            _methods(outcome),
            '<h2>Trials, the best first</h2><div class="card plot">'
            + _table(*rows_of(outcome, ranked(outcome)))
            + f'<p class="note">{escape(HONEST)}</p></div>',
            _failed(outcome),
        ],
    )


def verdict(outcome: Line) -> str:
    """One sentence."""
    if outcome["best"] is None:
        return "No point of the sweep could be run"
    best = outcome["trials"][outcome["best"]]
    where = ", ".join(f"{name} {number(value)}" for name, value in best["values"].items())
    return f"Best {in_words(outcome['metric'])} {_with_sd(best)} at {where}"


def judged_by(outcome: Line) -> str:
    better = "more" if outcome["higher_is_better"] else "less"
    seeds = "one seed" if outcome["seeds"] == 1 else f"mean of {outcome['seeds']} seeds"
    return f"{in_words(outcome['metric'])} on {outcome['judge']}, {better} is better, {seeds}"


def ranked(outcome: Line) -> list[Line]:
    """Trials with a whole score, the best first; then those that were stopped, that run, and that failed."""
    places = {"complete": 0, "pruned": 1, "running": 2, "failed": 3}
    sign = -1 if outcome["higher_is_better"] else 1
    return sorted(
        outcome["trials"],
        key=lambda one: (places[one["state"]], 0.0 if one["score"] is None else sign * one["score"], one["number"]),
    )


def number(value: Any) -> str:
    """A value for people: four significant digits of a number."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def rows_of(outcome: Line, trials: Iterable[Line]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table of trials."""
    axes = [axis["name"] for axis in outcome["axes"]]
    head = ["trial", *axes, outcome["metric"], "sd", "steps", "gradient tokens", "seconds", ""]
    rows = [
        [str(one["number"]), *(number(one["values"][name]) for name in axes), number(one["score"]), number(one["sd"]),
         " + ".join(number(steps) for steps in one["steps"] if steps), number(one["tokens"]), number(one["seconds"]),
         "" if one["state"] == "complete" else one["state"]]
        for one in trials
    ]  # fmt: skip
    return head, rows


def table(outcome: Line) -> list[str]:
    """The same in lines of text, with the best of each method and the score on the test records."""
    head, rows = rows_of(outcome, ranked(outcome))
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    lines = [judged_by(outcome)]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    if len(outcome["best_by_method"]) > 1:
        lines += [
            f"best of {method}: {_with_sd(outcome['trials'][at])} (trial {at})"
            for method, at in outcome["best_by_method"].items()
        ]
    return lines + ([f"on the test records: {_test(outcome)}"] if outcome["test"] else [])


def _test(outcome: Line) -> str:
    test = outcome["test"]
    return f"{in_words(test['metric'])} {_with_sd(test)}, of trial {test['trial']}"


def _with_sd(one: Line) -> str:
    return number(one["score"]) + ("" if one["sd"] is None else f" (sd {one['sd']:.2g})")


def _tiles(outcome: Line) -> list[tuple[str, str, str]]:
    trials = outcome["trials"]
    failed = sum(one["state"] == "failed" for one in trials)
    spent = sum((one["seconds"] or 0.0) * len(one["scores"]) for one in trials)
    tiles = [("Trials", f"{len(trials):,}", f"{failed} failed" if failed else f"{outcome['seeds']} seeds each"),
             ("Training", duration(spent), "all runs together")]  # fmt: skip
    if outcome["best"] is not None:
        best = outcome["trials"][outcome["best"]]
        tiles.insert(0, (f"Best {in_words(outcome['metric'])}", number(best["score"]), f"trial {best['number']}"))
    if outcome["test"]:
        test = outcome["test"]
        tiles.insert(
            1, ("On the test records", number(test["score"]), "" if test["sd"] is None else f"sd {test['sd']:.2g}")
        )
    return tiles


def _picture(title: str, svg: str, wide: bool) -> str:
    return f'<section class="card{" wide" * wide}"><h3>{escape(title)}</h3><div class="plot">{svg}</div></section>'


def _methods(outcome: Line) -> str:
    if len(outcome["best_by_method"]) < 2:
        return ""
    best = [outcome["trials"][at] for at in outcome["best_by_method"].values()]
    head, rows = rows_of(outcome, [one for one in ranked(outcome) if one in best])
    note = "Each at the best settings that were tried for it; differences within the spread of the seeds say little."
    return f'<h2>Best of each method</h2><div class="card plot">{_table(head, rows)}<p class="note">{escape(note)}</p></div>'


def _failed(outcome: Line) -> str:
    rows = [[str(one["number"]), one["error"]] for one in outcome["trials"] if one["state"] == "failed"]
    return f'<h2>Failed</h2><div class="card plot">{_table(["trial", "why"], rows)}</div>' if rows else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    first = "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"
    rest = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{first}{rest}</table>"
