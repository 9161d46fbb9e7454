"""A training step, compiled ahead of time from shapes, once for each padded length that a run will meet.

    step: (state, frozen, *batches) -> (state, metrics)        the state is donated, `frozen` never is

All is compiled before the first step: then the length of the start is known, and the compiler has said what a step will hold
in memory before any of it is allocated. A step runs the compiled program and traces nothing again. JAX's persistent cache
serves here too.

Of a program's compilation on a CPU, tracing and XLA's passes take one core each, and LLVM takes two (2026-11-29: 3 and 6 + 6 s of
a DoRA step of SmolLM2's shape). So several programs are compiled at once, a traced one in a thread while the next is traced.
"""

import os
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

import jax
from jaxtyping import PyTree

from bidora_jax.data.batches import Batch
from bidora_jax.models.spread import ROWS, Spread


class Programs:
    """Compiled steps that several runs in one process share."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, jax.stages.Compiled] = {}

    def of(self, made_of: Hashable, arrays: PyTree) -> tuple[Hashable, jax.stages.Compiled | None]:
        """The key of a step that is made of this and takes arrays of these shapes, and the program where there is one."""
        leaves, tree = jax.tree.flatten(shapes(arrays))
        key = made_of, tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        return key, self._kept.get(key)

    def keep(self, key: Hashable, compiled: jax.stages.Compiled) -> None:
        self._kept[key] = compiled


class CompiledStep:
    """One step and its compiled forms."""

    def __init__(
        self,
        name: str,
        step: Callable,
        frozen: PyTree,
        like: Callable[[int], Sequence[Batch]],
        lengths: Sequence[int],
        shared: tuple[Programs, Hashable] | None = None,
        spread: Spread | None = None,
    ) -> None:
        """`like` makes batches of a padded length, whose values do not matter; `lengths` are all padded lengths of the run.
        `shared`: where the programs of other runs are, and what this step is made of. `spread`: the devices, where they are
        several."""
        self.name, self.step, self.frozen, self.like, self.lengths = name, step, frozen, like, tuple(lengths)
        if spread is None:
            self._jitted = jax.jit(step, donate_argnums=0)
        else:
            self._jitted = spread.compiled_by(step, frozen, len(like(self.lengths[0])))
        self._shared, self._spread = shared, spread
        self._compiled: dict[int, jax.stages.Compiled] = {}

    def has(self, length: int) -> bool:
        """Whether it is compiled for batches of this padded length, here or by another run."""
        if length not in self._compiled and self._shared is not None:
            found = self._shared[0].of(*self._kind(length))[1]
            self._compiled |= {} if found is None else {length: found}
        return length in self._compiled

    def lower(self, state: PyTree, length: int) -> jax.stages.Lowered:
        """The step traced for batches of one padded length. `state` may be shapes, and so may `frozen`."""
        assert length in self.lengths, f"{self.name}: a length of {length}, expected one of {self.lengths}"
        return self._jitted.lower(*shapes((state, self.frozen, *self.like(length))))

    def keep(self, length: int, compiled: jax.stages.Compiled) -> None:
        """Runs this program for batches of this padded length."""
        self._compiled[length] = compiled
        if self._shared is not None:
            programs = self._shared[0]
            programs.keep(programs.of(*self._kind(length))[0], compiled)

    def _kind(self, length: int) -> tuple[Hashable, PyTree]:
        assert self._shared is not None
        return (self.name, self._shared[1]), (self.frozen, self.like(length))

    def compile(self, state: PyTree, length: int, options: dict[str, Any] | None = None) -> jax.stages.Compiled:
        """The step for batches of one padded length. `state` may be shapes, and so may `frozen`.

        With compiler `options`, an empty dictionary too, it is compiled anew and not kept.
        """
        if options is not None:
            return self.lower(state, length).compile(options)
        if not self.has(length):
            self.keep(length, self.lower(state, length).compile())
        return self._compiled[length]

    def __call__(self, state: PyTree, *batches: Batch) -> tuple[PyTree, dict[str, jax.Array]]:
        program = self.compile(state, batches[0]["tokens"].shape[-1])
        if self._spread is not None:
            batches = tuple(self._spread.batch(batch, ROWS) for batch in batches)
        return program(state, self.frozen, *batches)


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


def compile_all(step_shapes: Sequence[StepShape], state: PyTree) -> Generator[StepShape]:
    """Compiles programs, several at once, and yields each when it is done. They are traced here, one after the other.

    On a GPU they are compiled one at a time: there XLA times kernels on the device, which others would disturb.
    """
    pool = ThreadPoolExecutor(_at_once(), thread_name_prefix="compile")
    try:
        pending: dict[Future[jax.stages.Compiled], StepShape] = {}
        for program, length in step_shapes:
            lowered = program.lower(state, length)
            pending[pool.submit(lowered.compile)] = (program, length)
        for done in as_completed(pending):
            program, length = pending[done]
            program.keep(length, done.result())
            yield program, length
    finally:
        pool.shutdown(cancel_futures=True)


def _at_once() -> int:
    """Programs to compile at once."""
    if jax.default_backend() != "cpu":
        return 1
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def in_words(step_shapes: Iterable[StepShape]) -> str:
    """The programs with their padded lengths: T = 64, lower steps T = 96."""
    return ", ".join(" ".join(filter(None, (program.name, f"T = {length}"))) for program, length in step_shapes)


def are_kept() -> bool:
    """Whether compiled programs are kept on disk for the next run."""
    return bool(jax.config.values["jax_compilation_cache_dir"])
