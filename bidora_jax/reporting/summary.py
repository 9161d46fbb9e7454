"""The numbers of a run in one dictionary, which is written to summary.json and printed as a table."""

import math
import statistics
from collections.abc import Callable
from typing import Any

from bidora_jax.reporting.history import History, Line

Summary = dict[str, Any]


def summarise(history: History) -> Summary:
    """Losses in nats per token, or of a classifier per record; times in seconds, memory in bytes. None: the run did not write it.

    train_loss is the mean over the last tenth of a phase's steps, validation_loss that of its last evaluation; best_step is
    the step of the search that validated best, by the loss or by the metric of the fact `criterion`: None where the last is kept.
    """
    facts, lines = history.facts, history.lines
    criterion = facts.get("criterion", {"name": "loss", "higher_is_better": False})
    measure, sign = f"evaluation_{criterion['name']}", -1 if criterion["higher_is_better"] else 1
    chosen_from = [] if facts.get("last_step_kept") else history.of(history.phases[0])
    measured = [line for line in chosen_from if line.get(measure) is not None]
    best = min(measured, key=lambda line: sign * line[measure], default={})
    return {
        "finished": bool(facts.get("finished")),
        "started": facts.get("started"),
        "device": facts.get("device"),
        "validation_loss": facts.get("result_loss", _last(lines, "evaluation_loss")),
        "validation_accuracy": facts.get("result_accuracy", _last(lines, "evaluation_accuracy")),
        "validation_before": facts.get("validation_before", {}),
        "test": facts.get("test"),
        "best_step": best.get("step"),
        "best_validation_loss": best.get("evaluation_loss"),
        "best_by": criterion["name"],
        "best_value": best.get(measure),
        "labelled": history.labelled,
        "metrics": _metrics(history),
        "exact_matches": facts.get("exact_matches"),
        "tokens": sum(line.get("tokens", 0) for line in lines),
        "seconds": _last(lines, "seconds"),
        "tokens_per_second": _median(lines, "tokens_per_second"),
        "peak_memory": facts.get("peak_memory", {}),
        "parameters": _parameters(facts.get("parameters", {})),
        "records": facts.get("records", {}),
        "phases": {phase: _phase(history, phase) for phase in history.phases},
    }


UNITS = ("loss", "tokens", "records")
"""Scores that are no metrics."""


