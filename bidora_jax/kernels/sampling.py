"""The next token of each row, from its logits: penalised, cooled, filtered, drawn.

    l ← l/ρ where l > 0, l·ρ where l < 0, of tokens that were there before       repetition penalty, arXiv:1909.05858
    l ← l/τ                                                                      temperature; τ = 0: the most probable
    keep the k largest                                                           top-k, arXiv:1805.04833
    keep the fewest whose probabilities reach p                                  top-p, arXiv:1904.09751
    keep those of at least m times the largest probability                       min-p, arXiv:2407.01082

In this order, and by the rules of transformers' logits processors, but that equal logits are kept or dropped together.
Every setting is data: another value compiles nothing anew. Everything is float32.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


class Sampling(NamedTuple):
    """How a token is chosen; numbers or scalar arrays. The defaults choose the most probable one."""

    temperature: Any = 0.0
    """0: the most probable token; 1: the model's own distribution."""
    top_k: Any = 0
    """0: all."""
    top_p: Any = 1.0
    """1: all."""
    min_p: Any = 0.0
    """0: all."""
    repetition_penalty: Any = 1.0
    """Above 1 makes tokens of the prompt and of the answer less probable; 1: off."""

    def as_data(self) -> "Sampling":
        """The same with every setting an array of its own dtype, so that 1 and 1.0 are one program."""
        kinds = Sampling(*[jnp.float32] * 5)._replace(top_k=jnp.int32)
        return Sampling(*(jnp.asarray(value, kind) for value, kind in zip(self, kinds, strict=True)))


def penalised(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: Float[Array, ""]) -> Float[Array, "B V"]:
    """Logits with the repetition penalty on the tokens seen."""
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def filtered(logits: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """Logits over the temperature, with −∞ where top-k, top-p or min-p drops the token. The temperature must not be 0."""
    logits = logits / sampling.temperature
    sorts = (sampling.top_k > 0) | (sampling.top_p < 1)
    logits = jax.lax.cond(sorts, _top, lambda logits, _: logits, logits, sampling)
    floor = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(sampling.min_p)
    return jnp.where(logits < floor, -jnp.inf, logits)


def _top(logits, sampling: Sampling):
    """Top-k, then top-p among what is left, from one sort."""
    count = logits.shape[-1]
    ascending = jnp.sort(logits, axis=-1)
    k = jnp.where(sampling.top_k > 0, jnp.minimum(sampling.top_k, count), count)
    smallest = jax.lax.dynamic_index_in_dim(ascending, count - k, axis=-1)
    ascending = jnp.where(ascending < smallest, -jnp.inf, ascending)
    reached = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1)
    kept = (reached > 1 - sampling.top_p) | (jnp.arange(count) == count - 1)[None, :]
    smallest = jnp.where(
        sampling.top_p < 1, jnp.min(jnp.where(kept, ascending, jnp.inf), axis=-1, keepdims=True), smallest
    )
    return jnp.where(logits < smallest, -jnp.inf, logits)


def choose(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"], sampling: Sampling, keys: Key[Array, " B"]
) -> Int[Array, " B"]:
    """The next token of each row. A row's key decides its draw, whatever the other rows are."""
    penalty = sampling.repetition_penalty
    logits = jax.lax.cond(penalty != 1, penalised, lambda logits, *_: logits, logits, seen, penalty)

    def draw(logits):
        return jax.vmap(jax.random.categorical)(keys, filtered(logits, sampling)).astype(jnp.int32)

    def best(logits):
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    return jax.lax.cond(sampling.temperature > 0, draw, best, logits)
