"""The paper's figure: how far a run moves the magnitude and the direction of each layer, and the slope of one over the other.

    python benchmarks/study/movement.py --data DATA/stsb --model FOLDER [--methods lora dora bidora] [--rate 1e-3] [--steps 200]
    python benchmarks/study/movement.py --config configs/quickstart.py --rate 4e-3
    python benchmarks/study/movement.py

Each method takes as many steps in a phase, so that what moves is compared and not what it costs. A run is looked at as `analyze`
does, eight times in a phase. Its line goes to results/movement/NAME.jsonl, and one that is there is not done again. Then all lines
that there are become a table: the slope k of ΔM over ΔD by least squares, over the layers of one kind of module and over all, mean
and standard deviation of the seeds, and the correlation. BiDoRA's search and its final adapter, whose direction was trained anew,
are two rows. The paper has −8.04 for BiDoRA and −1.78 for DoRA, of query matrices.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import cases

from bidora_jax.runs.analysis import FINAL, analyze, fit
from bidora_jax.runs.sharing import Shared
from bidora_jax.sweeps import training

METHODS = ("lora", "dora", "bidora")
Line = dict[str, Any]


def main() -> None:
    parser = cases.parser(__doc__ or "")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    if options.data or options.config:
        case, shared = cases.asked(options), Shared()
        wanted = [
            {"method": method, "rate": options.rate, "steps": options.steps, "seed": seed}
            for method in options.methods for seed in options.seeds
        ]  # fmt: skip
        for line in cases.keep_missing(
            "movement",
            case.name,
            wanted,
            lambda own: {"fits": moved(case, options, own["method"], own["seed"], shared)},
        ):
            slopes = {scope: found["all"]["slope"] for scope, found in line["fits"].items()}
            print(line["method"], line["seed"], slopes, flush=True)
    print("\n".join(table(cases.kept("movement"))))


def moved(case: cases.Case, options: Any, method: str, seed: int, shared: Shared) -> dict[str, Any]:
    """{scope: {module, and 'all': slope, intercept, correlation, points}} of one run."""
    settings = {"search.steps": options.steps, "save_every": options.steps // 8, "keep": 50}
    if method == "bidora":
        settings["retrain.steps"] = options.steps
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        config = case.config(Path(scratch), method, seed, settings)
        with training.logged(run):
            training.train(config, run, shared)
        points = analyze(run)["points"]
    scopes = {phase: [point for point in points if point["phase"] == phase] for phase in ("search", "retrain")}
    scopes["final"] = last(points)
    return {scope: {name: fit(some) for name, some in by_module(found)} for scope, found in scopes.items() if found}


def last(points: Sequence[Line]) -> list[Line]:
    """Of the adapter that the run ended with: its own, or the last checkpoint where that is the same."""
    final = [point for point in points if point["checkpoint"] == FINAL]
    return final or [point for point in points if point["checkpoint"] == points[-1]["checkpoint"]]


def by_module(points: Sequence[Line]) -> Iterator[tuple[str, list[Line]]]:
    for module in dict.fromkeys(point["module"] for point in points):
        yield module, [point for point in points if point["module"] == module]
    yield "all", [*points]


def table(lines: Sequence[Line]) -> Iterator[str]:
    yield "| data | method, rate, steps | of | seeds | query: slope | correlation | all modules: slope | correlation |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["data"], line["method"], line["rate"], line["steps"]), []).append(line)
    for (data, method, rate, steps), found in groups.items():
        for scope in found[0]["fits"]:
            fits = [line["fits"][scope] for line in found]
            [query] = [module for module in fits[0] if module.endswith(("q_proj", "query"))]
            cells = [cell for module in (query, "all") for cell in measured([one[module] for one in fits])]
            yield f"| {data} | {method}, {rate:g}, {steps} | {scope} | {len(found)} | {' | '.join(cells)} |"


def measured(fits: Sequence[Line]) -> list[str]:
    slopes = [one["slope"] for one in fits]
    spread = f" (sd {stdev(slopes):.3g})" if len(slopes) > 1 else ""
    return [f"{fmean(slopes):+.3g}{spread}", f"{fmean(one['correlation'] for one in fits):+.2f}"]


if __name__ == "__main__":
    main()