def _metrics(history: History) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics of a classifier before training and after, by split."""
    if not history.labelled:
        return {}
    facts, found = history.facts, {}
    last = {name: _last(history.lines, f"evaluation_{name}") for name in history.metrics}
    result = {name.removeprefix("result_"): value for name, value in facts.items() if name.startswith("result_")}
    validation = {"before": facts.get("validation_before", {}), "after": result or last}
    for split, scores in (("validation", validation), ("test", facts.get("test") or {"before": {}, "after": {}})):
        measured = history.outcomes.get(split, {"metrics": {}})["metrics"]
        both = {
            when: {name: value for name, value in one.items() if name not in UNITS and value is not None}
            for when, one in (("before", scores["before"]), ("after", {**measured, **scores["after"]}))
        }
        if any(both.values()):
            found[split] = both
    return found


def _phase(history: History, phase: str) -> Summary:
    lines = history.of(phase)
    tail = [line["train_loss"] for line in lines[-max(len(lines) // 10, 1) :] if line.get("train_loss") is not None]
    return {
        "steps": lines[-1]["step"],
        "train_loss": statistics.fmean(tail) if tail else None,
        "validation_loss": _last(lines, "evaluation_loss"),
        "tokens": sum(line.get("tokens", 0) for line in lines),
        "tokens_per_second": _median(lines, "tokens_per_second"),
    }


def _parameters(groups: dict[str, int]) -> Summary:
    """The groups with their sum and its share of all."""
    if not groups:
        return {}
    trainable = sum(number for name, number in groups.items() if name != "frozen")
    return groups | {"trainable": trainable, "trainable_share": trainable / (trainable + groups["frozen"])}


def _last(lines: list[Line], name: str) -> Any:
    return next((line[name] for line in reversed(lines) if line.get(name) is not None), None)


def _median(lines: list[Line], name: str) -> float | None:
    found = [line[name] for line in lines if line.get(name) is not None]
    return statistics.median(found) if found else None


def rows(summary: Summary) -> list[tuple[str, str]]:
    """The summary for people, as names and values; a value that is not known is left out."""
    parameters, memory = summary["parameters"], summary["peak_memory"]
    found = change_rows(summary)
    if summary["best_step"] is not None:
        found.append(
            ("best step of the search", f"{summary['best_step']} ({summary['best_by']} {summary['best_value']:.4f})")
        )
    for phase, numbers in summary["phases"].items():
        loss = _number(numbers["train_loss"], "{:.4f}") or "unknown"
        found.append((phase, f"{numbers['steps']:,} steps, training loss {loss}"))
    if matches := summary["exact_matches"]:
        found.append(("exact matches", f"{matches['after']} of {matches['of']} (before {matches['before']})"))
    found += [
        ("tokens", f"{summary['tokens']:,}"),
        ("training time", duration(summary["seconds"])),
        ("speed", _number(summary["tokens_per_second"], "{:,.0f} tokens/s")),
        ("peak memory", ", ".join(f"{used / 2**30:.2f} GiB {where}" for where, used in memory.items())),
        ("trainable parameters", parameters
         and f"{parameters['trainable']:,}, {parameters['trainable_share']:.3%} of all"),
    ]  # fmt: skip
    found += [(name, summary.get(name) or "") for name in ("adapter", "merged", "report")]
    return [(name, value) for name, value in found if value]


def change_rows(summary: Summary) -> list[tuple[str, str]]:
    """What training changed, as names and values: before → after, on each split that there is, of the loss with its perplexity and
    the accuracy, or of a classifier of the loss and its metrics."""
    before = summary["validation_before"]
    after = {"loss": summary["validation_loss"], "accuracy": summary["validation_accuracy"]}
    test = summary["test"] or {"before": {}, "after": {}}
    trained_on = "; retrain trains on this split too" if "retrain" in summary["phases"] else ""
    changes = []
    for split, one, other, remark in (
        ("validation", before, after, trained_on),
        ("test", test["before"], test["after"], ""),
    ):
        forms = {"loss": loss_in_words, "accuracy": "{:.1%} of the tokens".format}
        if summary["labelled"]:
            measured = summary["metrics"].get(split, {"before": {}, "after": {}})
            one, other = {**one, **measured["before"]}, {**other, **measured["after"]}
            forms = dict.fromkeys(["loss", *measured["after"]], "{:.4f}".format)
        changes += [
            (f"{split} {name}", _change(one.get(name), other.get(name), form), remark) for name, form in forms.items()
        ]
    return [(name, change + remark) for name, change, remark in changes if change]


def _change(before: float | None, after: float | None, form: Callable[[float], str]) -> str:
    """before → after; one of them where the other is not known."""
    return " → ".join(form(value) for value in (before, after) if value is not None)


def loss_in_words(loss: float) -> str:
    """A loss with its perplexity, e to the power of it."""
    return f"{loss:.4f} (perplexity {math.exp(min(loss, 700.0)):.4g})"


def show(summary: Summary) -> None:
    """Prints the summary as a table on stdout; away from a terminal no path is folded."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        box=box.ROUNDED, show_header=False, title="run finished" if summary["finished"] else "run not finished"
    )
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for row in rows(summary):
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(80, *(len(value) + 32 for _, value in rows(summary))))
    console.print(table, markup=False, highlight=False)


def duration(seconds: float | None) -> str:
    """12 s, 3 min 20 s, 2 h 5 min; nothing for None."""
    if seconds is None:
        return ""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
