"""The largest published model that can be trained on this machine, and the command that trains it.

Two bounds: a BiDoRA step has to fit the memory, and on a CPU 1,000 of them must not take longer than PATIENCE. The table of
`python -m bidora_jax.models` shows both, and names the same model.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from bidora_jax.machine.facts import Section

if TYPE_CHECKING:
    from bidora_jax.machine.memory import Memory

PATIENCE = 24 * 3600.0
"""Seconds that 1,000 steps may take on a CPU for a model to be recommended there."""
TOKENS = 1024
"""Tokens of the record that a step is reckoned with."""


class Recommendation(NamedTuple):
    name: str
    quantization: str
    bytes: int
    """Of a step at its peak."""
    seconds: float | None
    """Of a step; None on a GPU, where no rate was measured."""


def recommended() -> Section:
    """The model that is recommended for this device, and the command line that trains it."""
    from bidora_jax.machine.memory import device_memory
    from bidora_jax.models.architectures import published

    found = choose(published.names("qwen3"), device_memory(), rate())
    if found is None:
        return {
            "model": "none of the Qwen3 models fits and is fast enough; python -m bidora_jax.models --family all lists smaller ones"
        }
    quantised = "" if found.quantization == "none" else f" --model.quantization {found.quantization}"
    command = (
        f"python -m bidora_jax.train --model.path {found.name} --model.dtype bfloat16{quantised} --data.batch-size 1 "
        "--data.accumulation 4 --data.train-file data.jsonl --data.val-fraction 0.2 --auto"
    )
    return {
        "model": found.name, "quantization": found.quantization, "memory of a step": found.bytes,
        "seconds a record of 1,024 tokens": found.seconds and round(found.seconds, 1), "command": command,
    }  # fmt: skip


def rate() -> float | None:
    """Operations a second of this CPU, measured for a moment; None where there is a GPU."""
    import jax

    from bidora_jax.planning import plans

    return plans.dot_rate("bfloat16") if jax.default_backend() == "cpu" else None


def choose(names: Sequence[str], memory: "Memory", rate: float | None) -> Recommendation | None:
    """The last model of `names`, in the most bits, that fits the memory and is fast enough; None where none is."""
    from bidora_jax.models.architectures import published
    from bidora_jax.models.settings import QUANTIZATIONS
    from bidora_jax.planning import plans, published_steps, remat_choice

    for name in reversed(names):
        config = published.shape(name)
        seconds = step_seconds(name, rate)
        if seconds is not None and 1000 * seconds > PATIENCE:
            continue
        for form in QUANTIZATIONS:
            plan = published_steps.listed_plan("bidora", form, 1, TOKENS)
            if plans.base_bytes(config, plan, "bfloat16") > remat_choice.FITS * memory.bytes:
                continue
            peak = published_steps.step_bytes(config, plan)
            if peak <= remat_choice.FITS * memory.bytes:
                return Recommendation(name, form, peak, seconds)
    return None


def step_seconds(name: str, rate: float | None) -> float | None:
    """What the products of a BiDoRA step of this model take at least; None without a rate."""
    from bidora_jax.models.architectures import published
    from bidora_jax.planning import plans, published_steps

    if rate is None:
        return None
    return plans.arithmetic(published.shape(name), published_steps.listed_plan("bidora", "none", 1, TOKENS)) / rate


def in_words(found: Recommendation | None, names: Sequence[str]) -> str:
    """The last line of the table of models."""
    if found is None:
        return (
            "recommended here: none of these fits, or takes less than a day for 1,000 bidora steps on this CPU; --family all "
            "lists more"
        )
    form = "bf16" if found.quantization == "none" else found.quantization
    line = f"recommended here for records of {TOKENS:,} tokens: {found.name} in {form}"
    if found.seconds is not None and found.name != names[-1]:
        line += "; what is larger does not fit, or takes more than a day for 1,000 bidora steps on this CPU"
    return f"{line}\npython -m bidora_jax.info --recommend prints its command"
