"""The model, the adapter and the rows that every phase of a run trains on, and the batch of a step."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bidora_jax.data import batches as batching
from bidora_jax.data.packing import records_in
from bidora_jax.data.settings import DataConfig
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.adapter import Adapter
from bidora_jax.models.architectures.architecture import Architecture
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.settings import ModelConfig
from bidora_jax.models.spread import Spread
from bidora_jax.tasks.language_modeling import NEXT_TOKEN
from bidora_jax.tasks.task import LOSS, Criterion, Task
from bidora_jax.training.compiled_steps import Programs


@dataclass(frozen=True)
class Problem:
    """What every phase of a run has in common."""

    config: Architecture
    model: ModelConfig
    adapter: Adapter
    base: PyTree
    train: batching.Examples
    val: batching.Examples
    data: DataConfig
    pad_id: int
    seed: int
    places: tuple[str, ...]
    """Where the records of train and then of val come from, for messages."""
    start: tuple[PyTree, PyTree] | None = None
    """The (direction, magnitude) that training starts from; of None, new ones are drawn."""
    task: Task = NEXT_TOKEN
    criterion: Criterion = LOSS
    """What the best step has most or least of."""
    label_form: batching.LabelForm | None = None
    """Of records with labels."""
    programs: Programs | None = None
    """Compiled steps that other runs have left; None: this run compiles its own."""
    spread: Spread | None = None
    """The devices that the run is spread over, and how its base lies on them; None of a run on one device."""

    @property
    def decoder(self) -> DecoderConfig:
        """The architecture of a language model."""
        assert isinstance(self.config, DecoderConfig)
        return self.config

    @property
    def buckets(self) -> tuple[int, ...]:
        if self.data.padded_lengths:
            return self.data.padded_lengths
        count = self.data.buckets
        assert count != "auto", "data.buckets auto is settled before a phase is made (planning/padded_lengths.py)"
        return batching.bucket_lengths([len(example.tokens) for example in [*self.train, *self.val]], count)

    @property
    def form(self) -> batching.BatchForm:
        sizes = self.data.accumulation, self.data.batch_size
        return batching.BatchForm(*sizes, self.pad_id, self.data.packing, self.label_form)

    @property
    def step_size(self) -> int:
        """Rows that a step has on each level."""
        return self.data.batch_size * self.data.accumulation

    def key(self, use: int) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.seed), use)

    def fresh_adapter(self, use: int = 0) -> tuple[PyTree, PyTree]:
        if self.start is not None:
            return self.copies(jax.tree.map(jnp.copy, self.start))  # a step donates its state
        return self.copies(made(lambda base: initial.init(self.adapter, base, self.key(use)), self.base))

    def copies(self, tree: PyTree) -> PyTree:
        """A tree that a step takes, or its shapes, on every device of the run."""
        return tree if self.spread is None or _abstract(tree) else self.spread.copies(tree)

    def gathered(self, tree: PyTree) -> PyTree:
        """A tree of the run on one device, for what is computed on one."""
        return tree if self.spread is None else self.spread.gathered(tree)

    def blank(self, length: int) -> batching.Batch:
        """A batch of nothing but padding, to compile for: every batch of this length has its shapes."""
        return batching.collate([], length, self.form)

    def made_of(self, *settings: Hashable) -> Hashable:
        """What a step of this problem with these settings is made of, but for its arrays: steps with equal ones are one program."""
        devices = None if self.spread is None else self.spread.sizes
        return self.config, self.model, self.adapter, self.task, self.form, devices, *settings

    def stream(self, examples: batching.Examples, number: int) -> batching.Stream:
        lengths = [len(example.tokens) for example in examples]
        return batching.Stream(lengths, self.step_size, seed=self.seed, stream=number)


def made(make: Callable[..., PyTree], *trees: PyTree) -> PyTree:
    """make(*trees). Where the trees hold shapes, the shapes of that: so a phase can be compiled without any array."""
    return jax.eval_shape(make, *trees) if _abstract(trees) else make(*trees)


def _abstract(tree: PyTree) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def make_batch(problem: Problem, buckets, examples: batching.Examples) -> batching.Batch:
    return batching.collate(examples, batching.length_for(examples, buckets), problem.form)


def padded_length(examples: batching.Examples, buckets, rows: list[int]) -> int:
    return batching.length_for(pick(examples, rows), buckets)


def pick(examples: Sequence[Any], rows: list[int]) -> list[Any]:
    return [examples[row] for row in rows]


def places_of(problem: Problem, examples: batching.Examples, rows: list[int]) -> list[str]:
    """The places of the records in some rows, each once."""
    numbers = [number for item in pick(examples, rows) for number in records_in(item)]
    return list(dict.fromkeys(problem.places[number] for number in numbers))


def count_tokens(examples: batching.Examples, *rows: list[int]) -> int:
    return int(np.sum([len(examples[row].tokens) for step_rows in rows for row in step_rows]))
