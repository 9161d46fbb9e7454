"""The short flags of `train` and `data`, their help, and what is said of a flag that there is none.

A short flag is another way to write the setting that it names: it is written out before anything reads the command line. They are
the ones that PEFT's examples, TRL, unsloth and the PyPI package bidora use.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_type_hints

from bidora_jax.errors import InputError, listing, program

TIME = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


class Short(NamedTuple):
    names: tuple[str, ...]
    setting: str
    """Dotted name in the configuration."""
    meaning: str


SHORT = (
    Short(("-m", "--model"), "model.path", "model: a folder, or a name on the Hugging Face hub"),
    Short(("-t", "--train-file"), "data.train_file", "records to train on: JSONL, CSV, Parquet, …"),
    Short(("-d", "--dataset"), "data.train_file", "the same, of a data set on the hub: ORG/NAME@SPLIT"),
    Short(
        ("-v", "--val-file"), "data.val_file", "validation records; or a share of the others: --data.val-fraction 0.2"
    ),
    Short(("-o", "--output"), "output_dir", "the run folder"),
    Short(
        ("--task",), "task.type", "classification, multilabel, regression or tokens; language_modeling without labels"
    ),
    Short(("--method",), "adapter.method", "bidora, dora or lora"),
    Short(("-r", "--rank"), "adapter.rank", "rank of the LoRA matrices A and B (the direction)"),
    Short(("--alpha",), "adapter.alpha", "their scale is alpha / rank"),
    Short(("-e", "--epochs"), "search.epochs", "passes over the training records"),
    Short(("-b", "--batch-size"), "data.batch_size", "records in a step"),
    Short(("--lr",), "inner.learning_rate", "learning rate of A and B"),
    Short(("--upper-lr-mult",), "outer.multiplier", "rate of the magnitude (one scale a row), in multiples of it"),
    Short(("--max-length",), "data.max_length", "tokens that a record may have"),
    Short(("--max-samples",), "data.max_samples", "at most this many training records"),
    Short(("--seed",), "seed", "of the split, the order, the start and the dropout"),
    Short(("--quantization",), "model.quantization", "none, int8 or nf4: the base in fewer bits"),
    Short(("--preset",), "adapter.preset", "adapter settings under one name"),
)
SWITCHES = {"--auto-hardware": "--auto", "--no-auto-hardware": "--no-auto"}
EXAMPLE = "-m Qwen/Qwen3-0.6B -t train.jsonl -v val.jsonl -o runs/mine"


def written_out(argv: Sequence[str]) -> list[str]:
    """The command line with each short flag as its setting's own. InputError for a setting that two flags give."""
    long = {name: one.setting for one in SHORT for name in one.names}
    found, given = [], {}
    for arg in argv:
        flag, equals, value = arg.partition("=")
        setting = long.get(flag) or flag.removeprefix("--").replace("-", "_")
        if flag in long or flag.startswith("--"):
            given.setdefault(setting, []).append(flag)
        own = "--" + long[flag].replace("_", "-") if flag in long else SWITCHES.get(flag, flag)
        found.append(own + equals + value)
    twice = {name: flags for name, flags in given.items() if len(flags) > 1 and any(flag in long for flag in flags)}
    if twice:
        raise InputError("\n".join(f"{' and '.join(flags)} both set {name}: give one" for name, flags in twice.items()))
    return found


def check(schema: Any, argv: Sequence[str], command: str) -> None:
    """InputError that names every flag of the written-out command line that the schema has not, and the nearest that it has."""
    known = _names(schema)
    plain = {name.replace("-", "_") for name in known}
    unknown = [
        arg.partition("=")[0]
        for arg in argv
        if arg.startswith("--") and arg.partition("=")[0].replace("-", "_") not in plain
    ]
    if unknown:
        spelt = [*known, *(name for one in SHORT for name in one.names if name.startswith("--"))]
        lines = [f"{flag}{_nearest(flag, spelt)}" for flag in unknown]
        raise InputError(
            f"{command} has no flag\n{listing(lines)}\n{program(command)} --help shows the usual ones, --help-all every setting"
        )


