"""Which form of a step fits the device: each is compiled, the fastest first, until the compiler's count of one fits.

                        a CPU             a GPU
    remat               dots, layer       dots, layer, offload
    hypergradient       exact             exact

On a CPU dots was never slower than layer in any measurement: up to a third faster for one gradient, 1.4 times as fast in a
bilevel step, with two to four times the temporaries. `none` is slower than both (benchmarks/LOG.md). On a GPU nothing has been
measured. In what XLA compiles for a GPU, none has as many products with frozen weights as dots, takes 1.2 to 1.6 times as long to
move the bytes of all else, and keeps four to five times as much. In a bilevel step the record of the sums that dots keeps
(models/layer_scan.py) saves more products than none does, and with it exact takes no more than reverse. So none and reverse are
never chosen.

attention_backend.py chooses the attention first, so the compiler counts a form with it. A form fits if its peak is at most FITS
of the memory. The rest is for what the compiler does not count: the interpreter, fragmentation, checkpoints being written. A CPU
shares its memory with all other programs, so there a form that is chosen for its speed alone may take SPARED of it. A setting
other than `auto` is kept.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from bidora_jax.data.encoding import Example
from bidora_jax.data.settings import DataConfig
from bidora_jax.errors import InputError
from bidora_jax.machine.memory import Memory
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.adapter import Adapter
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.base import dtype_of
from bidora_jax.models.settings import ModelConfig
from bidora_jax.planning import attention_backend, footprint
from bidora_jax.planning.attention_backend import AUTO
from bidora_jax.planning.footprint import Footprint, gigabytes
from bidora_jax.training.compiled_steps import StepShape, upcoming
from bidora_jax.training.loop import Phase, PhaseState
from bidora_jax.training.phases import first_phase
from bidora_jax.training.problem import Problem, made
from bidora_jax.training.progress import Progress
from bidora_jax.training.settings import OptimizerConfig, SearchConfig

FITS = 0.85
SPARED = 0.5


class MethodSettings(NamedTuple):
    """A method with the settings of its optimisers and of its first phase."""

    method: str
    search: SearchConfig
    inner: OptimizerConfig
    outer: OptimizerConfig


class FirstPhase(NamedTuple):
    """The first phase in the form that was chosen. Its largest program is compiled."""

    problem: Problem
    search: SearchConfig
    phase: Phase
    start: PhaseState
    footprint: Footprint | None
    """None where there was no choice, and nothing was compiled."""
    reason: str
    """What was chosen and why, a line for attention and one for the rest; empty where there was no choice."""


def choose_remat(problem: Problem, levels: MethodSettings, memory: Memory) -> FirstPhase:
    """The fastest form of the first phase that fits. Where none fits it is the one that takes least, and `reason` says so."""
    dtype = dtype_of(problem.base)
    model, reason = attention_backend.settle(problem.model, problem.config, problem.data, dtype, problem.buckets)
    settled = _settled(replace(problem, model=model), levels, memory)
    return settled._replace(reason="\n".join(filter(None, (reason, settled.reason))))


def _settled(problem: Problem, levels: MethodSettings, memory: Memory) -> FirstPhase:
    tried: list[FirstPhase] = []
    pairs = candidates(problem.model, levels, several=problem.spread is not None)
    for remat, form in pairs:
        chosen = replace(problem, model=replace(problem.model, remat=remat))
        search = replace(levels.search, hypergradient=form)
        phase, start = first_phase(levels.method, chosen, search, levels.inner, levels.outer)
        if len(pairs) == 1:
            return FirstPhase(chosen, search, phase, start, None, "")
        name = f"remat {remat}" + (f", hypergradient {form}" if levels.method == "bidora" else "")
        with Progress("fit", len(pairs)) as progress, progress.doing(f"{name}: compiling the largest step"):
            parts = footprint.of(chosen, phase, start.state, largest(phase))
        tried.append(FirstPhase(chosen, search, phase, start, parts, name))
        if needed(parts) <= share(remat) * memory.bytes:
            break
    return _chosen(tried, memory)


def fits(parts: Footprint, memory: Memory) -> bool:
    """Whether a run fits whose largest step has this footprint."""
    return needed(parts) <= FITS * memory.bytes


def share(remat: str) -> float:
    """The share of the memory that a run may take for this remat policy to be chosen."""
    return SPARED if remat == "dots" and jax.default_backend() == "cpu" else FITS


def needed(parts: Footprint) -> int:
    """Bytes of a run at its peak: a step, and the best adapter so far, which is kept beside the state."""
    return parts.peak + parts.adapter


def allowance(part: float, memory: Memory) -> str:
    """The part of the memory that a run may take, in words."""
    return f"{gigabytes(part * memory.bytes)} ({part:.0%} of {gigabytes(memory.bytes)}, {memory.source})"


def largest(phase: Phase) -> StepShape:
    """The last program of a step at the largest padded length that it meets: what takes most memory."""
    program = [program for program, _ in phase.step_shapes(0)][-1]
    met = upcoming(phase.step_shapes, 0, phase.steps)
    return program, max(length for one, length in met if one is program)


def remats(*, several: bool = False) -> tuple[str, ...]:
    """The remat policies to choose from on this platform, the fastest first. Offload was not tried on `several` devices."""
    return ("dots", "layer") if several or jax.default_backend() == "cpu" else ("dots", "layer", "offload")


def check_remat(model: ModelConfig) -> None:
    """Refuses a policy that has no use on this platform."""
    if model.remat == "offload" and jax.default_backend() == "cpu":
        raise InputError(
            "model.remat offload moves activations from a GPU's memory to the host's, and a CPU has one memory only; choose "
            "auto, none, dots or layer"
        )


def synthetic(
    config: DecoderConfig, model: ModelConfig, adapter: Adapter, base: PyTree, data: DataConfig, length: int
) -> Problem:
    """A problem with one record of `length` tokens on each level, to compile steps for. `base` is as it was loaded, or its
    shapes."""
    example = Example(np.zeros(length, np.int32), np.arange(length) > 0, False)
    base = made(lambda base: initial.prepare_base(base, adapter), base)
    alone = replace(data, buckets=1, padded_lengths=())
    return Problem(config, model, adapter, base, [example], [example], alone, 0, 0, ("a record",))


def candidates(model: ModelConfig, levels: MethodSettings, *, several: bool = False) -> list[tuple[str, str]]:
    """Pairs (remat, hypergradient) to choose from, on one device or on `several`, the fastest first. A setting other than `auto` is
    kept."""
    form = levels.search.hypergradient
    policies = remats(several=several) if model.remat == AUTO else (model.remat,)
    return [(policy, "exact" if form == AUTO else form) for policy in policies]


def _chosen(tried: list[FirstPhase], memory: Memory) -> FirstPhase:
    """The last one tried where it fits, else the leanest, with the reason."""

    def peak(one: FirstPhase) -> int:
        assert one.footprint is not None
        return needed(one.footprint)

    def allowed(one: FirstPhase) -> str:
        return allowance(share(one.problem.model.remat), memory)

    *passed, last = tried
    if peak(last) <= share(last.problem.model.remat) * memory.bytes:
        refused = "".join(f"; {one.reason} takes {gigabytes(peak(one))} of {allowed(one)}" for one in passed)
        return last._replace(
            reason=f"{last.reason}: the fastest that fits, {gigabytes(peak(last))} of {allowed(last)}{refused}"
        )
    leanest = min(tried, key=peak)
    return leanest._replace(
        reason=f"{leanest.reason}: takes least, {gigabytes(peak(leanest))}, and not even that fits in {allowed(leanest)}; expect "
        "to run out of memory: try --auto, a smaller data.batch_size or data.max_length, or model.quantization nf4"
    )
