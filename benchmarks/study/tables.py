"""Makes the tables of the study from its lines.

    python benchmarks/study/tables.py > benchmarks/study/tables.md

One table a data set, number of records and budget (passes: records that a gradient is taken on): each method at the rate that the
judging records chose, over the seeds that did not choose it. Then each method against the others over all of these, seed by seed,
which share their records: the mean difference, its 95 % interval by the bootstrap over seeds within each table, Wilcoxon's
signed-rank test, and its p times Holm's factor for the number of methods that are compared. A difference is of the data set's own
metric; more is better everywhere.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from cells import ALL, FINAL, RATES, TUNING
from data_sets import DATA
from scipy.stats import wilcoxon

RESULTS = Path(__file__).parent / "results"
DRAWS = 10_000
Line = dict[str, Any]
Table = tuple[str, int, int]
"""A data set, a number of records, and passes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", nargs="+", default=["lora", "dora"], choices=ALL)
    options = parser.parse_args()
    lines = [line for file in sorted(RESULTS.glob("*.jsonl")) for line in of_file(file)]
    print(
        "# Which method: all runs\n\nMade by `python benchmarks/study/tables.py`, which says what stands in a column. "
        "Seconds are of the machine that ran a line, and of what else ran on it."
    )
    tables = sorted({table_of(line) for line in lines})
    for table in tables:
        print("\n".join(one_table(lines, table)))
    for against in options.against:
        print("\n".join(compared(lines, tables, against)))


def of_file(file: Path) -> list[Line]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def table_of(line: Line) -> Table:
    return line["data"], line["records"], line["passes"]


def one_table(lines: Sequence[Line], table: Table) -> Iterator[str]:
    data, records, passes = table
    metric = DATA[data].metric
    runs = [line for line in lines if table_of(line) == table]
    unfinished = {}
    yield f"\n## {data}, {records} records, {passes:,} passes: {metric} on test\n"
    yield "| method | rate | test | sd | by seed | judge | loss: train | test | gap | tokens | seconds |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for method in ALL:
        own = [line for line in runs if line["method"] == method]
        final = sorted((line for line in own if line["seed"] in FINAL), key=lambda line: line["seed"])
        if own and len(final) < len(FINAL):
            unfinished[method] = len(own)
        if len(final) < len(FINAL):
            continue
        [rate] = {line["rate"] for line in final}
        test = [line["test"][metric] for line in final]
        each = " ".join(f"{one:.3f}" for one in test)
        losses = [fmean(line[part]["loss"] for line in final) for part in ("train", "test")]
        judged = fmean(line["judge"][metric] for line in final)
        yield (
            f"| {method} | {rate:g}{edge(rate)} | {fmean(test):.4f} | {stdev(test):.4f} | {each} | "
            f"{judged:.4f} | {losses[0]:.4f} | {losses[1]:.4f} | {losses[1] - losses[0]:.4f} | "
            f"{fmean(line['tokens'] for line in final):,.0f} | {fmean(line['seconds'] for line in final):.1f} |"
        )
    if unfinished:
        yield f"\nNot finished: {', '.join(f'{method} ({count} runs)' for method, count in unfinished.items())}."
    yield "\nBy rate, the mean of the tuning seeds on the judging records:\n"
    yield f"| method | {' | '.join(f'{rate:g}' for rate in RATES)} |"
    yield f"| --- |{' --- |' * len(RATES)}"
    for method in ALL:
        cells = [tuned(runs, method, rate, metric) for rate in RATES]
        if any(cells):
            yield f"| {method} | {' | '.join(cells)} |"


def edge(rate: float) -> str:
    """A mark at a rate beyond which none was tried."""
    return " (the lowest)" if rate == RATES[0] else " (the highest)" if rate == RATES[-1] else ""


def tuned(runs: Sequence[Line], method: str, rate: float, metric: str) -> str:
    found = [
        line["judge"][metric]
        for line in runs
        if (line["method"], line["rate"]) == (method, rate) and line["seed"] in TUNING
    ]
    return f"{fmean(found):.4f}" if len(found) == len(TUNING) else ""


def compared(lines: Sequence[Line], tables: Sequence[Table], against: str) -> Iterator[str]:
    """Each method minus this one, over the tables that have both."""
    rows: list[tuple[str, int, np.ndarray]] = []
    for method in ALL:
        found = [pairs for table in tables if (pairs := differences(lines, table, method, against)) is not None]
        if found and method != against:
            rows.append((method, len(found), np.stack(found)))
    if not rows:
        return
    yield f"\n## Each method minus {against}, seed by seed\n"
    yield "| method | tables | ahead, behind | mean difference | 95 % interval | p | Holm |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    p = [1.0 if not pairs.any() else float(wilcoxon(pairs.ravel()).pvalue) for _, _, pairs in rows]
    for (method, count, pairs), own, corrected in zip(rows, p, holm(p), strict=True):
        low, high = bootstrap(pairs)
        means = pairs.mean(axis=1)
        yield (
            f"| {method} | {count} | {(means > 0).sum()}, {(means < 0).sum()} | {pairs.mean():+.4f} | {low:+.4f} to {high:+.4f} | "
            f"{own:.3g} | {corrected:.3g} |"
        )


def differences(lines: Sequence[Line], table: Table, method: str, against: str) -> np.ndarray | None:
    """Of the test metric, by seed; None where a seed is missing."""
    metric = DATA[table[0]].metric
    scores = {
        (line["method"], line["seed"]): line["test"][metric]
        for line in lines if table_of(line) == table and "test" in line
    }  # fmt: skip
    pairs = [(scores.get((method, seed)), scores.get((against, seed))) for seed in FINAL]
    if any(one is None for pair in pairs for one in pair):
        return None
    return np.array([own - other for own, other in pairs])


def bootstrap(pairs: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean, the seeds drawn anew within each table (row)."""
    drawn = np.random.default_rng(0).integers(pairs.shape[1], size=(DRAWS, *pairs.shape))
    means = np.take_along_axis(np.broadcast_to(pairs, drawn.shape), drawn, axis=2).mean(axis=(1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number, by Holm's steps."""
    order, found, highest = np.argsort(p), [0.0] * len(p), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min((len(p) - rank) * p[place], 1.0))
        found[place] = highest
    return found


if __name__ == "__main__":
    main()
