"""The two terms of the training loss: next-token cross-entropy without all logits, and the Gram penalty on the direction.

    CE = Σ_n w_n · (logsumexp(x_n·Eᵀ) − x_n·E_{y_n})              returned as a sum, to be divided by all trained tokens
    R  = ‖D·Dᵀ − I‖_F,  D = V / ‖V‖ row by row                    BiDoRA (arXiv:2410.09758, section 3.4), un-squared

Where the embedding is frozen the gradient with respect to x_n, w_n·(softmax(x_n·Eᵀ)·E − E_{y_n}), needs nothing that comes
later and is made beside the loss. It is an attention of the tokens over the rows of E, keys and values in one, so it is computed as
attention without all scores is: a block of rows at a time, under the largest logit so far (online softmax, arXiv:1805.02867). Every
row of E is read once for all tokens. Logits are float32 (float64 for float64) and exist for one block, in the forward, the
backward and the mixed second-order pass; of a trained embedding, for `chunk` tokens and all rows.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bidora_jax.kernels import table, xla_cpu
from bidora_jax.kernels.matmul import dot, frozen_dot
from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.table import Table
from bidora_jax.kernels.varying import as_varying

BLOCK, CPU_BLOCK = 8192, 2048
"""Rows of E in a block, at most. On a GPU each block reads and writes the sums (N, D) once more: the fewer blocks, the fewer
bytes. On a CPU 1,024 to 4,096 rows are equally fast."""
SPAN = 4096
"""Tokens that go over the rows of E together, at most."""


def cross_entropy_sum(
    x: Float[Array, "N D"],
    embedding: Table,
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    *,
    chunk: int,
    empty: Float[Array, "N D"] | None = None,
    means: Float[Array, "N D"] | None = None,
) -> Float[Array, ""]:
    """Weighted sum of −log softmax(x·Eᵀ)[target] over N tokens, with at most chunk·V logits at a time; E is held constant.

    The gradient with respect to `empty`, zeros in the dtype of sums, is softmax(x·Eᵀ)·E of every token. As `means` a pass at the
    same point takes them from there: of its gradient's derivative that spares one of four products with E.
    """
    return _frozen_sum(chunk, x, embedding, targets, weights, empty, means)


def cross_entropy_and_hits(
    x: Float[Array, "N D"],
    embedding: Table,
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    *,
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The same sum, and the weighted number of tokens whose target has the largest logit. Has no derivative."""
    return _by_span(partial(_loss_and_hits, chunk), x, embedding, targets, weights)


def trained_cross_entropy_sum(
    x: Float[Array, "N D"],
    embedding: Float[Array, "V D"],
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    *,
    chunk: int,
) -> Float[Array, ""]:
    """The same sum, `chunk` tokens at a time, differentiable in E too: logits are made again in the backward pass."""

    @jax.checkpoint
    def one(total, part):
        return total + jnp.sum(token_losses(part[0], embedding, part[1]) * part[2]), None

    zero = as_varying(jnp.zeros((), wide(x.dtype)), x)
    return jax.lax.scan(one, zero, _in_chunks(chunk, x, targets, weights))[0]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _frozen_sum(chunk: int, x, embedding, targets, weights, empty, means):
    del empty, means
    return _by_span(partial(_loss_and_hits, chunk), x, embedding, targets, weights)[0]


def _frozen_sum_forward(chunk: int, x, embedding, targets, weights, empty, means):
    loss, slopes, found = _by_span(partial(_loss_and_slope, chunk), x, embedding, targets, weights, means)
    return loss, (slopes, None if empty is None else found)


def _frozen_sum_backward(chunk: int, residuals, g):
    del chunk
    slopes, found = residuals
    return (g * slopes).astype(slopes.dtype), None, None, None, found, None


_frozen_sum.defvjp(_frozen_sum_forward, _frozen_sum_backward)


@jax.custom_jvp
def _mean(known, sums, total):
    """`known`, which is sums / total, with its derivatives."""
    del sums, total
    return known


