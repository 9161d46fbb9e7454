"""Runs the cells of the study that are not done yet: first those that choose each method's rate, then those that are reported.

    python benchmarks/study/study.py --data DATA/bbb --model FOLDER
        [--methods lora bidora …] [--records 100 300] [--passes 2000] [--minutes 60]

DATA is what data_sets.py wrote. Each finished run is a line of results/NAME.jsonl, in the order in which they were done. A run that
is there is not done again, and one that was under way when the process ended is begun anew. --minutes ends it before a run that
would begin later. tables.py makes the tables of the lines.

    python benchmarks/study/study.py --data DATA/bbb --model FOLDER --again bidora 1e-3 100 2 [--passes 2000]

runs one cell again beside the line that is there, and fails where a score differs in any digit.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import cells
import data_sets
from cells import ALL, FINAL, PASSES, RATES, TUNING, Cell, Method
from data_sets import DATA, DataSet

from bidora_jax.config import Config, parse_call
from bidora_jax.machine.version import __version__
from bidora_jax.runs.sharing import Shared
from bidora_jax.sweeps import judging, training

RESULTS = Path(__file__).parent / "results"
Line = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--methods", nargs="+", default=list(cells.METHODS), choices=ALL)
    parser.add_argument("--records", nargs="+", type=int, help="numbers of records, of those of the data set")
    parser.add_argument("--passes", type=int, default=PASSES, help="the budget: records that a gradient is taken on")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--again", nargs=4, metavar=("METHOD", "RATE", "RECORDS", "SEED"))
    options = parser.parse_args()
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    study = Study(options.data, options.model)
    if options.again:
        method, rate, records, seed = options.again
        again(study, Cell(study.name, method, float(rate), int(records), int(seed), options.passes))
        return
    sizes = options.records or study.data.sizes
    ends = time.monotonic() + 60 * options.minutes
    done = study.done
    for cell in wanted(study, options.methods, sizes, options.passes):
        if time.monotonic() > ends:
            print("out of time")
            return
        if cell in done:
            continue
        line = study.run(cell)
        study.keep(line)
        shown = {name: f"{line['judge'][name]:.4f}" for name in (study.data.metric, "loss")}
        print(f"{cell.method} {cell.rate:g} {cell.records} seed {cell.seed}  {shown}  {line['wall']:.1f} s", flush=True)


def wanted(study: "Study", methods: Sequence[str], sizes: Sequence[int], passes: int) -> Iterator[Cell]:
    """All cells, in their order. The rates of the second half are known when the first half is done."""
    yield from cells.tuning(study.name, [*methods], [*sizes], passes)
    for method in methods:
        for records in sizes:
            rate = best_rate(study.lines, study.data, method, records, passes)
            yield from cells.final(study.name, method, rate, records, passes)


def best_rate(lines: Sequence[Line], data: DataSet, method: str, records: int, passes: int) -> float:
    """By the mean score of the tuning seeds on the judging records; of equal ones, that of the least loss."""
    runs = cells.of_table(lines, method, records, passes, TUNING)

    def mean(rate: float, metric: str) -> float:
        return fmean(line["judge"][metric] for line in runs if line["rate"] == rate)

    found = {line["rate"] for line in runs}
    assert found == {*RATES}, f"{method}, {records}, {passes}: {sorted(found)} of {RATES}"
    return max(sorted(found), key=lambda rate: (mean(rate, data.metric), -mean(rate, "loss")))


class Study:
    """One data set with its model: what is done, and how a cell is run."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model, self.name = folder, model, folder.name
        self.data = DATA[folder.name]
        self.pool = data_sets.read(folder / "pool.csv")
        self.file = RESULTS / f"{folder.name}.jsonl"
        text = self.file.read_text(encoding="utf-8") if self.file.is_file() else ""
        self.lines: list[Line] = [json.loads(line) for line in text.splitlines()]
        self.shared = Shared()

    @property
    def done(self) -> set[Cell]:
        return {Cell(*(line[name] for name in Cell._fields)) for line in self.lines}

    def keep(self, line: Line) -> None:
        self.lines.append(line)
        self.file.parent.mkdir(exist_ok=True)
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")

    def run(self, cell: Cell) -> Line:
        """Trains and scores; the test records only where the rate was chosen without them."""
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            data_sets.write(folder / "train.csv", self.drawn(cell), self.data)
            config = self.config(cell, folder / "train.csv")
            run = folder / "run"
            with training.logged(run):
                training.train(config, run, self.shared)
                scores = {"train": self.scores(run, folder / "train.csv", config)}
                for part in ("judge", *(("test",) if cell.seed in FINAL else ())):
                    scores[part] = self.scores(run, self.folder / f"{part}.csv", config)
            metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        trained = {
            "steps": cell.steps,
            "tokens": sum(line.get("tokens", 0) for line in metrics),
            "seconds": metrics[-1]["seconds"],
        }
        return {**cell._asdict(), **scores, **trained, "wall": time.monotonic() - began, "version": __version__}

    def scores(self, run: Path, file: Path, config: Config) -> dict[str, float]:
        """A correlation with predictions that are all the same is 0 here: there is none."""
        found = judging.scores(run, str(file), config.data, self.shared)
        metric = self.data.metric
        return {"loss": found["loss"], metric: found.get(metric, 0.0) if metric == "pearson" else found[metric]}

    def drawn(self, cell: Cell) -> list[data_sets.Row]:
        """The records of the cell, as many of each label as the pool has, the same ones for every method."""
        rows = random.Random(f"{cell.seed}").sample(self.pool, cell.records)
        return rows[: round(len(rows) * (1 - ALL[cell.method].without))]

    def config(self, cell: Cell, file: Path) -> Config:
        method: Method = ALL[cell.method]
        search, retrain = cell.steps
        settings = {
            "model.path": self.model, "model.dtype": "float32", "adapter.rank": 8, "adapter.alpha": 16.0,
            "data.train_file": str(file), "data.batch_size": cells.BATCH,
            "data.max_length": self.data.lengths[-1], "data.padded_lengths": self.data.lengths,
            "inner.learning_rate": cell.rate, "search.steps": search, "seed": cell.seed, "report": False,
        }  # fmt: skip
        if self.data.type:
            *texts, label = data_sets.columns(self.data)
            labelled = {"data.text_columns": tuple(texts), "data.label_columns": (label,)}
            settings |= {"task.type": self.data.type} | labelled
        if method.settings["adapter.method"] == "bidora":
            settings |= {"data.val_fraction": 0.2} | ({"retrain.steps": retrain} if retrain else {})
        return parse_call(None, settings | method.settings)[0]


def again(study: Study, cell: Cell) -> None:
    [kept] = [line for line in study.lines if all(line[name] == getattr(cell, name) for name in Cell._fields)]
    found = json.loads(json.dumps(study.run(cell)))
    same = {part: found[part] == kept[part] for part in ("train", "judge", "test") if part in kept}
    print(json.dumps({"kept": kept, "again": found, "same": same}, indent=2))
    if not all(same.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
