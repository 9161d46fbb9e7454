"""What training asks of a task: a loss as a weighted sum, so that sums over micro-batches are exact.

    loss = Σ w·l / Σ w        over all records of all micro-batches

A `Task` is a frozen value, so that a compiled step can take it as static. A batch is a dictionary of arrays (data/batches.py).
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol

from jaxtyping import Array, Float, PyTree

from bidora_jax.models.adapters.adapter import Adapter
from bidora_jax.models.architectures.architecture import Architecture
from bidora_jax.models.compute import Compute
from bidora_jax.models.decoder import Batch, Trained
from bidora_jax.models.tape import EmptyTape, TapeValues


class Task(Protocol):
    """One question that is asked of a model."""

    inputs: ClassVar[tuple[str, ...]]
    """The arrays of a batch that a pass reads, where it has them."""

    def loss_sum(
        self, config: Architecture, adapter: Adapter | None, compute: Compute, base: PyTree, trained: Trained,
        batch: Batch, key: Array | None = None, tape: EmptyTape | TapeValues | None = None,
    ) -> Float[Array, ""]:  # fmt: skip
        """Σ w·l over one micro-batch. `key` and `tape` as in models/backbone.py."""
        ...

    def weight(self, batch: Batch) -> Float[Array, ""]:
        """Σ w over all micro-batches of a batch; at least a number above zero."""
        ...

    def empty_tape(
        self,
        config: Architecture,
        adapter: Adapter | None,
        compute: Compute,
        base: PyTree,
        trained: Trained,
        batch: Batch,
    ) -> EmptyTape:
        """The empty tape of a pass over one micro-batch."""
        ...


class Criterion(NamedTuple):
    """What the best step has most or least of, on the validation split."""

    name: str = "loss"
    higher: bool = False
    """Whether more is better."""

    def rank(self, value: float) -> float:
        """Of two values the better one has the smaller rank."""
        return -value if self.higher else value

    def in_words(self, rank: float) -> str:
        return f"validation {self.name} {-rank if self.higher else rank:.4f}"


LOSS = Criterion()


class Scores(Protocol):
    """How good a model is on some records."""

    @property
    def loss(self) -> float: ...

    @property
    def rank(self) -> float:
        """By the criterion of the run; infinite where it can't be computed."""
        ...

    @property
    def in_words(self) -> str:
        """For a line of the progress."""
        ...

    @property
    def facts(self) -> Mapping[str, float]:
        """Numbers by name, for files: metrics.jsonl puts `evaluation_` before them."""
        ...
