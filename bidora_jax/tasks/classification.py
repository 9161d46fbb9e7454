"""Labels, numbers and tags: what a head says of a text or of its tokens, and the loss of it.

    classification   cross-entropy against a distribution over C labels        multilabel   binary cross-entropy, mean over C
    regression       squared error of standardised values, mean over them      tokens       cross-entropy of every labelled token

The outputs and losses are float32 (kernels/class_losses.py). Every loss is a sum Σ w·l with Σ w beside it, which needs no output:
so the mean over micro-batches is exact, with class weights too.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from bidora_jax.kernels import class_losses
from bidora_jax.models import backbone, heads, stacks
from bidora_jax.models.architectures.heads import HeadSpec
from bidora_jax.models.decoder import Batch
from bidora_jax.models.tape import EmptyTape

TINY = 1e-9
"""Below any weight of a record: a batch of padding alone has the loss 0."""


@dataclass(frozen=True)
class Classification:
    """A task with a head; a `Task`."""

    type: Literal["classification", "multilabel", "regression", "tokens"]
    head: HeadSpec
    class_weights: tuple[float, ...] | None = None
    """By label: of a record in the mean; of multilabel, of a positive against a negative."""
    smoothing: float = 0.0
    inputs: ClassVar[tuple[str, ...]] = ("tokens", "lengths", "segments", "types", "labels", "weights")

    def outputs(
        self, config, adapter, compute, base, trained, batch: Batch, key=None, tape=None
    ) -> Float[Array, "B N C"]:
        """Logits or standardised values of every slot of a row, or of every token."""
        x = backbone.hidden(config, adapter, compute, base, trained, batch, key, tape)
        slots = batch["labels"].shape[1]
        return heads.outputs(self.head, base, trained[0], x, stacks.segments_of(batch), slots)

    def loss_sum(self, config, adapter, compute, base, trained, batch, key=None, tape=None) -> Float[Array, ""]:
        found = self.outputs(config, adapter, compute, base, trained, batch, key, tape)
        return self.loss_of(found, batch)

    def loss_of(self, outputs: Float[Array, "B N C"], batch: Batch) -> Float[Array, ""]:
        """Σ w·l of given outputs."""
        labels = batch["labels"]
        weights = None if self.class_weights is None else jnp.asarray(self.class_weights, outputs.dtype)
        if self.type == "tokens":
            return jnp.sum(class_losses.token_cross_entropy(outputs, labels, weights, self.smoothing)[0])
        if self.type == "classification":
            losses = class_losses.cross_entropy(outputs, labels, weights, self.smoothing)[0]
        elif self.type == "multilabel":
            losses = class_losses.binary_cross_entropy(outputs, labels, weights)[0]
        else:
            losses = class_losses.mean_square(outputs, labels)[0]
        return jnp.sum(losses * batch["weights"])

    def weight(self, batch: Batch) -> Float[Array, ""]:
        labels = batch["labels"]
        if self.type == "tokens":
            given = jnp.ones(self.head.outputs) if self.class_weights is None else jnp.asarray(self.class_weights)
            total = jnp.sum(jnp.where(labels >= 0, given.astype(jnp.float32)[jnp.maximum(labels, 0)], 0.0))
        elif self.type == "classification" and self.class_weights is not None:
            total = jnp.sum(batch["weights"] * (labels @ jnp.asarray(self.class_weights, labels.dtype)))
        else:
            total = jnp.sum(batch["weights"])
        return jnp.maximum(total, TINY)

    def empty_tape(self, config, adapter, compute, base, trained, batch) -> EmptyTape:
        return backbone.empty_tape(config, adapter, compute, base, trained, batch, None)
