"""Reads a configuration from configs/*.py, from a run's config.json, and from overrides, strictly.

An unknown key, a wrong type and a preset without effect are refused; the message says what was expected, and names the nearest
key. Presets and the settings of an adapter folder fill in what is left unset.
"""

import dataclasses
import inspect
import os
import re
import reprlib
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict

from bidora_jax import strict_json
from bidora_jax.errors import InputError, did_you_mean, listing
from bidora_jax.models.adapters.settings import PRESETS
from bidora_jax.models.formats import peft_config

UNIONS = (Union, UnionType)
"""Where a union comes from: `int | Literal["auto"]` is of the first kind before Python 3.14, `str | int` of the second."""


def read_given(path: str) -> ConfigDict:
    """The values that a configuration file sets; for FILE.py:ARGUMENT, those that its get_config(ARGUMENT) returns."""
    name, _, argument = path.rpartition(".py:") if ".py:" in path else (path, "", "")
    file = Path(f"{name}.py" if argument else name)
    if not file.is_file():
        raise InputError(f"configuration file {path} does not exist; configs/quickstart.py is an example of one")
    if file.suffix in (".json", ".yaml", ".yml"):
        return _read_values(file)
    if file.suffix != ".py":
        raise InputError(
            f"configuration file {path}: expected a .py file with get_config(), a .yaml file or a config.json"
        )
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


