"""A training step, compiled ahead of time from shapes, once for each padded length that a run will meet.

    step: (state, frozen, *batches) -> (state, metrics)        the state is donated, `frozen` never is

Compiling before the first step says how long the start will take and what a step will hold in memory, before any is held.
A step then runs what was compiled: nothing is traced a second time. JAX's persistent cache serves here too.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from bidora_jax.data.batches import Batch


class CompiledStep:
    """One step and its compiled forms."""

    def __init__(
        self,
        name: str,
        step: Callable,
        frozen: PyTree,
        like: Callable[[int], Sequence[Batch]],
        lengths: Sequence[int],
    ) -> None:
        """`like` gives batches of a padded length, whatever they hold; `lengths` are all that there may be."""
        self.name, self.step, self.frozen, self.like, self.lengths = name, step, frozen, like, tuple(lengths)
        self._jitted = jax.jit(step, donate_argnums=0)
        self._compiled: dict[int, jax.stages.Compiled] = {}

    def compile(self, state: PyTree, length: int, options: dict[str, Any] | None = None) -> jax.stages.Compiled:
        """The step for batches of one padded length. `state` may be shapes, and so may `frozen`.

        With `options` of the compiler's own, none of them too, it is compiled anew and not kept.
        """
        assert length in self.lengths, f"{self.name}: a length of {length}, expected one of {self.lengths}"
        if options is None and length in self._compiled:
            return self._compiled[length]
        lowered = self._jitted.lower(*shapes((state, self.frozen, *self.like(length))))
        if options is not None:
            return lowered.compile(options)
        self._compiled[length] = lowered.compile()
        return self._compiled[length]

    def __call__(self, state: PyTree, *batches: Batch) -> tuple[PyTree, dict[str, jax.Array]]:
        return self.compile(state, batches[0]["tokens"].shape[-1])(state, self.frozen, *batches)


StepShape = tuple[CompiledStep, int]
"""A program and the padded length it runs at."""


def shapes(tree: PyTree) -> PyTree:
    """The shapes and dtypes of a tree of arrays, on the host or a device, or of shapes."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def upcoming(step_shapes: Callable[[int], Iterable[StepShape]], first: int, steps: int) -> list[StepShape]:
    """What the steps from `first` on will run, each step_shape once, in the order in which it comes up."""
    met: dict[StepShape, None] = {}
    for number in range(first, steps):
        met |= dict.fromkeys(step_shapes(number))
        if met and len(met) == sum(len(program.lengths) for program in {program for program, _ in met}):
            break
    return list(met)
