"""What movement.py and hypergradients.py train: records of the study, or a configuration file."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import data_sets
from cells import Cell
from study import RESULTS, Study

from bidora_jax.config import Config, parse_call

Settings = dict[str, Any]
Line = dict[str, Any]


class Case(NamedTuple):
    name: str
    """Of the data set or the file."""
    config: Callable[[Path, str, int, Settings], Config]
    """(a folder for its records, method, seed, settings) to the configuration of a run."""


def kept(kind: str) -> list[Line]:
    """All lines of results/KIND/."""
    return [json.loads(line) for file in sorted((RESULTS / kind).glob("*.jsonl")) for line in file.open()]


def keep_missing(kind: str, name: str, wanted: Sequence[Line], run: Callable[[Line], Line]) -> Iterator[Line]:
    """Runs what has no line in results/KIND/NAME.jsonl yet, keeps each line and yields it."""
    done = [line for line in kept(kind) if line["data"] == name]
    for settings in wanted:
        if any(all(line[key] == value for key, value in settings.items()) for line in done):
            continue
        line = {"data": name, **settings, **run(settings)}
        file = RESULTS / kind / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        yield line


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, help="a data set of data_sets.py, with --model")
    made.add_argument("--model")
    made.add_argument("--config", help="instead of --data, a configuration such as configs/quickstart.py")
    made.add_argument("--records", type=int, default=300)
    made.add_argument("--rate", type=float, default=1e-3)
    made.add_argument("--seeds", nargs="+", type=int, default=[2, 3, 4])
    return made


def asked(options: argparse.Namespace) -> Case:
    common = {"inner.learning_rate": options.rate, "report": False, "merged": False}
    if options.config:

        def of_file(folder: Path, method: str, seed: int, settings: Settings) -> Config:
            own = {"adapter.method": method, "seed": seed, "data.test_file": ""}
            return parse_call(options.config, common | own | settings)[0]

        return Case(Path(options.config).stem, of_file)
    study = Study(options.data, options.model)

    def of_records(folder: Path, method: str, seed: int, settings: Settings) -> Config:
        cell = Cell(study.name, method, options.rate, options.records, seed)
        data_sets.write(folder / "train.csv", study.drawn(cell), study.data)
        return parse_call(study.config(cell, folder / "train.csv"), common | settings)[0]

    return Case(study.name, of_records)
