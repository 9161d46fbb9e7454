"""kernels/encoder_attention.py: a plain float64 twin, the edges of documents and windows, the chunked form against the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environment import AS_USERS

from bidora_jax.kernels.encoder_attention import segment_attention

BATCH, TOKENS, HEADS, DIM = 2, 11, 3, 10
SEGMENTS = jnp.array([[1] * 4 + [2] * 5 + [0] * 2, [1] * 11])


def case(dtype=jnp.float32):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.normal(size=(BATCH, TOKENS, HEADS, DIM)), dtype) for _ in range(3)]


def added():
    return np.random.default_rng(7).normal(size=(BATCH, HEADS, TOKENS, TOKENS))


def plain(q, k, v, window=TOKENS, bias=0.0, scale=DIM**-0.5):
    """One token of one head at a time, in float64."""
    q, k, v = (np.asarray(array, np.float64) for array in (q, k, v))
    out, bias = np.zeros(q.shape), np.broadcast_to(bias, (BATCH, HEADS, TOKENS, TOKENS))
    for b, i, head in np.ndindex(BATCH, TOKENS, HEADS):
        seen = [j for j in range(TOKENS) if SEGMENTS[b, i] == SEGMENTS[b, j] and abs(i - j) <= window]
        scores = k[b, seen, head] @ q[b, i, head] * scale + bias[b, head, i, seen]
        weights = np.exp(scores - scores.max())
        out[b, i, head] = (weights / weights.sum()) @ v[b, seen, head]
    return out


def bias_of(dtype, chunk):
    """As the kernel takes it: a block of whatever it asks for. The last chunk asks beyond the end."""
    whole = jnp.pad(jnp.asarray(added(), dtype), ((0, 0), (0, 0), (0, chunk), (0, 0)))

    def bias(first, q):
        assert q.shape == (BATCH, min(chunk, TOKENS), HEADS, DIM)
        return jax.lax.dynamic_slice_in_dim(whole, first, q.shape[1], axis=2)

    return bias


@pytest.mark.parametrize("window", [None, 0, 1, 3, TOKENS - 1, 50])
@pytest.mark.parametrize("chunk", [TOKENS, 4, 1])
def test_it_is_the_plain_sum_over_the_tokens_of_a_document(chunk, window):
    q, k, v = case()
    found = segment_attention(q, k, v, SEGMENTS, chunk=chunk, window=window)
    np.testing.assert_allclose(found, plain(q, k, v, TOKENS if window is None else window), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [TOKENS, 4])
def test_a_bias_is_added_to_the_scaled_scores(chunk):
    q, k, v = case()
    found = segment_attention(q, k, v, SEGMENTS, chunk=chunk, bias=bias_of(jnp.float32, chunk), scale=0.2)
    np.testing.assert_allclose(found, plain(q, k, v, bias=added(), scale=0.2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [0, 2, 5])
def test_a_traced_window_that_differs_by_layer_sees_both_edges_and_nothing_beyond(window):
    q, k, v = case()
    i = 5

    def total(v, window):
        return jnp.sum(segment_attention(q, k, v, SEGMENTS, chunk=4, window=window)[1, i] ** 2)

    touched = np.asarray(jax.jit(jax.grad(total))(v, jnp.int32(window)))[1].any((1, 2))
    assert touched.tolist() == [abs(i - j) <= window for j in range(TOKENS)]


def test_no_document_sees_another_nor_padding():
    q, k, v = case()
    for chunk in (TOKENS, 4):
        dk, dv = jax.grad(
            lambda k, v, chunk=chunk: jnp.sum(segment_attention(q, k, v, SEGMENTS, chunk=chunk)[0, 4:9] ** 2), (0, 1)
        )(k, v)
        for grad in (dk, dv):
            assert np.asarray(grad)[0].any((1, 2)).tolist() == [False] * 4 + [True] * 5 + [False] * 2
            assert not np.asarray(grad)[1].any()


@pytest.mark.parametrize(("window", "biased"), [(None, False), (3, True)])
def test_chunks_have_the_wholes_derivatives_of_second_order(x64, window, biased):
    q, k, v = case(jnp.float64)

    def product(chunk):
        bias = bias_of(jnp.float64, chunk) if biased else None

        def loss(q, k, v):
            return jnp.sum(jnp.sin(segment_attention(q, k, v, SEGMENTS, chunk=chunk, window=window, bias=bias)))

        gradient = jax.grad(loss, (0, 1, 2))

        def again(*at):
            return sum(jnp.sum(jnp.cos(part)) for part in gradient(*at))

        return jax.jit(
            lambda: (gradient(q, k, v), jax.jvp(gradient, (q, k, v), (v, q, k))[1], jax.grad(again, (0, 1, 2))(q, k, v))
        )()

    for found, expected in zip(jax.tree.leaves(product(4)), jax.tree.leaves(product(TOKENS)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_bfloat16_rounds_the_weights_and_the_result_alone():
    q, k, v = case(jnp.bfloat16)
    found = segment_attention(q, k, v, SEGMENTS, chunk=4)
    assert found.dtype == jnp.bfloat16
    # One step of bfloat16 in a weight and one in the result, of sums of numbers of size 1.
    np.testing.assert_allclose(np.asarray(found, np.float64), plain(q, k, v), atol=2**-6)


def test_chunks_take_less_memory_than_all_scores():
    def temporaries(chunk):
        rows = [jax.ShapeDtypeStruct((1, 1024, 4, 16), jnp.float32)] * 3
        segments = jax.ShapeDtypeStruct((1, 1024), jnp.int32)

        def loss(segments, *rows):
            return jnp.sum(jnp.sin(segment_attention(*rows, segments, chunk=chunk)))

        compiled = jax.jit(jax.grad(loss, (1, 2, 3))).lower(segments, *rows).compile(AS_USERS)
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(256) < 0.5 * temporaries(1024)