@_mean.defjvp
def _mean_jvp(primals, tangents):
    known, _, total = primals
    _, sums_tangent, total_tangent = tangents
    return _mean(*primals), (sums_tangent - known * total_tangent) / total


def _in_chunks(chunk: int, first: Array, *more: Array | None) -> tuple[Any, ...]:
    """Each array (N, …) as (⌈N/chunk⌉, chunk, …), filled up with zeros."""
    count = -(-first.shape[0] // chunk)

    def split(array):
        padded = jnp.pad(array, ((0, count * chunk - array.shape[0]),) + ((0, 0),) * (array.ndim - 1))
        return padded.reshape(count, chunk, *array.shape[1:])

    return jax.tree.map(split, (first, *more))


def _by_span(one, x, embedding, *rest: Array | None):
    """one(x, embedding, targets, weights, …) of at most SPAN tokens at a time: sums are added up, what it makes of each token is
    joined."""
    spans = -(-x.shape[0] // SPAN)
    if spans == 1:
        return one(x, embedding, *rest)
    parts = _in_chunks(-(-x.shape[0] // spans), x, *rest)
    made = jax.lax.map(lambda part: one(part[0], embedding, *part[1:]), parts)
    return jax.tree.map(
        lambda stack: jnp.sum(stack) if stack.ndim == 1 else stack.reshape(-1, x.shape[1])[: x.shape[0]], tuple(made)
    )


def _loss_and_slope(
    chunk: int,
    x: Float[Array, "N D"],
    embedding: Table,
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    means: Float[Array, "N D"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, "N D"], Float[Array, "N D"]]:
    """The weighted sum of the tokens' losses, its gradient with respect to x, and softmax(x·Eᵀ)·E.

    Over the blocks b of E, with m the largest logit so far, s = Σ exp(l − m) and a = Σ exp(l − m)·E:

        m' = max(m, max l_b),   s ← s·exp(m − m') + Σ exp(l_b − m'),   a ← a·exp(m − m') + exp(l_b − m')·E_b
    """

    def step(carried, rows, logits, first):
        del first
        top, total, sums = carried
        highest, powers, shrunk = _under(top, logits)
        total = total * shrunk + jnp.sum(powers, axis=1)
        sums = sums * shrunk[:, None] + dot(powers.astype(x.dtype), rows, -1, -2)
        return highest, total, sums

    zeros = as_varying(jnp.zeros(x.shape[0], wide(x.dtype)), x)
    start = zeros - jnp.inf, zeros, as_varying(jnp.zeros(x.shape, zeros.dtype), x)
    top, total, sums = _over_blocks(chunk, x, embedding, step, start)
    loss, aimed = _loss(x, embedding, targets, weights, top, total)
    found: Any = sums / total[:, None] if means is None else _mean(means, sums, total[:, None])
    return loss, (weights[:, None] * (found - aimed)).astype(x.dtype), found


def _loss_and_hits(chunk: int, x, embedding, targets, weights) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The weighted sum of the tokens' losses, and the weighted number of those whose target's logit is the largest."""

    def step(carried, rows, logits, first):
        del rows
        top, total, reached = carried
        highest, powers, shrunk = _under(top, logits)
        place = jnp.clip(targets - first, 0, logits.shape[1] - 1)
        inside = place == targets - first
        own = jnp.where(inside, jnp.take_along_axis(logits, place[:, None], axis=1)[:, 0], -jnp.inf)
        return highest, total * shrunk + jnp.sum(powers, axis=1), jnp.maximum(reached, own)

    zeros = as_varying(jnp.zeros(x.shape[0], wide(x.dtype)), x)
    top, total, reached = _over_blocks(chunk, x, embedding, step, (zeros - jnp.inf, zeros, zeros - jnp.inf))
    loss, _ = _loss(x, embedding, targets, weights, top, total)
    return loss, jnp.sum(jnp.where(reached >= top, weights, 0.0).astype(zeros.dtype))


def _over_blocks(chunk: int, x: Float[Array, "N D"], embedding: Table, step: Any, start: Any) -> Any:
    """Carries `start` over the blocks of E: step(carried, rows, logits, first row). Logits of rows that were there are −∞."""
    vocabulary = embedding.shape[0]
    block = _block(chunk, x.shape[0], vocabulary)

    @partial(jax.checkpoint, prevent_cse=False)
    def one(carried, number):
        first = jnp.minimum(number * block, vocabulary - block)
        rows = table.block(embedding, first, block)
        logits = frozen_dot(x, rows)
        if vocabulary % block:  # the last block begins among the rows of the one before it
            logits = jnp.where(first + jnp.arange(block) >= number * block, logits, -jnp.inf)
        return step(carried, rows, logits, first), None

    return jax.lax.scan(one, start, jnp.arange(-(-vocabulary // block)))[0]


def _under(top: Float[Array, " N"], logits: Float[Array, "N b"]) -> tuple[Array, Array, Array]:
    """The largest logit with this block, exp(logits) under it, and by what the sums so far shrink."""
    highest = jax.lax.stop_gradient(jnp.maximum(top, jnp.max(logits, axis=1)))
    return highest, jnp.exp(logits - highest[:, None]), jnp.exp(top - highest)


def _loss(x, embedding, targets, weights, top, total) -> tuple[Float[Array, ""], Float[Array, "N D"]]:
    """Σ w·(logsumexp − logit of the target), and the rows of the targets.

    They are looked up after the loop over the blocks: what a mesh sends here must not run beside what it sends there
    (models/spread.py, `_weighed`).
    """
    targets = jnp.where(total > 0, targets, 0) if isinstance(embedding, table.Columns) else targets
    aimed = table.rows(embedding, targets).astype(total.dtype)
    picked = jnp.sum(x.astype(total.dtype) * aimed, axis=1)
    return jnp.sum((jnp.log(total) + top - picked) * weights), aimed


def _block(chunk: int, tokens: int, vocabulary: int) -> int:
    """Rows of E in a block: so many that there are no more logits than of `chunk` tokens over all rows."""
    most = CPU_BLOCK if xla_cpu.active() else BLOCK
    rows = min(most, vocabulary, max(1, chunk * vocabulary // tokens))
    return rows // 128 * 128 or rows


def token_losses(
    x: Float[Array, "N D"], embedding: Float[Array, "V D"], targets: Int[Array, " N"]
) -> Float[Array, " N"]:
    """−log softmax(x·Eᵀ)[target] of each token, with all [N, V] logits in memory."""
    logits = frozen_dot(x, embedding)
    picked = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - picked


def share_of_chunk(chunk: int, tokens: int, devices: int) -> int:
    """The chunk with which one of so many devices, that has `tokens` tokens as each of them, cuts E into the blocks that one device
    cuts it into for the tokens of all: the rounding of 16-bit floats follows the blocks."""
    of_all, own = (-(-count // -(-count // SPAN)) for count in (tokens * devices, tokens))
    return max(chunk * own // of_all, 1)


def gram_penalty(d: Float[Array, "O I"]) -> Float[Array, ""]:
    """‖D·Dᵀ − I‖_F of a matrix whose rows have length 1 or 0, on the smaller Gram side.

    ‖D·Dᵀ‖_F = ‖Dᵀ·D‖_F and the diagonal of D·Dᵀ holds the squared row lengths, so for lengths 1 (n of them) and 0:
    ‖D·Dᵀ − I‖²_F = ‖Gram‖²_F − 2n + O. Orthonormal rows give 0 with a zero derivative, not NaN.
    """
    gram = d @ d.T if d.shape[0] <= d.shape[1] else d.T @ d
    total = jnp.sum(jnp.square(gram)) - 2 * jnp.sum(jnp.square(d)) + d.shape[0]
    positive = total > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, total, 1.0)), 0.0)
