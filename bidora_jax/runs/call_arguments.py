"""What a Python call gives: its settings, its rows; what the command line would refuse of a flag is refused here."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bidora_jax.data.sources import in_memory
from bidora_jax.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from bidora_jax.generation.settings import Sampled


def known(call: str, given: dict[str, Any], names: Sequence[str]) -> None:
    """InputError for keyword arguments that there are not."""
    if unknown := [f"{name}{did_you_mean(name, names)}" for name in given if name not in names]:
        raise InputError(f"{call} has no setting {', '.join(unknown)}; it has {', '.join(names)}")


def sampled(given: dict[str, Any], also: Sequence[str]) -> "Sampled":
    """How tokens are drawn, and how many; `also` are the other settings of that call."""
    from bidora_jax.generation.settings import Sampled

    known("generate", given, [*also, *(field.name for field in fields(Sampled))])
    how = Sampled(**given)
    if wrong := how.wrong():
        raise InputError("\n".join(map(_without_flags, wrong)))
    return how


def _without_flags(message: str) -> str:
    """--top-k as the call writes it: top_k."""
    return re.sub(r"--([a-z][a-z-]*)", lambda found: found[1].replace("-", "_"), message)


def at_least(least: int, **given: int) -> None:
    if wrong := [f"{name} must be at least {least}, found {value}" for name, value in given.items() if value < least]:
        raise InputError("\n".join(wrong))


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, found {value!r}")


@contextmanager
def as_file(data: Any) -> "Iterator[str | tuple[str, ...]]":
    """The paths that `data` names, or a file of the rows that it holds, for as long as the block lasts."""
    if (found := in_memory.paths(data)) is not None:
        yield found
        return
    with TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        file.write_bytes(in_memory.json_lines("data", data))
        with in_memory.in_words_of_the_call({str(file): "data"}):
            yield str(file)
