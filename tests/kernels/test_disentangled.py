"""kernels/disentangled.py: a slow twin that looks every pair up, transformers' buckets, and attention by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels.disentangled import log_bucket, position_scores, rows_by_difference
from bidora_jax.kernels.encoder_attention import segment_attention

BATCH, TOKENS, HEADS, DIM, HALF = 2, 11, 3, 10, 4
SEGMENTS = jnp.array([[1] * 4 + [2] * 5 + [0] * 2, [1] * 11])
SCALE = 0.2


def case(dtype=jnp.float32):
    """q, k, v, and the projected rows of the table: for keys, for queries."""
    random = np.random.default_rng(0)
    arrays = [random.normal(size=(BATCH, TOKENS, HEADS, DIM)) for _ in range(3)]
    arrays += [random.normal(size=(2 * HALF, HEADS, DIM)) for _ in range(2)]
    return [jnp.asarray(array, dtype) for array in arrays]


def rows():
    return rows_by_difference(TOKENS, HALF, buckets=None, most=HALF)


def plain(q, k, keys, queries):
    """One pair at a time, in float64."""
    q, k, keys, queries = (None if array is None else np.asarray(array, np.float64) for array in (q, k, keys, queries))
    out = np.zeros((BATCH, HEADS, TOKENS, TOKENS))
    for b, head, i, j in np.ndindex(out.shape):
        row = np.clip(i - j + HALF, 0, 2 * HALF - 1)
        if keys is not None:
            out[b, head, i, j] += q[b, i, head] @ keys[row, head]
        if queries is not None:
            out[b, head, i, j] += k[b, j, head] @ queries[row, head]
    return SCALE * out


@pytest.mark.parametrize("terms", ["both", "keys", "queries"])
@pytest.mark.parametrize("chunk", [TOKENS, 4, 1])
def test_the_scores_are_those_of_every_pair(terms, chunk):
    q, k, _, keys, queries = case()
    keys, queries = (None if terms == other else table for other, table in (("queries", keys), ("keys", queries)))
    bias = position_scores(
        k, *(None if table is None else table[rows()] for table in (keys, queries)), chunk=chunk, scale=SCALE
    )
    expected = plain(q, k, keys, queries)
    for first in range(0, TOKENS, chunk):
        block = jnp.pad(q[:, first : first + chunk], ((0, 0), (0, max(0, first + chunk - TOKENS)), (0, 0), (0, 0)))
        found = bias(first, block)[:, :, : TOKENS - first]
        np.testing.assert_allclose(found, expected[:, :, first : first + chunk], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [TOKENS, 4])
def test_attention_by_them_has_the_derivatives_of_the_looked_up_scores(x64, chunk):
    *arguments, keys, queries = case(jnp.float64)

    def by_bands(q, k, v, keys, queries):
        bias = position_scores(k, keys[rows()], queries[rows()], chunk=chunk, scale=SCALE)
        return segment_attention(q, k, v, SEGMENTS, chunk=chunk, bias=bias, scale=SCALE)

    def looked_up(q, k, v, keys, queries):
        row = np.clip(np.arange(TOKENS)[:, None] - np.arange(TOKENS)[None, :] + HALF, 0, 2 * HALF - 1)
        scores = jnp.einsum("bihd,bjhd->bhij", q, k) + jnp.einsum("bihd,ijhd->bhij", q, keys[row])
        scores = SCALE * (scores + jnp.einsum("bjhd,ijhd->bhij", k, queries[row]))
        seen = SEGMENTS[:, None, :, None] == SEGMENTS[:, None, None, :]
        return jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1), v)

    def derivatives(form):
        gradient = jax.grad(lambda *at: jnp.sum(jnp.sin(form(*at))), tuple(range(5)))
        at = (*arguments, keys, queries)

        def again(*at):
            return sum(jnp.sum(jnp.cos(part)) for part in gradient(*at))

        return jax.jit(
            lambda: (
                gradient(*at),
                jax.jvp(gradient, at, tuple(map(jnp.cos, at)))[1],
                jax.grad(again, tuple(range(5)))(*at),
            )
        )()

    for found, expected in zip(*(jax.tree.leaves(derivatives(form)) for form in (by_bands, looked_up)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


def test_no_derivative_adds_into_scattered_places():
    q, k, v, keys, queries = case()

    def loss(q, k, v, keys, queries):
        bias = position_scores(k, keys, queries, chunk=4, scale=SCALE)
        return jnp.sum(segment_attention(q, k, v, SEGMENTS, chunk=4, bias=bias, scale=SCALE))

    program = str(jax.make_jaxpr(jax.grad(loss, tuple(range(5))))(q, k, v, keys[rows()], queries[rows()]))
    assert "dot_general" in program and "scatter" not in program and "gather" not in program


@pytest.mark.torch
@pytest.mark.parametrize(("buckets", "most"), [(256, 512), (32, 211), (6, 24)])
def test_the_buckets_are_transformers(buckets, most):
    import torch
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distance = np.arange(-3 * most, 3 * most + 1)
    expected = make_log_bucket_position(torch.tensor(distance), buckets, most).long().numpy()
    np.testing.assert_array_equal(log_bucket(distance, buckets, most), expected)


def test_past_half_of_the_buckets_several_distances_share_one():
    # 256 buckets to a distance of 512, as published: 128 has its own bucket, 131 and 132 share one.
    assert log_bucket(np.array([127, 128, 131, 132, 511]), 256, 512).tolist() == [127, 128, 131, 131, 255]
    found = rows_by_difference(600, 256, buckets=256, most=512)
    assert found.shape == (1201,) and found[600] == 256 and (found[0], found[-1]) == (511, 0)
