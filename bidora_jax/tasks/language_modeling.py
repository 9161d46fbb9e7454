"""The loss of a language model: −log p of every token that is trained."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bidora_jax.generation.ensembles import Combine, Member, combined
from bidora_jax.kernels import losses
from bidora_jax.kernels.matmul import frozen_dot
from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.table import Columns
from bidora_jax.kernels.varying import as_varying, own_share, share_of
from bidora_jax.models import decoder
from bidora_jax.models.adapters.adapter import Adapter
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.base import dtype_of, head_of, head_table_of, with_whole_modules
from bidora_jax.models.compute import Compute
from bidora_jax.models.decoder import Batch, Trained
from bidora_jax.models.tape import EmptyTape, TapeValues


class Scores(NamedTuple):
    """Sums over the trained tokens of a batch."""

    loss: Float[Array, ""]
    """Σ −log p"""
    hits: Float[Array, ""]
    """Tokens that have the largest logit."""
    tokens: Float[Array, ""]


@dataclass(frozen=True)
class LanguageModeling:
    """The task of predicting the next token; a `Task`."""

    inputs: ClassVar[tuple[str, ...]] = ("tokens", "loss_mask", "segments")

    def loss_sum(self, config, adapter, compute, base, trained, batch, key=None, tape=None) -> Float[Array, ""]:
        return token_loss_sum(config, adapter, compute, base, trained, batch, key, tape)[0]

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return jnp.maximum(jnp.sum(batch["loss_mask"][..., 1:]), 1.0)

    def empty_tape(self, config, adapter, compute, base, trained, batch) -> EmptyTape:
        rows, columns = batch["tokens"].shape
        count = rows * (columns - 1)
        if compute.tensor_axis is not None:
            count = share_of(count, compute.tensor_axis)
        means = jnp.zeros((count, config.hidden_size), wide(dtype_of(base)))
        means = as_varying(means, batch["tokens"])
        batch = {"tokens": batch["tokens"]}  # the shapes are those of rows of one document
        return decoder.empty_tape(config, adapter, compute, base, trained, batch, means)


NEXT_TOKEN = LanguageModeling()


def token_loss_sum(
    config: DecoderConfig,
    adapter: Adapter | None,
    compute: Compute,
    base: PyTree,
    trained: Trained,
    batch: Batch,
    key: Array | None = None,
    tape: EmptyTape | TapeValues | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of −log p over the tokens that `loss_mask` marks as predicted, and their number.

    In a row of several documents it marks the first token of none of them: the one before it is another's.
    """
    x, vocabulary, targets, weights = _predictions(config, adapter, compute, base, trained, batch, key, tape)
    if adapter is not None and "lm_head" in adapter.whole_modules:
        # Only a trained head gets a gradient. It is float32, and so is its product.
        assert not isinstance(vocabulary, Columns)
        loss = losses.trained_cross_entropy_sum(x, vocabulary, targets, weights, chunk=_chunk(compute, x))
    else:
        given = {} if tape is None else {"empty" if isinstance(tape, EmptyTape) else "means": tape.means}
        loss = losses.cross_entropy_sum(x, vocabulary, targets, weights, chunk=_chunk(compute, x), **given)
    return loss, jnp.sum(weights)


def token_scores(
    config: DecoderConfig, adapter: Adapter | None, compute: Compute, base: PyTree, trained: Trained, batch: Batch
) -> Scores:
    """What `token_loss_sum` sums up, forward only, with the number of tokens that the model would have written itself."""
    x, vocabulary, targets, weights = _predictions(config, adapter, compute, base, trained, batch)
    loss, hits = losses.cross_entropy_and_hits(x, vocabulary, targets, weights, chunk=_chunk(compute, x))
    return Scores(loss, hits, jnp.sum(weights))


def _predictions(config, adapter, compute: Compute, base, trained, batch, key=None, tape=None):
    """The last hidden states (N, D) in the dtype of the head (V, D), the head, the next tokens (N,) and their weights (N,); on
    devices that share products, of this one's share of the tokens."""
    x = decoder.hidden(config, adapter, compute, base, trained, batch, key, tape)
    x = x[:, :-1].reshape(-1, config.hidden_size)
    targets, weights = batch["tokens"][:, 1:].reshape(-1), batch["loss_mask"][:, 1:].reshape(-1)
    if compute.tensor_axis is not None:
        x, targets, weights = (own_share(array, compute.tensor_axis) for array in (x, targets, weights))
    vocabulary = head_table_of(with_whole_modules(base, trained[0]))
    return x.astype(vocabulary.dtype), vocabulary, targets, weights


def _chunk(compute: Compute, x: Float[Array, "N D"]) -> int:
    return losses.share_of_chunk(compute.loss_chunk, len(x), compute.loss_devices)


def combined_token_scores(
    config: DecoderConfig, stacked: Member, compute: Compute, base: PyTree, batch: Batch, *, combine: Combine
) -> Scores:
    """`token_scores` of an ensemble. Members pass one after the other, N of one hidden state remain."""

    def member(trained):
        return decoder.hidden(config, stacked.adapter, compute, base, trained, batch)

    loss_chunk = compute.loss_chunk
    x = jax.lax.map(member, (stacked.direction, stacked.magnitude))[:, :, :-1]
    x = x.reshape(x.shape[0], -1, config.hidden_size)
    targets, weights = batch["tokens"][:, 1:].reshape(-1), batch["loss_mask"][:, 1:].reshape(-1)
    spare = -x.shape[1] % loss_chunk
    x, targets, weights = (
        jnp.pad(x, ((0, 0), (0, spare), (0, 0))),
        jnp.pad(targets, (0, spare)),
        jnp.pad(weights, (0, spare)),
    )
    head = head_of(base).astype(x.dtype)

    def chunk(sums, start):
        part, wanted, weight = (
            jax.lax.dynamic_slice_in_dim(whole, start, loss_chunk, axis)
            for whole, axis in ((x, 1), (targets, 0), (weights, 0))
        )
        log_p = jax.nn.log_softmax(combined(frozen_dot(part, head), combine), axis=-1)
        own = jnp.take_along_axis(log_p, wanted[:, None], axis=1)[:, 0]
        hits = jnp.sum(weight * (own >= jnp.max(log_p, axis=-1)))
        return (sums[0] - jnp.sum(own * weight), sums[1] + hits), None

    starts = jnp.arange(x.shape[1] // loss_chunk) * loss_chunk
    zero = jnp.zeros((), wide(x.dtype))
    (total, hits), _ = jax.lax.scan(chunk, (zero, zero), starts)
    return Scores(total, hits, jnp.sum(weights))
