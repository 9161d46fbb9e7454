"""The two terms of the training loss: chunked next-token cross-entropy and the Gram penalty on the direction.

    CE = Σ_n w_n · (logsumexp(x_n·Eᵀ) − x_n·E_{y_n})              returned as a sum, to be divided by all trained tokens
    R  = ‖D·Dᵀ − I‖_F,  D = V / ‖V‖ row by row                    BiDoRA (arXiv:2410.09758, section 3.4), un-squared

The cross-entropy runs over chunks of tokens under `jax.checkpoint`: logits exist for one chunk at a time, in the forward,
the backward and the mixed second-order pass. Logits and losses are float32 (float64 for float64).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bidora_jax.kernels.dora import frozen_dot, wide


def cross_entropy_sum(
    x: Float[Array, "N D"],
    embedding: Float[Array, "V D"],
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    *,
    chunk: int,
) -> Float[Array, ""]:
    """Weighted sum of −log softmax(x·Eᵀ)[target] over N tokens, `chunk` tokens at a time."""
    count = -(-x.shape[0] // chunk)
    padding = count * chunk - x.shape[0]

    def in_chunks(array):
        padded = jnp.pad(array, ((0, padding),) + ((0, 0),) * (array.ndim - 1))
        return padded.reshape(count, chunk, *array.shape[1:])

    @jax.checkpoint
    def one(total, part):
        return total + jnp.sum(token_losses(part[0], embedding, part[1]) * part[2]), None

    zero = jnp.zeros((), wide(x.dtype))
    return jax.lax.scan(one, zero, (in_chunks(x), in_chunks(targets), in_chunks(weights)))[0]


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
