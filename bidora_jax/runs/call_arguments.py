"""What a Python call gives: its settings, its rows; what the command line would refuse of a flag is refused here."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bidora_jax.data.sources import in_memory
from bidora_jax.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from bidora_jax.kernels.sampling import Sampling


LossOn = Literal["response", "turns", "all"]
Long = Literal["split", "truncate", "drop", "refuse"]


class Reading(NamedTuple):
    """How records are evaluated; the defaults are those of `evaluate`."""

    columns: Any = ()
    max_length: int = 1024
    loss_on: LossOn = "response"
    long: Long = "split"
    batch_size: int = 4


def known(call: str, given: dict[str, Any], names: Sequence[str]) -> None:
    """InputError for keyword arguments that there are not."""
    if unknown := [f"{name}{did_you_mean(name, names)}" for name in given if name not in names]:
        raise InputError(f"{call} has no setting {', '.join(unknown)}; it has {', '.join(names)}")


def sampling(given: dict[str, Any], also: Sequence[str]) -> "Sampling":
    """How a token is drawn; `also` are the other settings of that call."""
    from bidora_jax.kernels.sampling import Sampling

    known("generate", given, [*also, *Sampling._fields])
    how, infinity = Sampling(**given), float("inf")
    bounds = {
        f"temperature must be at least 0, found {how.temperature}": not 0 <= how.temperature < infinity,
        f"top_k must be at least 0, found {how.top_k}": how.top_k < 0,
        f"top_p must be above 0 and at most 1, found {how.top_p}": not 0 < how.top_p <= 1,
        f"min_p must be at least 0 and at most 1, found {how.min_p}": not 0 <= how.min_p <= 1,
        f"repetition_penalty must be above 0, found {how.repetition_penalty}": not 0
        < how.repetition_penalty
        < infinity,
        "top_k, top_p and min_p act on draws: give a temperature above 0 with them": how.temperature == 0
        and (how.top_k, how.top_p, how.min_p) != (0, 1, 0),
    }
    if wrong := [message for message, found in bounds.items() if found]:
        raise InputError("\n".join(wrong))
    return how


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
