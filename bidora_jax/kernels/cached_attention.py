"""Attention of one new token in each row over the keys and values of those before it.

    out_b = Σ_s softmax_s(q_b·k_bs / √h) v_bs        over the columns s that row b sees

A cache is (B, K, S, h): a head's keys lie together, which is the order that both products read them in. Columns fill in
one order for all rows: the prompts, padded on the right to P columns, then one column a step. So a row's positions are
not its columns: between the end of its prompt and column P lies a gap that it never sees.

Scores and softmax are float32 (float64 for float64); products have the dtype of the inputs and accumulate in float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bidora_jax.kernels.precision import wide


def column_positions(
    lengths: Int[Array, " B"], prompt_columns: int, columns: int
) -> tuple[Int[Array, "B S"], Bool[Array, "B S"]]:
    """The position that each column holds in each row, and whether it holds one: a column of the gap does not."""
    column = jnp.arange(columns)[None, :]
    in_prompt = column < prompt_columns
    positions = jnp.where(in_prompt, column, lengths[:, None] + column - prompt_columns)
    return positions, jnp.where(in_prompt, column < lengths[:, None], True)


def write(
    stack: Float[Array, "L B K S h"], new: Float[Array, "B K h"], layer: Int[Array, ""] | int, column: Int[Array, ""]
) -> Float[Array, "L B K S h"]:
    """The caches of several layers with one column of one of them filled."""
    return jax.lax.dynamic_update_slice(stack, new[None, :, :, None, :], (layer, 0, 0, column, 0))


def attend(
    q: Float[Array, "B H h"],
    keys: Float[Array, "B K S h"],
    values: Float[Array, "B K S h"],
    visible: Bool[Array, "B S"],
) -> Float[Array, "B H h"]:
    """Grouped-query attention of one query a row."""
    grouped = q.reshape(q.shape[0], keys.shape[1], -1, q.shape[2])
    scores = jnp.einsum("bkgh,bksh->bkgs", grouped, keys, preferred_element_type=wide(q.dtype)) * q.shape[-1] ** -0.5
    scores = jnp.where(visible[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    out = jnp.einsum("bkgs,bksh->bkgh", weights, values, preferred_element_type=wide(values.dtype))
    return out.reshape(q.shape).astype(q.dtype)
