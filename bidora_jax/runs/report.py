"""The report of a run, from what the run wrote down: report.html, pictures, summary.json. Reads no model."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidora_jax.config import Config, leaves, read, resolve
from bidora_jax.machine.files import write_whole

if TYPE_CHECKING:
    from bidora_jax.reporting.history import History
    from bidora_jax.reporting.summary import Summary


def write(run: Path, output: Path) -> "Summary":
    """Writes the files of the report, each of them whole or not at all; returns the summary."""
    from bidora_jax.reporting import charts, history, outcome_charts, page, style

    past = history.read(run)
    config = _config(run)
    found = _summary(run, past) | {"report": str(output / "report.html")}
    made = charts.all_charts(past) | outcome_charts.all_charts(past)
    pictures = {name: (title, style.svg(figure, title)) for name, (title, figure) in made.items()}
    for name, (title, figure) in charts.narrow_charts(past).items():
        pictures[name + page.NARROW] = (title, style.svg(figure, title))
    text = page.render(
        run.absolute().name, _about(config, found), found, _tiles(found), pictures, past,
        [] if config is None else _changed_settings(config), _notes(run, past),
    )  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    for name, (title, figure) in made.items():
        write_whole(output / f"{name}.png", style.png(figure, title))
    write_whole(output / "summary.json", (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode())
    write_whole(output / "report.html", text.encode())
    return found


def summarise(run: Path) -> "Summary":
    """The summary alone."""
    from bidora_jax.reporting import history

    return _summary(run, history.read(run))


def _summary(run: Path, past: "History") -> "Summary":
    from bidora_jax.reporting import summary

    folders = {name: str(run / name) for name in ("adapter", "merged") if (run / name).is_dir()}
    return {"run": str(run)} | summary.summarise(past) | folders


def _config(run: Path) -> Config | None:
    """The configuration of the run; None where the file is gone."""
    file = run / "config.json"
    return resolve(read(str(file))) if file.is_file() else None


def _changed_settings(config: Config) -> list[tuple[str, str, str]]:
    """(name, value, default) of every setting that is not at its default. outer.learning_rate has the default of its reference."""
    usual = dict(leaves(Config())) | {"outer.learning_rate": config.inner.learning_rate * config.outer.multiplier}
    return [(name, _as_text(value), _as_text(usual[name])) for name, value in leaves(config) if value != usual[name]]


def _as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(_as_text(item) for item in value) or "not set"
    return "not set" if value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def _about(config: Config | None, found: "Summary") -> str:
    parts = [] if config is None else [
        f"{config.adapter.method}, rank {config.adapter.rank}, of {config.model.path}"
        + ("" if config.model.quantization == "none" else f" in {config.model.quantization}")
    ]  # fmt: skip
    parts += [f"on {found['device']}"] if found["device"] else []
    parts += [f"started {found['started'].replace('T', ' ')}"] if found["started"] else []
    return " · ".join(parts)


def _tiles(found: "Summary") -> list[tuple[str, str, str]]:
    """(name, value, small print) of the numbers on top of the page; a number that is not known has no tile."""
    from bidora_jax.reporting.outcome_charts import in_words
    from bidora_jax.reporting.summary import duration

    tiles: list[tuple[str, str, str]] = []
    when = "of the result" if found["finished"] else "at the last evaluation"
    test = found["test"] or {"before": {}, "after": {}}
    for name, loss, before in (
        ("Validation loss", found["validation_loss"], found["validation_before"].get("loss")),
        ("Test loss", test["after"].get("loss"), test["before"].get("loss")),
    ):
        if loss is not None:
            tiles.append((name, f"{loss:.4f}", f"{when}, {before:.4f} before" if before is not None else when))
    for split, scores in found["metrics"].items():
        if (name := _shown(found, scores["after"])) is not None:
            was = f"{when}, {scores['before'][name]:.4f} before" if name in scores["before"] else when
            tiles.append((f"{split.capitalize()} {in_words(name)}", f"{scores['after'][name]:.4f}", was))
    if found["best_step"] is not None:
        tiles.append(
            ("Best step", f"{found['best_step']:,}", f"of the search, {found['best_by']} {found['best_value']:.4f}")
        )
    if matches := found["exact_matches"]:
        tiles.append(("Exact matches", f"{matches['after']} / {matches['of']}", f"{matches['before']} before training"))
    steps = {phase: numbers["steps"] for phase, numbers in found["phases"].items()}
    apart = " + ".join(f"{phase} {number:,}" for phase, number in steps.items()) if len(steps) > 1 else ""
    tiles.append(("Steps", f"{sum(steps.values()):,}", apart))
    short, full = _three_digits(found["tokens"]), f"{found['tokens']:,}"
    tiles.append(("Tokens", short, full if full != short else ""))
    if records := {split: number for split, number in found["records"].items() if number}:
        tiles.append(
            (
                "Records",
                f"{records.pop('train', 0):,}",
                ", ".join(["to train on", *(f"{n:,} {s}" for s, n in records.items())]),
            )
        )
    if found["seconds"] is not None:
        tiles.append(("Training time", duration(found["seconds"]), ""))
    if found["tokens_per_second"] is not None:
        tiles.append(("Tokens per second", f"{found['tokens_per_second']:,.0f}", "median over the steps"))
    for where, used in found["peak_memory"].items():
        tiles.append(("Peak memory", f"{used / 2**30:.2f} GiB", f"on the {where}"))
    if parameters := found["parameters"]:
        tiles.append(
            (
                "Trained parameters",
                _three_digits(parameters["trainable"]),
                f"{parameters['trainable_share']:.3%} of all",
            )
        )
    return tiles


def _shown(found: "Summary", scores: dict[str, float]) -> str | None:
    """The metric that has a tile: the one by which the best step is chosen, or else the first."""
    return found["best_by"] if found["best_by"] in scores else next(iter(scores), None)


def _three_digits(number: int) -> str:
    """1,234 as it is; from 10,000 on three digits and a letter."""
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if number >= limit:
            return f"{number / (limit if letter != 'k' else 1e3):.3g}{letter}"
    return f"{number:,}"


def _notes(run: Path, past: "History") -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in past.facts.get("versions", {}).items())
    again = shlex.join(["--config", str(run / "config.json"), "--output-dir", f"{run}-again"])
    return [
        f"Made of what lies in {run.absolute()}.",
        *([versions] if versions else []),
        *([f"The same run once more: python -m bidora_jax.train {again}"] if (run / "config.json").is_file() else []),
    ]
