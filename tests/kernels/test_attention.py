"""kernels/attention.py: a plain float64 twin, causality by gradients, and the chunked form against the dense one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environment import AS_USERS

from bidora_jax.kernels import attention

BATCH, TOKENS, HEADS, GROUPS, DIM = 2, 11, 6, 2, 10


def case(dtype=jnp.float32):
    random = np.random.default_rng(0)
    shapes = ((BATCH, TOKENS, HEADS, DIM), (BATCH, TOKENS, GROUPS, DIM), (BATCH, TOKENS, GROUPS, DIM))
    return [jnp.asarray(random.normal(size=shape), dtype) for shape in shapes]


def plain(q, k, v, window=TOKENS):
    """One query head at a time, in float64."""
    q, k, v = (np.asarray(array, np.float64) for array in (q, k, v))
    out = np.zeros(q.shape)
    for b in range(BATCH):
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            for t in range(TOKENS):
                seen = slice(max(0, t + 1 - window), t + 1)
                scores = k[b, seen, group] @ q[b, t, head] / np.sqrt(DIM)
                weights = np.exp(scores - scores.max())
                out[b, t, head] = (weights / weights.sum()) @ v[b, seen, group]
    return out


@pytest.fixture(params=[attention.SHORTEST_RUN, 2], ids=["one run", "runs"])
def runs(monkeypatch, request):
    """Sequences that are not chunked in one run of queries, and in several."""
    monkeypatch.setattr(attention, "SHORTEST_RUN", request.param)


@pytest.mark.parametrize("chunk", [TOKENS, 4, 1])
def test_causal_attention_is_the_plain_sum(chunk, runs):
    q, k, v = case()
    np.testing.assert_allclose(attention.causal_attention(q, k, v, chunk=chunk), plain(q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [1, 3, 7, TOKENS, 50])
@pytest.mark.parametrize("chunk", [TOKENS, 4])
def test_a_window_is_the_plain_sum_over_the_last_tokens(chunk, window, runs):
    q, k, v = case()
    found = attention.causal_attention(q, k, v, chunk=chunk, window=window)
    np.testing.assert_allclose(found, plain(q, k, v, window), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("chunk", "shortest"), [(4, TOKENS), (TOKENS, 2), (TOKENS, 5)])
@pytest.mark.parametrize("window", [None, 3])
def test_chunks_and_runs_have_the_dense_forms_derivatives_of_second_order(x64, monkeypatch, window, chunk, shortest):
    q, k, v = case(jnp.float64)

    def product(chunk, shortest):
        monkeypatch.setattr(attention, "SHORTEST_RUN", shortest)

        def loss(q, k, v):
            return jnp.sum(jnp.sin(attention.causal_attention(q, k, v, chunk=chunk, window=window)))

        gradient = jax.grad(loss, (0, 1, 2))
        return jax.jit(lambda: (gradient(q, k, v), jax.jvp(gradient, (q, k, v), (v.repeat(3, 2), q[:, :, :2], k))[1]))()

    dense = product(TOKENS, TOKENS)
    for found, expected in zip(jax.tree.leaves(product(chunk, shortest)), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_two_chunks_take_less_memory_than_all_scores():
    def temporaries(chunk):
        q, k, v = (jax.ShapeDtypeStruct((1, 1024, heads, 16), jnp.float32) for heads in (4, 2, 2))

        def loss(q, k, v):
            return jnp.sum(jnp.sin(attention.causal_attention(q, k, v, chunk=chunk)))

        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v).compile(AS_USERS).memory_analysis().temp_size_in_bytes

    assert temporaries(512) < 0.5 * temporaries(1024)


def test_no_token_sees_a_later_one():
    q, k, v = case()
    # The derivative of output t with respect to key and value u > t is exactly zero, whatever the values are.
    for t in (0, 4, TOKENS - 2):
        dk, dv = jax.grad(lambda k, v, t=t: jnp.sum(attention.causal_attention(q, k, v, chunk=4)[:, t] ** 2), (0, 1))(
            k, v
        )
        assert not np.asarray(dk)[:, t + 1 :].any() and not np.asarray(dv)[:, t + 1 :].any()
        assert np.asarray(dv)[:, : t + 1].all()
