"""report.html: one file that needs no other; light or dark as the reader's system is."""

from collections.abc import Sequence
from html import escape
from typing import Any

from bidora_jax.reporting.history import History, Line
from bidora_jax.reporting.outcome_charts import in_words
from bidora_jax.reporting.style import DARK, LIGHT, variables

WIDE = ("loss", "magnitude", "direction")
"""Pictures over the whole width."""
NARROW = "_narrow"
"""Ending of the name of a picture that takes the place of another on a narrow page."""
STYLE = """
:root { color-scheme: light dark; LIGHT
  --page: #f4f6f9; --sans: Inter, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace; }
@media (prefers-color-scheme: dark) { :root { DARK --page: #11151b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 var(--sans); -webkit-text-size-adjust: 100%; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 56px; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 14px; margin-bottom: 26px; }
h1 { font-size: 27px; line-height: 1.2; font-weight: 650; letter-spacing: -.015em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; font-weight: 620; letter-spacing: -.005em; margin: 44px 0 14px; }
h3 { font-size: 14.5px; font-weight: 600; margin: 0 0 10px; }
header p { color: var(--muted); margin: 0; flex-basis: 100%; overflow-wrap: anywhere; }
.state { font-size: 12.5px; font-weight: 600; padding: 2px 10px; border-radius: 99px; border: 1px solid currentColor; }
.done { color: var(--green); } .open { color: var(--orange); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(168px, 1fr)); gap: 12px; }
.card, .tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tile { padding: 13px 16px 14px; }
.tile dt { color: var(--muted); font-size: 13px; }
.tile dd { margin: 1px 0 0; font-size: 21px; font-weight: 620; letter-spacing: -.01em; font-variant-numeric: tabular-nums; }
.tile dd small { display: block; font-size: 12.5px; font-weight: 400; letter-spacing: 0; color: var(--muted); line-height: 1.4; }
dl { margin: 0; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; margin-top: 14px; }
.card { padding: 16px 18px 12px; min-width: 0; }
.wide { grid-column: 1 / -1; }
.plot { overflow-x: auto; } .plot svg { display: block; width: 100%; height: auto; }
.wide .plot svg { min-width: 620px; } .narrow { display: none; } .wide .narrow svg { min-width: 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 500; color: var(--muted); font-size: 13px; }
th, td { padding: 6px 18px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td:first-child { min-width: 8ch; }
tr:last-child td { border-bottom: 0; }
code, pre { font-family: var(--mono); font-size: 12.8px; }
td:not(:first-child) { min-width: 90px; }
.numbers td, .numbers th { font-variant-numeric: tabular-nums; padding-right: 6px; }
.numbers td:first-child { min-width: 104px; }
.numbers td:not(:first-child), .numbers th:not(:first-child) { text-align: right; min-width: 62px; }
.note { margin: 8px 0 0; font-size: 13px; color: var(--muted); }
.default { color: var(--muted); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; line-height: 1.5; }
.samples { display: grid; gap: 14px; }
.asked { font-weight: 500; margin: 0 0 12px; white-space: pre-wrap; overflow-wrap: anywhere; }
.answers { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 9px 16px; }
.answers > span { color: var(--muted); font-size: 13px; font-variant-numeric: tabular-nums; }
.expected { color: var(--green); }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--muted); font-size: 13px; margin-bottom: 9px; }
footer { color: var(--muted); font-size: 13px; margin-top: 40px; }
@media (max-width: 820px) { .broad { display: none; } .narrow { display: block; }
  .charts { grid-template-columns: minmax(0, 1fr); } main { padding: 26px 14px 40px; }
  .card { padding: 14px 14px 10px; } .answers { grid-template-columns: minmax(0, 1fr); gap: 3px; }
  .answers pre { margin-bottom: 9px; } }
@media print { body { background: none; } .card, .tile { break-inside: avoid; } }
"""


