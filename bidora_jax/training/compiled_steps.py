"""A training step, compiled ahead of time from shapes, once for each padded length that a run will meet.

    step: (state, frozen, *batches) -> (state, metrics)        the state is donated, `frozen` never is

All is compiled before the first step: then the length of the start is known, and the compiler has said what a step will hold
in memory before any of it is allocated. A step runs the compiled program and traces nothing again. JAX's persistent cache
serves here too.
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
        """`like` makes batches of a padded length, whose values do not matter; `lengths` are all padded lengths of the run."""
        self.name, self.step, self.frozen, self.like, self.lengths = name, step, frozen, like, tuple(lengths)
        self._jitted = jax.jit(step, donate_argnums=0)
        self._compiled: dict[int, jax.stages.Compiled] = {}

    def compile(self, state: PyTree, length: int, options: dict[str, Any] | None = None) -> jax.stages.Compiled:
        """The step for batches of one padded length. `state` may be shapes, and so may `frozen`.

        With compiler `options`, an empty dictionary too, it is compiled anew and not kept.
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
    """The programs and lengths that the steps from `first` to `steps` run, each once, in the order of their first use."""
    met: dict[StepShape, None] = {}
    for number in range(first, steps):
        met |= dict.fromkeys(step_shapes(number))
        if met and len(met) == sum(len(program.lengths) for program in {program for program, _ in met}):
            break
    return list(met)
