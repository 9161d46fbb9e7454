"""What a sweep varies: each `--over` is an axis, and a point has a value on every axis.

    NAME log LOW HIGH       a number, equally likely on a logarithmic scale
    NAME uniform LOW HIGH   a number, equally likely
    NAME VALUE VALUE …      one of these

NAME is a dotted setting of `train`. A value is read as JSON has it, and as a text where the setting takes no such value.
"""

import itertools
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from bidora_jax.config import Config, leaves, parse_call
from bidora_jax.errors import InputError, did_you_mean

SCALES = ("log", "uniform")
HELD = {
    "output_dir": "each run has a folder of its own",
    "seed": "--seeds says how many there are",
    "data.val_file": "all points are judged on the same records",
    "data.val_fraction": "all points are judged on the same records",
    "data.test_file": "the test records are scored once, for the best point",
    "task.type": "all points are judged by the same metric",
}
"""Settings that no axis may have, and why."""


@dataclass(frozen=True)
class Axis:
    """One setting and the values that it may take."""

    name: str
    scale: Literal["choice", "log", "uniform"]
    labels: tuple[str, ...] = ()
    """Of a choice: its values as they were written."""
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    """Whether the numbers are whole ones."""

    @property
    def ends(self) -> tuple[Any, ...]:
        """All values of a choice, the two ends of a range."""
        return self.values if self.scale == "choice" else (self.low, self.high)

    def value(self, drawn: Any) -> Any:
        """What the setting is given where the sampler has drawn this label or number."""
        return self.values[self.labels.index(drawn)] if self.scale == "choice" else drawn


def written(over: Sequence[str] | Mapping[str, Any]) -> tuple[str, ...]:
    """The axes as the command line writes them; from Python also {name: ("log", 1e-5, 1e-3)}."""
    if not isinstance(over, Mapping):
        return tuple(over)
    return tuple(
        shlex.join([name, *(one if isinstance(one, str) else json.dumps(one) for one in values)])
        for name, values in over.items()
    )


def read(over: Sequence[str], config: str) -> tuple[Axis, ...]:
    """The axes over a configuration file. One InputError for all that is wrong with them."""
    axes, wrong = [], []
    for text in over:
        try:
            axes.append(_axis(text, config))
        except InputError as error:
            wrong.append(str(error))
    names = [axis.name for axis in axes]
    wrong += [
        f"--over {name} is there twice: give its values once" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    if wrong:
        raise InputError("\n".join(wrong))
    if not axes:
        raise InputError(
            "a sweep needs what it varies: --over inner.learning_rate log 1e-5 1e-3, or --over adapter.method lora dora bidora"
        )
    return tuple(axes)


def _axis(text: str, config: str) -> Axis:
    name, *given = shlex.split(text)
    name, known = name.replace("-", "_"), [setting for setting, _ in leaves(Config())]
    if name not in known:
        raise InputError(
            f"--over {name}: there is no such setting{did_you_mean(name, known)}; train --help-all lists them"
        )
    if name in HELD:
        raise InputError(f"--over {name}: {HELD[name]}, so a sweep does not vary it")
    if given and given[0] in SCALES and _kind(name) in (float, int):
        return _range(name, given[0], given[1:])
    if not given:
        raise InputError(f"--over {name} has no values: give some, or a range such as {name} log LOW HIGH")
    values = tuple(_value(name, one, config) for one in given)
    if len(set(map(repr, values))) < len(values):
        raise InputError(f"--over {name} has a value twice: {', '.join(given)}")
    return Axis(name, "choice", tuple(given), values)


def _range(name: str, scale: str, given: Sequence[str]) -> Axis:
    whole = _kind(name) is int
    kind = "whole numbers" if whole else "numbers"
    try:
        low, high = (int(one) if whole else float(one) for one in given)
    except ValueError:
        raise InputError(
            f"--over {name} {scale} needs two {kind}, the lowest and the highest, found {' '.join(given) or 'none'}"
        ) from None
    if not -math.inf < low < high < math.inf:
        raise InputError(f"--over {name} {scale}: the first number must be below the second, found {' '.join(given)}")
    if scale == "log" and low <= 0:
        raise InputError(f"--over {name} log needs numbers above 0, found {given[0]}; uniform takes others")
    return Axis(name, "log" if scale == "log" else "uniform", low=low, high=high, whole=whole)


def _value(name: str, text: str, config: str) -> Any:
    """The value that a setting takes for this text. InputError where it takes none."""
    candidates, problem = [text], None
    with suppress(ValueError):
        candidates.insert(0, json.loads(text))
    for one in candidates:
        try:
            parse_call(config or None, {name: one})
        except InputError as error:
            problem = problem or error
        else:
            return one
    raise InputError(f"--over {name} {text}: {str(problem).splitlines()[-1].strip()}")


def _kind(name: str) -> Any:
    """The type of a setting."""
    schema: Any = Config
    for part in name.split("."):
        schema = get_type_hints(schema)[part]
    return schema


def grid(axes: Sequence[Axis]) -> list[dict[str, str]]:
    """Every point of axes that are choices, by their labels."""
    names = [axis.name for axis in axes]
    return [dict(zip(names, point, strict=True)) for point in itertools.product(*(axis.labels for axis in axes))]


def values(axes: Sequence[Axis], drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a point."""
    return {axis.name: axis.value(drawn[axis.name]) for axis in axes}