def render(
    name: str,
    about: str,
    summary: dict[str, Any],
    tiles: Sequence[tuple[str, str, str]],
    pictures: dict[str, tuple[str, str]],
    past: History,
    settings: Sequence[tuple[str, str, str]],
    notes: Sequence[str],
) -> str:
    """The page. `tiles` are (name, value, small print), `pictures` (title, svg) by name, `settings` (name, value, default)."""
    state = (
        '<span class="state done">finished</span>'
        if summary["finished"]
        else '<span class="state open">not finished</span>'
    )
    parts = [
        f"<header><h1>{escape(name)}</h1>{state}<p>{escape(about)}</p></header>",
        '<dl class="tiles">' + "".join(tile(*one) for one in tiles) + "</dl>",
        '<div class="charts">'
        + "".join(_picture(key, pictures) for key in pictures if not key.endswith(NARROW))
        + "</div>",
        _metrics(summary["metrics"]),
        *(_by_label(split, one) for split, one in past.outcomes.items()),
        _samples(past.samples),
        _settings(settings),
        "<footer>" + "<br>".join(map(escape, notes)) + "</footer>",
    ]
    return document(name, parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A page of these elements, one after the other; empty ones are left out."""
    style = STYLE.replace("LIGHT", variables(LIGHT)).replace("DARK", variables(DARK))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, parts))
        + "\n</main>\n</body>\n</html>\n"
    )


def tile(name: str, value: str, small: str) -> str:
    below = f"<small>{escape(small)}</small>" if small else ""
    return f'<div class="tile"><dt>{escape(name)}</dt><dd>{escape(value)}{below}</dd></div>'


def _picture(key: str, pictures: dict[str, tuple[str, str]]) -> str:
    """A card; where there is a drawing for narrow pages too, the page shows the one that suits it."""
    title, svg = pictures[key]
    plot = f'<div class="plot">{svg}</div>'
    if key + NARROW in pictures:
        plot = f'<div class="plot broad">{svg}</div><div class="plot narrow">{pictures[key + NARROW][1]}</div>'
    return f'<section class="card{" wide" if key in WIDE else ""}"><h3>{escape(title)}</h3>{plot}</section>'


def _metrics(splits: dict[str, dict[str, dict[str, float]]]) -> str:
    """A row a metric, with what it was before training and after, on each split."""
    if not splits:
        return ""
    columns = [(split, when) for split in splits for when in ("before", "after")]
    names = dict.fromkeys(name for split, when in columns for name in splits[split][when])
    head = "".join(f"<th>{split}, {when}</th>" for split, when in columns)
    rows = "".join(
        f"<tr><td>{escape(in_words(name))}</td>"
        + "".join(f"<td>{_number(splits[split][when].get(name))}</td>" for split, when in columns) + "</tr>"
        for name in names
    )  # fmt: skip
    return f'<h2>Metrics</h2><div class="card plot"><table class="numbers"><tr><th>metric</th>{head}</tr>{rows}</table></div>'


def _by_label(split: str, outcome: Line) -> str:
    """A row a label, a type of entity or a tag: which share of those found is right, and which share of the true ones was found."""
    if not outcome.get("labels"):
        return ""
    counted = "number" if outcome["type"] == "tokens" else "rows"
    head = "".join(f"<th>{name}</th>" for name in ("label", "precision", "recall", "F1", counted))
    rows = "".join(
        f"<tr><td>{escape(one['label'])}</td>" + "".join(f"<td>{one[name]:.4f}</td>" for name in ("precision", "recall", "f1"))
        + f"<td>{one['support']:,}</td></tr>" for one in outcome["labels"]
    )  # fmt: skip
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in outcome["notes"])
    table = f'<table class="numbers"><tr>{head}</tr>{rows}</table>'
    return f'<h2>Labels, {split}</h2><div class="card plot">{table}{notes}</div>'


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".replace("-", "−")


def _samples(lines: Sequence[Line]) -> str:
    """A card a prompt: the last answer, what was expected, and the earlier answers behind a click."""
    if not lines:
        return ""
    count = max(len(line["samples"]) for line in lines)  # a run that goes on may ask more, or less
    cards = [
        _card(
            [(line["phase"], line["step"], line["samples"][number]) for line in lines if number < len(line["samples"])]
        )
        for number in range(count)
    ]
    return '<h2>Sample generations</h2><div class="samples">' + "".join(cards) + "</div>"


def _card(answers: Sequence[tuple[str, int, Line]]) -> str:
    *earlier, (phase, step, last) = answers
    rows = _answer(f"{phase} {step}", last["answer"])
    if last["expected"] is not None:
        rows += _answer("expected", last["expected"], "expected")
    before = "".join(_answer(f"{phase} {step}", sample["answer"]) for phase, step, sample in earlier)
    behind = (
        f'<details><summary>{len(earlier)} earlier</summary><div class="answers">{before}</div></details>'
        if before
        else ""
    )
    asked = f'<p class="asked">{escape(last["prompt"])}</p>'
    return f'<article class="card">{asked}<div class="answers">{rows}</div>{behind}</article>'


def _answer(when: str, text: str, kind: str = "") -> str:
    return f"<span>{escape(when)}</span><pre class={kind or 'answer'}>{escape(text) or '(nothing)'}</pre>"


def _settings(settings: Sequence[tuple[str, str, str]]) -> str:
    if not settings:
        return ""
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td><code>{escape(value)}</code></td>"
        f'<td class="default"><code>{escape(default)}</code></td></tr>'
        for name, value, default in settings
    )
    head = "<tr><th>setting</th><th>value</th><th>default</th></tr>"
    return f'<h2>Settings that differ from the defaults</h2><div class="card"><table>{head}{rows}</table></div>'