def _read_values(file: Path) -> ConfigDict:
    """The sections of a JSON or YAML file."""
    kind = "JSON" if file.suffix == ".json" else "YAML"
    try:
        text = file.read_text(encoding="utf-8")
        values = strict_json.loads(text) if kind == "JSON" else _parsed_yaml(text)
    except ValueError as error:
        raise InputError(f"configuration file {file} is not {kind}: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"configuration file {file}: expected a {kind} object, found {type(values).__name__}")
    return given_by(values)


def given_by(values: Mapping[Any, Any]) -> ConfigDict:
    """The sections of a dictionary. InputError for a key that can't be the name of a setting."""
    problems = [*_unfit_keys(values, "")]
    for name, section in values.items():
        if isinstance(section, Mapping):
            problems += _unfit_keys(section, f"{name}.")
    if problems:
        raise InputError(f"the configuration does not fit its schema:\n{listing(problems)}")
    return ConfigDict(
        {
            name: {key: _pairs(value) for key, value in section.items()} if isinstance(section, Mapping) else section
            for name, section in values.items()
        }
    )


def _unfit_keys(values: Mapping[Any, Any], prefix: str) -> Iterator[str]:
    for key in values:
        if not isinstance(key, str):
            yield f"{prefix}{_short(key)}: expected a name as the key, found {type(key).__name__}"
        elif "." in key:
            section, _, leaf = key.partition(".")
            meant = "" if prefix else f"; a setting stands in its section, {section:.60}: {{{leaf:.60}: …}}"
            yield f"unknown key {prefix}{_short(key)}{meant}"
        elif hasattr(object, key):  # no ConfigDict takes these
            yield f"unknown key {prefix}{key}"


def set_given(given: ConfigDict, name: str, value: Any) -> None:
    """Sets what a program gives under a dotted name: a path may be a Path, and a number one of numpy."""
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    value = _pairs(value.item() if getattr(value, "ndim", None) == 0 else value)
    section, _, leaf = name.rpartition(".")
    if section:
        set_unset(given, {section: {leaf: value}}, over=True)
        return
    with given.unlocked(), given.ignore_type():
        given[leaf] = value


def _parsed_yaml(text: str) -> Any:
    """YAML with the words of YAML 1.2: 2e-4 is a number, and no and off are words. ValueError for what is none."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads plain values only, and each key of an object once."""

        def construct_mapping(self, node, deep=False):
            return _once(
                [
                    (self.construct_object(key, deep=True), self.construct_object(value, deep=True))
                    for key, value in node.value
                ]
            )

    left = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"}
    Loader.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in forms if tag not in left]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|false|False)$"), list("tTfF"))
    number = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, TypeError) as error:  # TypeError: a list as a key
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """The object of these pairs. ValueError for a key that is there twice: one of its values would be lost."""
    keys = [key for key, _ in pairs]
    twice = sorted({str(key) for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is there twice")
    return dict(pairs)


def _pairs(value: Any) -> Any:
    """A mapping as a list of pairs: a ConfigDict would take it for a section, and refuse dots in its keys."""
    return tuple(value.items()) if isinstance(value, dict | ConfigDict) else value


def _short(value: Any) -> str:
    """A value in a message. Ten lines of YAML, whose lists name each other, have a repr of gigabytes."""
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxlist, shown.maxtuple = 2, 8, 8
    shown.maxstring, shown.maxlong, shown.maxother = 200, 200, 200
    return shown.repr(value)


def tree_of(schema: Any, given: ConfigDict) -> ConfigDict:
    """The defaults of `schema`, overlaid with `given`; field references of `given` stay references.

    The values of a preset and of an adapter folder come over the defaults and under `given`."""
    problems: list[str] = []
    _fill(given)
    tree = _overlay(schema, given, "", problems)
    if problems:
        raise InputError(f"the configuration does not fit its schema:\n{listing(problems)}")
    if "outer" not in given or "learning_rate" not in given.outer:
        tree.outer.learning_rate = tree.inner.get_ref("learning_rate") * tree.outer.get_ref("multiplier")
    return tree


def _fill(given: ConfigDict) -> None:
    """Fills in the values of the preset and of the adapter folder that `given` leaves unset."""
    adapter = given.get("adapter")
    if not isinstance(adapter, ConfigDict):
        return
    preset, folder = str(adapter.get("preset", "")), adapter.get("path", "")
    set_unset(given, PRESETS.get(preset, {}))
    if isinstance(folder, str) and folder:
        found = dataclasses.asdict(peft_config.read(peft_config.meant(folder)))
        set_unset(given, {"adapter": {"path": str(peft_config.meant(folder))}}, over=True)
        unsaid = {"preset", "path", "init", "norm"} | ({"method"} if found["method"] == "dora" else set())
        set_unset(given, {"adapter": {name: value for name, value in found.items() if name not in unsaid}})


def refuse_idle(preset: str, given: ConfigDict, path: str) -> None:
    """Refuses a preset on the command line if the file (a run's config.json, say) sets all of the preset's fields already."""
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


def set_unset(given: ConfigDict, values: dict[str, dict[str, Any]], *, over: bool = False) -> None:
    """Sets values by section: those that `given` lacks, or with `over` all of them."""
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
                problems.append(f"{prefix}{name}: expected a section, found {_short(section)}")
                continue
            tree[name] = _overlay(kind, section, f"{prefix}{name}.", problems)
        elif name not in given:
            tree[name] = getattr(default, name)
        elif not _fits(kind, _pairs(given[name])):
            problems.append(f"{prefix}{name}: expected {_describe(kind)}, found {_short(_pairs(given[name]))}")
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
    if get_origin(kind) in UNIONS:
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


def as_type(kind: Any, value: Any) -> Any:
    """The value with its lists as tuples, and a whole number as a float where the schema has a float."""
    if isinstance(value, list | tuple):
        kind = next(
            option for option in (get_args(kind) if get_origin(kind) in UNIONS else [kind]) if option is not str
        )
        items = get_args(kind)
        return tuple(as_type(items[0] if items[-1] is ... else items[at], item) for at, item in enumerate(value))
    return float(value) if kind is float else value


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    if get_origin(kind) in UNIONS:
        return " or ".join(map(_describe, get_args(kind)))
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if get_origin(item) is tuple:
            return f"a mapping from a pattern to {_describe(get_args(item)[1])}"
        return f"a list of {item.__name__}"
    return {float: "a number", int: "an integer", bool: "true or false", str: "a text"}.get(kind, str(kind))
