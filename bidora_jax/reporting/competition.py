"""report.html of a competition: who wins, and what a competitor looks at before he submits. One file that needs no other."""

import math
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from bidora_jax.reporting import competition_charts, page, style
from bidora_jax.reporting.history import Line
from bidora_jax.reporting.outcome_charts import in_words
from bidora_jax.reporting.summary import duration

ENCODER, BLEND = "encoder", "blend"
CALLED = {
    "encoder": "the encoder",
    "tf-idf": "TF-IDF",
    "majority": "the majority",
    "mean": "the average",
    "blend": "the blend",
}
METRICS = {"logloss": "log loss", "mcc": "MCC", "rmsle": "RMSLE", "mcrmse": "MCRMSE"}
WORST = {
    "binary": "Wrong rows, the surest first", "multiclass": "Wrong rows, the surest first",
    "multilabel": "Wrong labels, the surest first", "regression": "Rows that are furthest off",
    "ordinal": "Rows that are furthest off",
}  # fmt: skip


def render(outcome: Line) -> str:
    """The page. `outcome` is the JSON of a competition's outcome: plain values."""
    charts = {
        name: (title, style.svg(figure, title))
        for name, (title, figure) in competition_charts.all_charts(outcome).items()
    }
    said = verdict(outcome)
    return page.document(
        f"{outcome['name']}: {said}",
        [
            f"<header><h1>{escape(said)}</h1>{_paragraphs(_more(outcome))}</header>",
            '<dl class="tiles">' + "".join(page.tile(*one) for one in _tiles(outcome)) + "</dl>",
            _section(
                "Warnings",
                _list(outcome["leaks"], "No row of train is in test, no id and no column gives the target away."),
            ),
            '<div class="charts">' + "".join(map(_picture, charts.values())) + "</div>",
            _section("Scores", _scores(outcome)),
            _section(WORST[outcome["kind"]], _wrong(outcome)),
            _section("What the test set looks like", _shares(outcome)),
            _section("How to submit", _submit(outcome)),
            _section("What was guessed, and the flag that says otherwise", _guesses(outcome)),
            _section("Notes", _list(outcome["notes"])) if outcome["notes"] else "",
        ],
    )


# Who wins


def verdict(outcome: Line) -> str:
    """One sentence; also what the command prints."""
    scores, best = outcome["scores"], outcome["winner"]
    metric = METRICS.get(outcome["metric"], in_words(outcome["metric"]))
    if best is None:
        return f"No model has a score: the rows of train don't define {metric}"
    less = "" if outcome["higher_is_better"] else "; less is better"
    folds = len(scores[best]["folds"])
    others = [name for name in scores if name not in (best, BLEND) and scores[name]["mean"] is not None]
    beside = ", ".join(f"{_possessive(name)} {_number(scores[name]['mean'])}" for name in others)
    who = "The encoder wins: its" if best == ENCODER else f"The baseline wins: {_possessive(best)}"
    mean, sd = _number(scores[best]["mean"]), _number(scores[best]["sd"])
    return f"{who} mean {metric} over {folds} folds is {mean} (sd {sd}{less})" + (f", {beside}" if beside else "")


def _called(name: str) -> str:
    return CALLED.get(name, name)


def _possessive(name: str) -> str:
    return f"{_called(name)}'s"


def _first(text: str) -> str:
    """With a capital letter."""
    return text[:1].upper() + text[1:]


def _more(outcome: Line) -> list[str]:
    """What stands under the verdict."""
    scores, best = outcome["scores"], outcome["winner"]
    parts = []
    if best is not None and len(rest := [name for name in scores if name not in (best, BLEND)]):
        second = _second(outcome, rest)
        pairs = [
            (a, b) for a, b in zip(scores[best]["folds"], scores[second]["folds"], strict=True) if None not in (a, b)
        ]
        ahead = sum(a > b if outcome["higher_is_better"] else a < b for a, b in pairs)
        parts.append(f"{_first(_called(best))} is ahead of {_called(second)} in {ahead} of {len(pairs)} folds.")
    used = [f"{share:.0%} {name}" for name, share in outcome["weights"].items() if share]
    blend = scores.get(BLEND, {}).get("mean")
    reached = f"; it reaches {_number(blend)} out of fold" if blend is not None and len(used) > 1 else ""
    parts.append(f"{outcome['submission']} holds {' and '.join(used)}{reached}.")
    return [" ".join(parts), f"{outcome['name']} · {outcome['kind']} · {outcome['model']}"]


