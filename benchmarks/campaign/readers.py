"""Damaged files as files.py damages them, read in one process: thousands in minutes, of more kinds, and no training.

    python benchmarks/campaign/readers.py [--cases 5000] [--seed 0] [--only labels.csv …] [--keep FOLDER]

A reader may return, or refuse by an InputError. All else is wrong, and so is what takes over 8 seconds. Prints the first of each
fault, and counts. Exit status 1 where there is one. What kills a process, or opens files elsewhere, files.py finds.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import mutations
from mutations import Mutation

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
SECONDS = 8.0
ENCODERS = ("bert", "modernbert", "deberta-v3", "esm-2")


class Kind(NamedTuple):
    """A file in the folder, how it is damaged, and what reads it there."""

    file: str
    mutation: Mutation
    read: Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="readers-") as scratch:
        folder = Path(scratch) / "whole"
        write(folder)
        os.chdir(folder)
        chosen = [kind for kind in kinds(folder) if not options.only or kind.file in options.only]
        wrong = campaign(chosen, options.seed, options.cases, options.keep)
        os.chdir("/")
    sys.exit(int(wrong > 0))


def campaign(chosen: list[Kind], seed: int, cases: int, keep: Path | None) -> int:
    """How many were wrong."""
    whole = {kind.file: Path(kind.file).read_bytes() for kind in chosen}
    for kind in chosen:
        assert (said := outcome(kind)[0]) == "read", f"{kind.file}, whole: {said}"
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    for number in range(cases):
        kind = chosen[number % len(chosen)]
        damaged = kind.mutation(whole[kind.file], random.Random(f"{seed} {number}"))
        Path(kind.file).write_bytes(damaged)
        said, took = outcome(kind)
        Path(kind.file).write_bytes(whole[kind.file])
        said = f"took {took:.1f} s" if took > SECONDS else said
        counts[said if said in ("read", "refused") else "wrong"] += 1
        if said not in ("read", "refused", *seen):
            seen.add(said)
            print(f"case {number}, {kind.file}: {said}", flush=True)
            if keep:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{number}-{Path(kind.file).name}").write_bytes(damaged)
    print(f"{cases} damaged files: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    return counts["wrong"]


def outcome(kind: Kind) -> tuple[str, float]:
    """read, refused, or the error and where it was raised; and the seconds."""
    from bidora_jax.errors import InputError

    began = time.monotonic()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            kind.read()
        said = "read"
    except InputError:
        said = "refused"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        said = f"{type(error).__name__} at {', '.join(f'{Path(one.filename).name}:{one.lineno}' for one in frames)}"
        said += f": {error!s:.200}"
    return said, time.monotonic() - began


def write(folder: Path) -> None:
    """What whole.py writes; competitions, encoders, and records of every task."""
    import whole

    whole.main(folder)
    import competitions
    import encoder_folders
    import yaml

    (folder / "settings.json").write_text(json.dumps(yaml.safe_load((folder / "settings.yaml").read_text())))
    for name, values, shown in (("words", ["yes", "no", "maybe"], "no"), ("numbers", ["0.5", "1.25", "3", "7"], "1")):
        (folder / name).mkdir()
        competitions.simple(folder / name, values, shown)
    for kind in ENCODERS:
        encoder_folders.write(folder / kind, kind)
    rows = [{"text": f"text {i}", "pair": f"of {i}", "label": ("good", "bad")[i % 2], "number": i / 2, "marks": ["a", "b"][: i % 3]}
            for i in range(12)]  # fmt: skip
    lines(folder / "labels.jsonl", rows)
    with (folder / "labels.csv").open("w") as out:
        writer = csv.DictWriter(out, ["text", "pair", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    lines(folder / "tags.jsonl", [{"words": ["one", "two", f"{i}"], "tags": ["O", "B-x", "I-x"]} for i in range(10)])
    lines(
        folder / "turns.jsonl",
        [{"messages": turns(("system", "s"), ("user", f"a cube {i}"), ("assistant", "x"))} for i in range(10)],
    )
    lines(folder / "shared.jsonl", [{"conversations": [{"from": "human", "value": f"a {i}"}, {"from": "gpt", "value": "b"}]}
                                    for i in range(10)])  # fmt: skip


def turns(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in said]


def lines(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def kinds(folder: Path) -> Iterator[Kind]:
    from bidora_jax import config, kaggle, show_data
    from bidora_jax.models.formats import hf_config, peft
    from bidora_jax.reporting import history

    def data(file: str, *argv: str) -> Callable[[], object]:
        return lambda: show_data.main(["--model", "model", "--data.val-fraction", "0.2", "-t", file, *argv])

    def labels(file: str, task: str, column: str, *texts: str) -> Callable[[], object]:
        named = [part for text in texts for part in ("--data.text-columns", text)]
        return data(file, "--task.type", task, "--data.label-columns", column, *named)

    def plan(name: str) -> Callable[[], object]:
        return lambda: kaggle.main([name, "--plan", "--model", "model"])

    def adapter() -> object:
        return peft.load_adapter(folder / "adapter", hf_config.read_decoder(folder / "model"))

    for suffix, mutation in (("yaml", mutations.of_bytes), ("json", mutations.of_json)):
        yield Kind(
            f"settings.{suffix}", mutation, lambda suffix=suffix: config.parse_train(["--config", f"settings.{suffix}"])
        )
    yield Kind("model/config.json", mutations.of_json, lambda: hf_config.read_decoder(folder / "model"))
    for kind in ENCODERS:
        yield Kind(f"{kind}/config.json", mutations.of_json, lambda kind=kind: hf_config.read_config(folder / kind))
    yield Kind("model/tokenizer.json", mutations.of_json, data("train.jsonl"))
    yield Kind("model/tokenizer_config.json", mutations.of_template, data("train.jsonl"))
    yield Kind("adapter/adapter_config.json", mutations.of_json, adapter)
    yield Kind("adapter/adapter_model.safetensors", mutations.of_safetensors, adapter)
    for file in ("train.jsonl", "turns.jsonl", "shared.jsonl"):
        yield Kind(file, mutations.of_lines, data(file))
    yield Kind("train.csv", mutations.of_bytes, data("train.csv"))
    yield Kind("train.json", mutations.of_json, data("train.json"))
    yield Kind("train.parquet", mutations.of_bytes, data("train.parquet"))
    for task, column in (("classification", "label"), ("regression", "number"), ("multilabel", "marks")):
        yield Kind("labels.jsonl", mutations.of_lines, labels("labels.jsonl", task, column, "text"))
    yield Kind("labels.csv", mutations.of_bytes, labels("labels.csv", "classification", "label", "text", "pair"))
    yield Kind("tags.jsonl", mutations.of_lines, data("tags.jsonl", "--task.type", "tokens"))
    for name in ("words", "numbers"):
        for part in ("train", "test", "sample_submission"):
            yield Kind(f"{name}/{part}.csv", mutations.of_bytes, plan(name))
    yield Kind("run/metrics.jsonl", mutations.of_lines, lambda: history.read(folder / "run"))
    yield Kind("run/run.json", mutations.of_json, lambda: history.read(folder / "run"))


if __name__ == "__main__":
    main()