def by_setting(schema: Any, given: Mapping[str, Any], call: str) -> dict[str, Any]:
    """The keyword arguments of a Python call by dotted name; a short flag's long name is its name there, with underscores.

    InputError for names that there are not, each with the nearest, and for a setting that two names give.
    """
    short = {name[2:].replace("-", "_"): one.setting for one in SHORT for name in one.names if name.startswith("--")}
    dotted = [name[2:].replace("-", "_") for name in _names(schema) if "--no-" not in name and ".no-" not in name]
    unknown = [name for name in given if name not in short and name not in dotted]
    if unknown:
        lines = [f"{name}{_nearest(name, [*dotted, *short])}" for name in unknown]
        raise InputError(
            f"{call} has no setting\n{listing(lines)}\na short name is a keyword (lr=1e-3); a dotted one is given as "
            '**{"inner.learning_rate": 1e-3}'
        )
    names: dict[str, list[str]] = {}
    for name in given:
        names.setdefault(short.get(name, name), []).append(name)
    twice = [f"{' and '.join(both)} both set {name}: give one" for name, both in names.items() if len(both) > 1]
    if twice:
        raise InputError("\n".join(twice))
    return {short.get(name, name): value for name, value in given.items()}


def help_text(command: str, about: str) -> str:
    """The short help: one line a flag, and an example."""
    rows = [(", ".join(one.names), one.meaning) for one in SHORT]
    rows += {
        "train": [
            ("--auto-hardware", "fit quantisation, batch and length to the device (--auto)"),
            ("--dry-run", "say what the run takes in memory and time, and write nothing"),
            ("--resume", "go on from the last checkpoint of the run folder"),
        ]
    }.get(command, [])
    rows.append(("--config", "a file that sets any of them: .py, .json or .yaml"))
    width = max(len(flags) for flags, _ in rows)
    return "\n".join([
        f"usage: {program(command)} {EXAMPLE}", "", about, "",
        *(f"  {flags:<{width}}  {meaning}" for flags, meaning in rows), "",
        "These are short for settings of dotted names (-r is --adapter.rank). --help-all lists every setting with its default.",
    ])  # fmt: skip


def seconds(time: str) -> float | None:
    """Seconds of a time with its units, such as 1h30m, 2h or 90s; None of anything else, and of no time at all."""
    found = TIME.fullmatch(time.strip().lower())
    parts = found.groups() if found else ()
    return sum(float(part or 0) * unit for part, unit in zip(parts, (3600, 60, 1), strict=False)) or None


def _names(schema: Any, prefix: str = "--") -> list[str]:
    """Every flag of nested dataclasses, switches with their --no- form."""
    hints, found = get_type_hints(schema), ["--help", "--help-all"] if prefix == "--" else []
    for item in dataclasses.fields(schema):
        name, kind = item.name.replace("_", "-"), hints[item.name]
        if dataclasses.is_dataclass(kind):
            found += _names(kind, f"{prefix}{name}.")
        else:
            found += [f"{prefix}{name}", *([f"{prefix}no-{name}"] if kind is bool else [])]
    return found


def _nearest(flag: str, known: Sequence[str], count: int = 5) -> str:
    """The known flags that are written most like it, or whose last part is."""
    last = flag.lstrip("-").rpartition(".")[2]

    def alike(name: str) -> float:
        parts = (name.lstrip("-"), name.rpartition(".")[2].lstrip("-"))
        return max(difflib.SequenceMatcher(None, last, part).ratio() for part in parts)

    likeness = {name: alike(name) for name in known}
    near = sorted((name for name in known if likeness[name] >= 0.6), key=lambda name: -likeness[name])[:count]
    return f": did you mean {', '.join(near)}?" if near else ""
