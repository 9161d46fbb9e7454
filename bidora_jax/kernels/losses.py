"""The two terms of the training loss: chunked next-token cross-entropy and the Gram penalty on the direction.

    CE = Σ_n w_n · (logsumexp(x_n·Eᵀ) − x_n·E_{y_n})              returned as a sum, to be divided by all trained tokens
    R  = ‖D·Dᵀ − I‖_F,  D = V / ‖V‖ row by row                    BiDoRA (arXiv:2410.09758, section 3.4), un-squared

Where the embedding is frozen the gradient with respect to x_n, w_n·(softmax(x_n·Eᵀ) − 1_{y_n})·E, needs nothing that comes
later: it is made beside the loss, chunk by chunk, and logits are never made twice. They exist for one chunk at a time, in the
forward, the backward and the mixed second-order pass. Logits and losses are float32 (float64 for float64).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bidora_jax.kernels.products import dot, frozen_dot, wide


def cross_entropy_sum(
    x: Float[Array, "N D"],
    embedding: Float[Array, "V D"],
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    *,
    chunk: int,
) -> Float[Array, ""]:
    """Weighted sum of −log softmax(x·Eᵀ)[target] over N tokens, `chunk` tokens at a time; E is held constant."""
    return _frozen_sum(chunk, x, embedding, targets, weights)


def trained_cross_entropy_sum(
    x: Float[Array, "N D"],
    embedding: Float[Array, "V D"],
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    *,
    chunk: int,
) -> Float[Array, ""]:
    """The same sum, differentiable in E too: logits are made again in the backward pass."""

    @jax.checkpoint
    def one(total, part):
        return total + jnp.sum(token_losses(part[0], embedding, part[1]) * part[2]), None

    zero = jnp.zeros((), wide(x.dtype))
    return jax.lax.scan(one, zero, _in_chunks(chunk, x, targets, weights))[0]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _frozen_sum(chunk: int, x, embedding, targets, weights):
    def one(part):
        return jnp.sum(token_losses(part[0], embedding, part[1]) * part[2])

    return jnp.sum(jax.lax.map(one, _in_chunks(chunk, x, targets, weights)))


def _frozen_sum_forward(chunk: int, x, embedding, targets, weights):
    @jax.checkpoint
    def one(part):
        return loss_and_slope(part[0], embedding, *part[1:])

    sums, slopes = jax.lax.map(one, _in_chunks(chunk, x, targets, weights))
    return jnp.sum(sums), slopes.reshape(-1, x.shape[1])[: x.shape[0]].astype(x.dtype)


def _frozen_sum_backward(chunk: int, slopes, g):
    del chunk
    return (g * slopes).astype(slopes.dtype), None, None, None


_frozen_sum.defvjp(_frozen_sum_forward, _frozen_sum_backward)


def _in_chunks(chunk: int, *arrays: Array) -> tuple[Array, ...]:
    """Each array (N, …) as (⌈N/chunk⌉, chunk, …), filled up with zeros."""
    count = -(-arrays[0].shape[0] // chunk)

    def split(array):
        padded = jnp.pad(array, ((0, count * chunk - array.shape[0]),) + ((0, 0),) * (array.ndim - 1))
        return padded.reshape(count, chunk, *array.shape[1:])

    return tuple(map(split, arrays))


def loss_and_slope(
    x: Float[Array, "N D"], embedding: Float[Array, "V D"], targets: Int[Array, " N"], weights: Float[Array, " N"]
) -> tuple[Float[Array, ""], Float[Array, "N D"]]:
    """The weighted sum of the tokens' losses and its gradient with respect to x, from one product with the embedding."""
    logits = frozen_dot(x, embedding)
    picked = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    # `picked` is one of those the maximum is of. A product that nothing but its maximum reads XLA's CPU backend makes together
    # with it, at twice the time of the two; this has it read once more where the loss itself is not wanted.
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(logits, axis=1), picked))
    powers = jnp.exp(logits - top[:, None])
    total = jnp.sum(powers, axis=1)
    hit = targets[:, None] == jnp.arange(logits.shape[1])[None, :]
    slope = powers * (weights / total)[:, None] - jnp.where(hit, weights[:, None], 0.0)
    return jnp.sum((jnp.log(total) + top - picked) * weights), dot(slope.astype(x.dtype), embedding, -1, -2)


def token_losses(
    x: Float[Array, "N D"], embedding: Float[Array, "V D"], targets: Int[Array, " N"]
) -> Float[Array, " N"]:
    """−log softmax(x·Eᵀ)[target] of each token, with all [N, V] logits in memory."""
    logits = frozen_dot(x, embedding)
    picked = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - picked


def gram_penalty(d: Float[Array, "O I"]) -> Float[Array, ""]:
    """‖D·Dᵀ − I‖_F of a matrix whose rows have length 1 or 0, on the smaller Gram side.

    ‖D·Dᵀ‖_F = ‖Dᵀ·D‖_F and the diagonal of D·Dᵀ holds the squared row lengths, so for lengths 1 (n of them) and 0:
    ‖D·Dᵀ − I‖²_F = ‖Gram‖²_F − 2n + O. Orthonormal rows give 0 with a zero derivative, not NaN.
    """
    gram = d @ d.T if d.shape[0] <= d.shape[1] else d.T @ d
    total = jnp.sum(jnp.square(gram)) - 2 * jnp.sum(jnp.square(d)) + d.shape[0]
    positive = total > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, total, 1.0)), 0.0)
