"""The loss of a language model: −log p of every token that is trained."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from bidora_jax.generation.ensembles import Combine, Member, combined
from bidora_jax.kernels import losses
from bidora_jax.kernels.matmul import frozen_dot
from bidora_jax.kernels.precision import wide
from bidora_jax.models import decoder
from bidora_jax.models.adapters.adapter import Adapter, with_saved
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.decoder import head, hidden
from bidora_jax.models.layer_scan import Blank, Record, Remat


def token_loss_sum(
    config: DecoderConfig,
    adapter: Adapter | None,
    base: PyTree,
    direction: PyTree,
    magnitude: PyTree,
    tokens: Int[Array, "B T"],
    loss_mask: Float[Array, "B T"],
    key: Array | None = None,
    *,
    remat: Remat = "layer",
    fused: bool = False,
    attention_chunk: int = 1024,
    loss_chunk: int = 256,
    segments: Int[Array, "B T"] | None = None,
    record: Blank | Record | None = None,
    reversible: bool = True,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of −log p over the tokens that `loss_mask` marks as predicted, and their number.

    In a row of several documents it marks the first token of none of them: the one before it is another's.
    """
    x = hidden(
        config, adapter, base, direction, magnitude, tokens, key,
        remat=remat, fused=fused, attention_chunk=attention_chunk, segments=segments, record=record,
        reversible=reversible,
    )  # fmt: skip
    x = x[:, :-1].reshape(-1, config.hidden_size)
    targets, weights = tokens[:, 1:].reshape(-1), loss_mask[:, 1:].reshape(-1)
    vocabulary = head(with_saved(base, direction))
    # Only a trained head gets a gradient. It is float32, and so is its product.
    loss = losses.trained_cross_entropy_sum
    if adapter is None or "lm_head" not in adapter.whole_modules:
        given = {} if record is None else {"blank" if isinstance(record, Blank) else "means": record.means}
        loss = partial(losses.cross_entropy_sum, **given)
    return loss(x.astype(vocabulary.dtype), vocabulary, targets, weights, chunk=loss_chunk), jnp.sum(weights)


def combined_token_loss_sum(
    config: DecoderConfig,
    stacked: Member,
    base: PyTree,
    tokens: Int[Array, "B T"],
    loss_mask: Float[Array, "B T"],
    *,
    combine: Combine,
    attention_chunk: int = 1024,
    loss_chunk: int = 256,
    segments: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`decoder.token_loss_sum` of an ensemble, forward only. Members pass one after the other, N of one hidden state remain."""

    def member(trained):
        direction, magnitude = trained
        return decoder.hidden(
            config, stacked.adapter, base, direction, magnitude, tokens,
            attention_chunk=attention_chunk, segments=segments,
        )  # fmt: skip

    x = jax.lax.map(member, (stacked.direction, stacked.magnitude))[:, :, :-1]
    x = x.reshape(x.shape[0], -1, config.hidden_size)
    targets, weights = tokens[:, 1:].reshape(-1), loss_mask[:, 1:].reshape(-1)
    spare = -x.shape[1] % loss_chunk
    x, targets, weights = (
        jnp.pad(x, ((0, 0), (0, spare), (0, 0))),
        jnp.pad(targets, (0, spare)),
        jnp.pad(weights, (0, spare)),
    )
    head = decoder.head(base).astype(x.dtype)

    def chunk(total, start):
        part, wanted, weight = (
            jax.lax.dynamic_slice_in_dim(whole, start, loss_chunk, axis)
            for whole, axis in ((x, 1), (targets, 0), (weights, 0))
        )
        log_p = jax.nn.log_softmax(combined(frozen_dot(part, head), combine), axis=-1)
        return total - jnp.sum(jnp.take_along_axis(log_p, wanted[:, None], axis=1)[:, 0] * weight), None

    starts = jnp.arange(x.shape[1] // loss_chunk) * loss_chunk
    total, _ = jax.lax.scan(chunk, jnp.zeros((), wide(x.dtype)), starts)
    return total, jnp.sum(weights)
