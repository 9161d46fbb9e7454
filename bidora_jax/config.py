"""The whole configuration of a run: frozen dataclasses composed, read strictly from a file and the command line.

A file in configs/ has `get_config() -> ml_collections.ConfigDict` and sets only what differs from the defaults; a run
folder's config.json is read the same way. Command-line values are set last. `outer.learning_rate` is a field reference,
inner.learning_rate × outer.multiplier, so it follows both wherever they are set, until it is set itself.
"""

import dataclasses
import inspect
import json
import runpy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict

from bidora_jax.errors import InputError, did_you_mean, listing, program
from bidora_jax.models import peft_config
from bidora_jax.models.settings import PRESETS, AdapterConfig, ModelConfig
from bidora_jax.training.settings import (
    DataConfig,
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
    eval_every: int = 50
    """Steps between two passes over the validation split; 0 evaluates at the end of a phase only."""
    save_every: int = 100
    """Steps between two checkpoints; 0 saves at the end of a phase only."""
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
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    inner: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The direction's optimiser; for lora and dora, the only one."""
    outer: OuterConfig = field(default_factory=OuterConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)


@dataclass(frozen=True)
class TrainArguments(Config):
    """Fine-tune a language model with BiDoRA, DoRA or LoRA."""

    config: str = ""
    """Configuration file: configs/NAME.py, configs/NAME.py:ARGUMENT, or the config.json of a run folder."""
    resume: bool = False
    """Go on from the last checkpoint of output_dir."""
    dry_run: bool = False
    """Compile, run the first steps of each phase on real batches, print memory and time of the whole run, and write nothing."""
    auto: bool = False
    """Fit quantisation, batch, accumulation, length and remat to the device. What the command line sets stays."""


@dataclass(frozen=True)
class DataArguments(Config):
    """Show what a run will train on: records with their trained tokens, lengths, steps, padding. Reads no weights."""

    config: str = ""
    """Configuration file: configs/NAME.py, or the config.json of a run folder."""
    records: int = 3
    """Records of train to show."""


def parse_train(argv: Sequence[str]) -> tuple[Config, bool]:
    """The configuration that a `train` command line means, and whether to resume."""
    config, arguments = _parse(TrainArguments, argv, "train")
    return config, arguments.resume


def parse_data(argv: Sequence[str]) -> tuple[Config, int]:
    """The configuration that a `data` command line means, and the number of records to show."""
    config, arguments = _parse(DataArguments, argv, "data")
    return config, arguments.records


def _parse(schema: Any, argv: Sequence[str], command: str) -> tuple[Config, Any]:
    import tyro

    path = _flag_value(argv, "config")
    given = _given(path) if path else ConfigDict()
    sources = {name: _flag_value(argv, f"adapter.{name}") for name in ("preset", "path")}
    _refuse_idle(sources["preset"], given, path)
    _set_unset(given, {"adapter": {name: value for name, value in sources.items() if value}}, over=True)
    tree = _tree(given)
    default = schema(**_fields(resolve(tree)), config=path)
    arguments = tyro.cli(schema, args=list(argv), default=default, prog=program(command))
    given_names = named(argv)
    for name, value in leaves(arguments):
        section, _, leaf = name.rpartition(".")
        if name in given_names or f"{section}.no_{leaf}".strip(".") in given_names:
            _set(tree, name, value)
    return resolve(tree), arguments


def named(argv: Sequence[str]) -> frozenset[str]:
    """Dotted names of the fields and switches that a command line sets."""
    return frozenset(_name(arg) for arg in argv if arg.startswith("--"))


def settled(new: Config, old: Config, names: Sequence[str]) -> Config:
    """`new` with the values of `old` for those of the fields `names` ("section.field") that are "auto" in it."""
    for name in names:
        section, leaf = name.split(".")
        part = getattr(new, section)
        if getattr(part, leaf) == "auto":
            part = dataclasses.replace(part, **{leaf: getattr(getattr(old, section), leaf)})
            new = dataclasses.replace(new, **{section: part})
    return new


def defaults() -> ConfigDict:
    """All defaults as a ConfigDict, with its field reference in place."""
    return _tree(ConfigDict())


def read(path: str) -> ConfigDict:
    """Defaults with the values of a configuration file over them. Raises InputError for whatever doesn't fit the schema."""
    return _tree(_given(path))


def _given(path: str) -> ConfigDict:
    """What a configuration file sets; of FILE.py:ARGUMENT, what its get_config(ARGUMENT) gives."""
    name, _, argument = path.rpartition(".py:") if ".py:" in path else (path, "", "")
    file = Path(f"{name}.py" if argument else name)
    if not file.is_file():
        raise InputError(f"configuration file {path} does not exist; configs/quickstart.py is an example of one")
    if file.suffix == ".json":
        return _read_json(file)
    if file.suffix != ".py":
        raise InputError(f"configuration file {path}: expected a .py file with get_config() or a config.json")
    namespace = runpy.run_path(str(file))
    if "get_config" not in namespace:
        raise InputError(f"configuration file {path} has no function get_config()")
    if argument and not inspect.signature(namespace["get_config"]).parameters:
        raise InputError(
            f"configuration file {file}: get_config() takes no argument, found {argument!r} after the colon"
        )
    try:
        values = namespace["get_config"](*filter(None, [argument]))
    except ValueError as error:
        if "dots in field names" not in str(error):
            raise
        raise InputError(
            f'{path}: {error}; write patterns with dots as pairs: [["layers.0.self_attn.q_proj", 4]]'
        ) from None
    if not isinstance(values, ConfigDict):
        raise InputError(
            f"{path}: get_config() must return an ml_collections.ConfigDict, found {type(values).__name__}"
        )
    return values


def resolve(tree: ConfigDict) -> Config:
    """The dataclasses that a full ConfigDict stands for."""

    def build(schema: type, values: ConfigDict) -> Any:
        parts = {}
        for item in dataclasses.fields(schema):
            kind = get_type_hints(schema)[item.name]
            value = values[item.name]
            parts[item.name] = build(kind, value) if isinstance(value, ConfigDict) else _as(kind, value)
        return schema(**parts)

    return build(Config, tree)


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


def _read_json(file: Path) -> ConfigDict:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"configuration file {file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"configuration file {file}: expected a JSON object, found {type(values).__name__}")
    return ConfigDict(
        {
            name: {key: _pairs(value) for key, value in section.items()} if isinstance(section, dict) else section
            for name, section in values.items()
        }
    )


def _pairs(value: Any) -> Any:
    """A mapping as a list of pairs: a ConfigDict would take it for a section, and refuse dots in its keys."""
    return tuple(value.items()) if isinstance(value, dict | ConfigDict) else value


def _tree(given: ConfigDict) -> ConfigDict:
    """Defaults overlaid with `given`; references of `given` stay references. A preset and an adapter to start from stand
    between the two."""
    problems: list[str] = []
    _fill(given)
    tree = _overlay(Config, given, "", problems)
    if problems:
        raise InputError(f"the configuration does not fit its schema:\n{listing(problems)}")
    if "outer" not in given or "learning_rate" not in given.outer:
        tree.outer.learning_rate = tree.inner.get_ref("learning_rate") * tree.outer.get_ref("multiplier")
    return tree


def _fill(given: ConfigDict) -> None:
    """Sets what a preset and an adapter folder say of all that `given` does not set itself."""
    adapter = given.get("adapter")
    if not isinstance(adapter, ConfigDict):
        return
    preset, folder = str(adapter.get("preset", "")), adapter.get("path", "")
    _set_unset(given, PRESETS.get(preset, {}))
    if isinstance(folder, str) and folder:
        found = dataclasses.asdict(peft_config.read(Path(folder)))
        unsaid = {"preset", "path", "init", "norm"} | ({"method"} if found["method"] == "dora" else set())
        _set_unset(given, {"adapter": {name: value for name, value in found.items() if name not in unsaid}})


def _refuse_idle(preset: str, given: ConfigDict, path: str) -> None:
    """A preset of the command line that the file leaves nothing to fill, such as the config.json of a run."""
    names = [f"{section}.{name}" for section, fields in PRESETS.get(preset, {}).items() for name in fields]
    already = isinstance(part := given.get("adapter"), ConfigDict) and part.get("preset") == preset
    if names and not already and all(_sets(given, name) for name in names):
        raise InputError(
            f"--adapter.preset {preset} would change nothing: {path} sets {', '.join(names)} itself; take them out of the "
            "file, or set them on the command line"
        )


def _sets(given: ConfigDict, name: str) -> bool:
    section, leaf = name.split(".")
    part = given.get(section)
    return isinstance(part, ConfigDict) and leaf in part


def _set_unset(given: ConfigDict, values: dict[str, dict[str, Any]], *, over: bool = False) -> None:
    """Sets values by section where `given` has none, or `over` what it has."""
    with given.unlocked():
        for section, fields in values.items():
            if fields and section not in given:
                given[section] = ConfigDict()
            part = given.get(section)
            if isinstance(part, ConfigDict):
                chosen = {name: value for name, value in fields.items() if over or name not in part}
                with part.ignore_type():
                    part.update(chosen)


def _overlay(schema: Any, given: ConfigDict, prefix: str, problems: list[str]) -> ConfigDict:
    hints, names = get_type_hints(schema), [item.name for item in dataclasses.fields(schema)]
    problems += [f"unknown key {prefix}{key}{did_you_mean(key, names)}" for key in given if key not in names]
    tree = ConfigDict()
    default = schema()
    for name in names:
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            section = given[name] if name in given else ConfigDict()
            if not isinstance(section, ConfigDict):
                problems.append(f"{prefix}{name}: expected a section, found {section!r}")
                continue
            tree[name] = _overlay(kind, section, f"{prefix}{name}.", problems)
        elif name not in given:
            tree[name] = getattr(default, name)
        elif not _fits(kind, _pairs(given[name])):
            problems.append(f"{prefix}{name}: expected {_describe(kind)}, found {_pairs(given[name])!r}")
        elif isinstance(given[name], ConfigDict):
            tree[name] = _pairs(given[name])
        elif kind is float:
            value: Any = given[name]
            tree[name] = given.get_ref(name) if isinstance(value, float) else float(value)
        else:
            tree[name] = given.get_ref(name)
    return tree


def _fits(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(kind, UnionType):
        return any(_fits(option, value) for option in get_args(kind))
    if get_origin(kind) is tuple:
        items = get_args(kind)
        if not isinstance(value, list | tuple):
            return False
        if items[-1] is ...:
            return all(_fits(items[0], item) for item in value)
        return len(items) == len(value) and all(map(_fits, items, value))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _as(kind: Any, value: Any) -> Any:
    """The value with its lists as tuples and its numbers as the schema has them."""
    if isinstance(value, list | tuple):
        kind = next(
            option for option in (get_args(kind) if isinstance(kind, UnionType) else [kind]) if option is not str
        )
        items = get_args(kind)
        return tuple(_as(items[0] if items[-1] is ... else items[at], item) for at, item in enumerate(value))
    return float(value) if kind is float else value


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    if isinstance(kind, UnionType):
        return " or ".join(map(_describe, get_args(kind)))
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if get_origin(item) is tuple:
            return f"a mapping from a pattern to {_describe(get_args(item)[1])}"
        return f"a list of {item.__name__}"
    return {float: "a number", int: "an integer", bool: "true or false", str: "a text"}.get(kind, str(kind))


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
