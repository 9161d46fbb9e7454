"""The whole configuration of a run: frozen dataclasses composed, read strictly from a file and the command line.

A file in configs/ has `get_config() -> ml_collections.ConfigDict` and sets only what differs from the defaults; a run
folder's config.json is read the same way. Command-line values are set last. `outer.learning_rate` is a field reference,
inner.learning_rate × outer.multiplier, so it follows both wherever they are set, until it is set itself.
"""

import copy
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from ml_collections import ConfigDict

from bidora_jax import flags
from bidora_jax.config_files import as_type, given_by, read_given, refuse_idle, set_given, set_unset, tree_of
from bidora_jax.data.settings import DataConfig
from bidora_jax.errors import TEXTS, InputError, program
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.formats import peft_config
from bidora_jax.models.settings import MeshConfig, ModelConfig
from bidora_jax.tasks.settings import TaskConfig
from bidora_jax.training.settings import (
    OptimizerConfig,
    OuterConfig,
    RetrainConfig,
    SamplesConfig,
    SearchConfig,
)


@dataclass(frozen=True)
class Config:
    """One training run."""

    output_dir: str = "runs/default"
    """The run folder: config.json, metrics.jsonl, checkpoints/, adapter/, report/, merged/."""
    seed: int = 0
    """Seed of the split, the data order, the direction's start and the dropout."""
    log_every: int = 10
    """Seconds between two printed lines where the output is no terminal."""
    eval_every: float = 50.0
    """Steps between two passes over the validation split, or below 1 a share of an epoch; 0: at the end of a phase only."""
    save_every: float = 100.0
    """Steps between two checkpoints, or below 1 a share of an epoch; 0: at the end of a phase only."""
    keep: int = 2
    """Checkpoints kept."""
    merged: bool = False
    """Write merged/, the model with the adapter folded in, at the end."""
    max_new_tokens: int = 128
    """Longest answer to a record of data.test_file, in tokens."""
    compilation_cache: str = "auto"
    """Folder where compiled programs are kept for later runs; auto: the user's cache folder, empty: nowhere."""
    memory_limit: str = ""
    """Memory that auto settings, --auto and --dry-run reckon with, such as 8GB; empty: what the device has."""
    report: bool = True
    """Write report/ at the end: curves as PNG, a page, a summary. python -m bidora_jax.report writes it at any time."""
    tensorboard: bool = False
    """Write event files for TensorBoard to tensorboard/ of the run folder; needs the package tensorboardX."""
    wandb: str = ""
    """Project of Weights & Biases to send the curves to; needs the package wandb, logged in or WANDB_MODE=offline."""
    model: ModelConfig = field(default_factory=ModelConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    inner: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The direction's optimiser; for lora and dora, the only one."""
    outer: OuterConfig = field(default_factory=OuterConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)


@dataclass(frozen=True)
class TrainArguments(Config):
    """Fine-tune a language model with BiDoRA, DoRA or LoRA."""

    config: str = ""
    """Configuration file: configs/NAME.py, configs/NAME.py:ARGUMENT, a .yaml file, or the config.json of a run folder."""
    resume: bool = False
    """Go on from the last checkpoint of output_dir."""
    dry_run: bool = False
    """Compile, run the first steps of each phase on real batches, print memory and time of the whole run, and write nothing."""
    auto: bool = False
    """Fit quantisation, batch, accumulation, length and remat to the device. What the command line sets stays."""
    distributed: str = "off"
    """Several processes, on one machine or many, each with its devices: HOST:PORT,N,I names where process 0 listens, how many there
    are and which this is; auto asks SLURM, Open MPI, Kubernetes or the TPU's metadata."""


@dataclass(frozen=True)
class DataArguments(Config):
    """Show what a run will train on: records with their trained tokens, lengths, steps, padding. Reads no weights."""

    config: str = ""
    """Configuration file: configs/NAME.py, or the config.json of a run folder."""
    records: int = 3
    """Records of train to show."""


def parse_train(argv: Sequence[str]) -> tuple[Config, TrainArguments]:
    """The configuration that a `train` command line means, and its arguments: `resume` and `distributed` are no settings."""
    config, arguments = _parse(TrainArguments, argv, "train")
    if arguments.resume and "output_dir" not in named(argv):
        config = dataclasses.replace(config, output_dir=_folder_of(arguments.config, config.output_dir))
    return config, arguments


def _folder_of(path: str, output_dir: str) -> str:
    """The run folder that a resumed run's own config.json lies in: it may have been moved or copied since it was written."""
    folder = Path(path).expanduser().parent
    own = Path(path).name == "config.json" and (folder / "checkpoints").is_dir()
    if not own or folder.resolve() == Path(output_dir).expanduser().resolve():
        return output_dir
    print(
        f"resumes in {folder}, where its config.json lies, and not in {output_dir}, where it was begun", file=sys.stderr
    )
    return str(folder)


def parse_data(argv: Sequence[str]) -> tuple[Config, int]:
    """The configuration that a `data` command line means, and the number of records to show."""
    config, arguments = _parse(DataArguments, argv, "data")
    return config, arguments.records


def _parse(schema: Any, argv: Sequence[str], command: str) -> tuple[Config, Any]:
    if {"--help", "-h"} & set(argv):
        print(flags.help_text(command, (schema.__doc__ or "").strip()))
        raise SystemExit(0)
    import tyro

    argv = ["--help" if arg == "--help-all" else arg for arg in flags.written_out(argv)]
    flags.check(schema, argv, command)
    path = _flag_value(argv, "config")
    given = read_given(path) if path else ConfigDict()
    sources = {name: _flag_value(argv, f"adapter.{name}") for name in ("preset", "path")}
    refuse_idle(sources["preset"], given, path)
    set_unset(given, {"adapter": {name: value for name, value in sources.items() if value}}, over=True)
    tree = tree_of(Config, given)
    default = schema(**_fields(resolve(tree)), config=path)
    arguments = tyro.cli(schema, args=list(argv), default=default, prog=program(command))
    given_names = named(argv)
    for name, value in leaves(arguments):
        section, _, leaf = name.rpartition(".")
        if name in given_names or f"{section}.no_{leaf}".strip(".") in given_names:
            is_adapter = name == "adapter.path" and value
            _set(tree, name, str(peft_config.meant(value)) if is_adapter else value)
    return resolve(tree), arguments


def parse_call(config: Any, settings: Mapping[str, Any]) -> tuple[Config, frozenset[str]]:
    """The configuration that a call of `finetune` means, and the dotted names of the settings that it gives.

    `config` is a path, a ConfigDict, a Config, a dictionary or None, and stays as it is; the settings are set over it.
    """
    chosen = flags.by_setting(Config, settings, "finetune")
    given = _given(config)
    refuse_idle(str(chosen.get("adapter.preset", "")), given, "the configuration")
    for name, value in chosen.items():
        set_given(given, name, value)
    return resolve(tree_of(Config, given)), frozenset(chosen)


def _given(config: Any) -> ConfigDict:
    if config is None:
        return ConfigDict()
    if isinstance(config, str | os.PathLike):
        return read_given(os.path.expanduser(config))
    if isinstance(config, ConfigDict):
        return copy.deepcopy(config)
    values = dataclasses.asdict(config) if isinstance(config, Config) else config
    if not isinstance(values, Mapping):
        raise InputError(
            "the configuration of finetune is a path, a ConfigDict, a Config or a dictionary of settings, found "
            f"{type(config).__name__}; rows to train on are given as train="
        )
    sections = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    given = given_by(sections)
    for name, value in flags.by_setting(
        Config, {k: v for k, v in values.items() if k not in sections}, "finetune"
    ).items():
        set_given(given, name, value)
    return given


def named(argv: Sequence[str]) -> frozenset[str]:
    """Dotted names of the fields and switches that a command line sets."""
    return frozenset(_name(arg) for arg in flags.written_out(argv) if arg.startswith("--"))


def settled(new: Config, old: Config, names: Sequence[str]) -> Config:
    """`new`, in which each field of `names` ("section.field") that is "auto" takes its value from `old`."""
    for name in names:
        section, leaf = name.split(".")
        part = getattr(new, section)
        if getattr(part, leaf) == "auto":
            part = dataclasses.replace(part, **{leaf: getattr(getattr(old, section), leaf)})
            new = dataclasses.replace(new, **{section: part})
    return new


def defaults() -> ConfigDict:
    """All defaults as a ConfigDict, with its field reference in place."""
    return tree_of(Config, ConfigDict())


def read(path: str) -> ConfigDict:
    """The defaults, overlaid with a configuration file. Raises InputError for values that don't fit the schema."""
    return tree_of(Config, read_given(path))


def resolve(tree: ConfigDict) -> Config:
    """The dataclasses that a full ConfigDict stands for."""

    def build(schema: type, values: ConfigDict) -> Any:
        parts = {}
        for item in dataclasses.fields(schema):
            kind = get_type_hints(schema)[item.name]
            value = values[item.name]
            found = build(kind, value) if isinstance(value, ConfigDict) else as_type(kind, value)
            parts[item.name] = found if item.name in TEXTS else at_home(found)
        return schema(**parts)

    return build(Config, tree)


def at_home(value: Any) -> Any:
    """A path, or several, with the home folder written out; any other value as it is."""
    if isinstance(value, tuple):
        return tuple(map(at_home, value))
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of every field of nested dataclasses."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def to_json(config: Config) -> str:
    """The resolved configuration as the text of a config.json."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def differences(old: Config, new: Config, ignored: tuple[str, ...] = ()) -> list[str]:
    """Lines 'name: old → new' for every differing field outside of `ignored`."""
    before = dict(leaves(old))
    return [f"{k}: {before[k]!r} → {v!r}" for k, v in leaves(new) if k not in ignored and before[k] != v]


def _fields(config: Config) -> dict[str, Any]:
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}


def _flag_value(argv: Sequence[str], flag: str) -> str:
    for position, arg in enumerate(argv):
        if arg.startswith(f"--{flag}="):
            return arg.partition("=")[2]
        if arg == f"--{flag}":
            if position + 1 == len(argv):
                raise InputError(f"--{flag} needs a value")
            return argv[position + 1]
    return ""


def _name(arg: str) -> str:
    return arg.lstrip("-").partition("=")[0].replace("-", "_")


def _set(tree: Any, name: str, value: Any) -> None:
    *sections, leaf = name.split(".")
    for section in sections:
        if section not in tree:
            return
        tree = tree[section]
    if leaf in tree:
        with tree.ignore_type():  # a list may stand over a text
            tree[leaf] = value
