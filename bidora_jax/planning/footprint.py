"""What a training step holds in memory, part by part, by the compiler's own count. Nothing is allocated for it.

    peak = base + adapter + optimiser + batch + results + loss + activations

The first four are the step's arguments, counted by the shapes of their trees. `results` is what the step returns in new
buffers; a donated state is written in place. The compiler counts all temporaries together: `loss` is its count for the loss's
gradient compiled by itself, and `activations` is the rest: what the layers keep and recompute, and all gradients. XLA counts
for the platform that it compiles for; where there is no GPU, a CPU's count stands in for a GPU's.
"""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bidora_jax.kernels import losses
from bidora_jax.kernels.quantized import tree_bytes
from bidora_jax.models.base import head_of
from bidora_jax.tasks.language_modeling import LanguageModeling
from bidora_jax.training.compiled_steps import StepShape, shapes
from bidora_jax.training.loop import Phase
from bidora_jax.training.problem import Problem

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Footprint(NamedTuple):
    """Bytes of a step's parts."""

    base: int
    adapter: int
    """Direction and magnitude."""
    optimiser: int
    batch: int
    results: int
    loss: int
    activations: int
    donated: int
    """Bytes of adapter and optimiser that are updated in place; they are subtracted from the peak."""

    @property
    def temporaries(self) -> int:
        return self.loss + self.activations

    @property
    def peak(self) -> int:
        return sum(self) - self.donated

    def lines(self) -> list[str]:
        """The parts and their sum, one a line."""
        names = [name for name in self._fields if name != "donated"]
        rows = [(name, getattr(self, name)) for name in names] + [("peak of a step", self.peak)]
        return [f"{name:<16s} {gigabytes(value):>10s}" for name, value in rows]


def of(problem: Problem, phase: Phase, state: PyTree, step_shape: StepShape, *, quick: bool = False) -> Footprint:
    """The footprint of one program at one padded length, on each of the devices that it runs on. The base and the state may be
    arrays or shapes.

    `quick` is for a program that will not be run: the buffers are the same, and the machine code is not optimised.
    """
    program, length = step_shape
    options = QUICK if quick and jax.default_backend() == "cpu" else None
    analysis = _analysis(program.compile(state, length, options))
    batches = program.like(length)
    adapter = tree_bytes(phase.adapter_of(state))
    rows_over, devices = (1, 1) if problem.spread is None else (problem.spread.row_parts, problem.spread.devices)
    loss = 0
    if isinstance(problem.task, LanguageModeling):  # a head of classification takes next to nothing
        micro_tokens = -(-problem.data.batch_size * (length - 1) // devices)
        loss = min(loss_bytes(problem, micro_tokens), analysis.temp_size_in_bytes)
    return Footprint(
        base=tree_bytes(program.frozen) if problem.spread is None else problem.spread.held_bytes(program.frozen),
        adapter=adapter,
        optimiser=tree_bytes(state) - adapter,
        batch=tree_bytes(batches) // rows_over,
        results=analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        loss=loss,
        activations=analysis.temp_size_in_bytes - loss,
        donated=analysis.alias_size_in_bytes,
    )


def loss_bytes(problem: Problem, tokens: int) -> int:
    """Temporaries of the loss over so many tokens, and of its gradient with respect to the last hidden states."""
    weight = jax.eval_shape(head_of, shapes(problem.base))
    return _loss_bytes(tokens, problem.config.hidden_size, weight.shape, weight.dtype, problem.model.loss_chunk)


@lru_cache(maxsize=32)
def _loss_bytes(tokens: int, width: int, head: tuple[int, ...], dtype, chunk: int) -> int:
    """Compiled once in a process: the next run that asks has the same answer."""
    x, weight = jax.ShapeDtypeStruct((tokens, width), dtype), jax.ShapeDtypeStruct(head, dtype)
    targets, weights = (jax.ShapeDtypeStruct((tokens,), dtype) for dtype in (jnp.int32, jnp.float32))
    loss = partial(losses.cross_entropy_sum, chunk=chunk)
    compiled = jax.jit(jax.value_and_grad(loss)).lower(x, weight, targets, weights).compile()
    return _analysis(compiled).temp_size_in_bytes


def _analysis(compiled: jax.stages.Compiled) -> Any:
    analysis = compiled.memory_analysis()
    assert analysis is not None, f"XLA counts no memory for a {jax.default_backend()}"
    return analysis


def gigabytes(value: float) -> str:
    """1.23 GB, or 45.6 MB below a tenth."""
    return f"{value / 1e9:.2f} GB" if abs(value) >= 1e8 else f"{value / 1e6:.1f} MB"