def _second(outcome: Line, names: Sequence[str]) -> str:
    """The best of the others."""
    sign = -1 if outcome["higher_is_better"] else 1
    means = {name: outcome["scores"][name]["mean"] for name in names}
    return min(names, key=lambda name: math.inf if means[name] is None else sign * means[name])


def _number(value: float | None) -> str:
    """Four significant digits at least of what is small, four decimals of the rest."""
    if value is None:
        return ""
    return (f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or not value else f"{value:.4g}").replace("-", "−")


def _tiles(outcome: Line) -> list[tuple[str, str, str]]:
    metric = METRICS.get(outcome["metric"], in_words(outcome["metric"]))
    tiles = [
        (
            _first(f"{_called(name).removeprefix('the ')} {metric}"),
            _number(one["mean"]),
            f"sd {_number(one['sd'])} over the folds",
        )
        for name, one in outcome["scores"].items()
        if one["mean"] is not None
    ]
    rows = outcome["rows"]
    return [
        *tiles,
        ("Rows", f"{rows['train']:,}", f"to train on, {rows['test']:,} to predict"),
        ("Time", duration(outcome["seconds"]), ""),
    ]


# Sections


def _section(title: str, body: str) -> str:
    return f'<h2>{escape(title)}</h2><div class="card plot">{body}</div>'


def _paragraphs(texts: Iterable[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def _list(lines: Sequence[str], none: str = "") -> str:
    if not lines:
        return f"<p>{escape(none)}</p>"
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _picture(chart: tuple[str, str]) -> str:
    title, svg = chart
    return f'<section class="card"><h3>{escape(title)}</h3><div class="plot">{svg}</div></section>'


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "") -> str:
    first = "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"
    rest = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="{kind}">{first}{rest}</table>'


def _scores(outcome: Line) -> str:
    count = max(len(one["folds"]) for one in outcome["scores"].values())
    rows = []
    for name, one in outcome["scores"].items():
        share = outcome["weights"].get(name)
        folds = [_number(score) or "–" for score in one["folds"]]
        rows.append(
            [name, *folds, _number(one["mean"]) or "–", _number(one["sd"]), "" if share is None else f"{share:.0%}"]
        )
    head = ["model", *(f"fold {fold + 1}" for fold in range(count)), "mean", "sd", "weight"]
    cuts = ", ".join(f"{cut:.4g}" for cut in outcome["cuts"])
    notes = ["A fold's score takes cuts and weights that the other folds' rows give."]
    notes += [f"Cuts of the submission, from all folds: {cuts}."] if cuts else []
    return _table(head, rows, "numbers") + "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _wrong(outcome: Line) -> str:
    if not outcome["wrong"]:
        return "<p>None: out of fold every row is right.</p>"
    values = outcome["kind"] in ("regression", "ordinal")
    rows = [
        (one["id"], one["truth"], one["found"], _number(one["sure"]) if values else f"{one['sure']:.3f}", one["text"])
        for one in outcome["wrong"]
    ]
    return _table(("id", "true", "found", "off by" if values else "probability", "text"), rows)


def _shares(outcome: Line) -> str:
    if outcome["kind"] == "regression":
        head = ("value", "split", "least", "a quarter below", "half below", "three quarters below", "greatest")
        rows = [
            (name, split, *map(_number, one[split]))
            for name, one in outcome["shares"].items()
            for split in ("train", "test")
        ]
        return _table(head, rows, "numbers") + '<p class="note">True in train, predicted for test.</p>'
    rows = [(name, f"{one['train'][0]:.1%}", f"{one['test'][0]:.1%}") for name, one in outcome["shares"].items()]
    return _table(("label", "of train", "predicted for test"), rows, "numbers")


def _submit(outcome: Line) -> str:
    name, file = outcome["name"], outcome["submission"]
    best = outcome["scores"].get(BLEND) or next(iter(outcome["scores"].values()))
    message = f"bidora_jax, {outcome['metric']} {_number(best['mean']) or 'not known'} out of fold"
    line = shlex.join(["kaggle", "competitions", "submit", "-c", name, "-f", file, "-m", message])
    said = f"{file} has one row for each of the {outcome['rows']['test']:,} rows of test. Upload it on the competition's page, or:"
    note = "After -c stands the competition's name in its address; here it is the folder's."
    return f'<p>{escape(said)}</p><pre>{escape(line)}</pre><p class="note">{escape(note)}</p>'


def _guesses(outcome: Line) -> str:
    if not outcome["guesses"]:
        return "<p>Nothing.</p>"
    return _table(("what", "found", "why", "flag"), [tuple(one[key] for key in ("what", "found", "reason", "flag"))
                                                     for one in outcome["guesses"]])  # fmt: skip
