"""kernels/losses.py: the loss in parts against the whole one, the Gram penalty against its definition."""

from functools import partial

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environment import AS_USERS

from bidora_jax.kernels import losses

TOKENS, WIDTH, VOCABULARY = 17, 6, 29


def case():
    random = np.random.default_rng(0)
    x, e = random.normal(size=(TOKENS, WIDTH)), random.normal(size=(VOCABULARY, WIDTH))
    weights = (random.random(TOKENS) < 0.6).astype(np.float32)
    return jnp.asarray(x, jnp.float32), jnp.asarray(e, jnp.float32), random.integers(VOCABULARY, size=TOKENS), weights


def whole(x, e, targets, weights):
    logits = np.asarray(x, np.float64) @ np.asarray(e, np.float64).T
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -(log_p[np.arange(TOKENS), targets] * weights).sum()


@pytest.mark.parametrize("chunk", [1, 5, TOKENS, 64])
def test_chunked_cross_entropy_is_the_whole_one(chunk):
    x, e, targets, weights = case()
    found = losses.cross_entropy_sum(x, e, jnp.asarray(targets), jnp.asarray(weights), chunk=chunk)
    np.testing.assert_allclose(found, whole(x, e, targets, weights), rtol=1e-5)


@pytest.mark.parametrize(("chunk", "span"), [(1, 64), (5, 64), (TOKENS, 64), (5, 7)])
def test_hits_are_the_tokens_whose_logit_is_the_largest(chunk, span, monkeypatch):
    monkeypatch.setattr(losses, "SPAN", span)
    x, e, targets, weights = case()
    best = np.argmax(np.asarray(x) @ np.asarray(e).T, axis=1)
    targets[::2] = best[::2]
    loss, hits = losses.cross_entropy_and_hits(x, e, jnp.asarray(targets), jnp.asarray(weights), chunk=chunk)
    np.testing.assert_allclose(loss, whole(x, e, targets, weights), rtol=1e-5)
    assert 0 < hits < weights.sum() and hits == weights[targets == best].sum()


@pytest.mark.parametrize("chunk", [5, 64])
def test_the_gradient_made_beside_the_loss_is_that_of_the_trained_form(x64, chunk):
    x, e, targets, weights = case()
    x, e, v = x.astype(jnp.float64), e.astype(jnp.float64), jnp.cos(x.astype(jnp.float64))

    def both_orders(form):
        def loss(x):
            return jnp.sin(form(x, e, jnp.asarray(targets), jnp.asarray(weights, jnp.float64), chunk=chunk))

        gradient = jax.grad(loss)
        return (
            jax.value_and_grad(loss)(x),
            jax.jvp(gradient, (x,), (v,)),
            jax.grad(lambda x: jnp.vdot(gradient(x), v))(x),
        )

    found, expected = both_orders(losses.cross_entropy_sum), both_orders(losses.trained_cross_entropy_sum)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_the_trained_form_differentiates_the_embedding():
    x, e, targets, weights = case()
    found = jax.grad(
        lambda e: losses.trained_cross_entropy_sum(x, e, jnp.asarray(targets), jnp.asarray(weights), chunk=5)
    )(e)
    expected = jax.grad(lambda e: jnp.vdot(losses.token_losses(x, e, jnp.asarray(targets)), weights))(e)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_untrained_tokens_do_not_count():
    x, e, targets, weights = case()
    elsewhere = np.where(weights > 0, targets, (targets + 1) % VOCABULARY)
    values = [
        losses.cross_entropy_sum(x, e, jnp.asarray(t), jnp.asarray(weights), chunk=5) for t in (targets, elsewhere)
    ]
    np.testing.assert_array_equal(*values)


def test_no_buffer_of_all_logits_in_the_second_order_pass():
    x, e, targets, weights = case()
    x = jnp.tile(x, (16, 1))  # 272 tokens
    targets, weights = jnp.tile(jnp.asarray(targets), 16), jnp.tile(jnp.asarray(weights), 16)
    gradient = jax.grad(lambda x: losses.cross_entropy_sum(x, e, targets, weights, chunk=80))
    arrays = hlo.arrays(hlo.compiled(lambda x: jax.jvp(gradient, (x,), (x,)), x))
    assert (272, 8) in arrays  # 80 tokens have 2,320 logits, and so have 272 with 8 rows
    assert (272, VOCABULARY) not in arrays and (4, 272, 8) not in arrays


def test_many_tokens_go_over_the_embedding_in_spans(monkeypatch):
    x, e, targets, weights = case()
    arguments = x, e, jnp.asarray(targets), jnp.asarray(weights)

    def measured():
        def loss(x, chunk):
            return losses.cross_entropy_sum(x, *arguments[1:], chunk=chunk)

        return loss(x, 5), *jax.value_and_grad(loss)(x, 64), jax.jvp(lambda x: jax.grad(loss)(x, 64), (x,), (x,))

    expected = measured()
    monkeypatch.setattr(losses, "SPAN", 4)  # 17 tokens: five spans of 4, the last of 1 and padding
    for one, other in zip(jax.tree.leaves(measured()), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("span", [TOKENS, 4])
def test_a_second_pass_takes_the_mean_rows_of_the_first(x64, monkeypatch, span):
    """The gradient of the empty tape is softmax(x·Eᵀ)·E; what is read of it changes no derivative, and is read."""
    x, e, targets, weights = case()
    x, e, targets, weights = (jnp.asarray(array, jnp.float64) for array in (x, e, targets, weights))
    monkeypatch.setattr(losses, "SPAN", span)

    def loss(x, **record):
        return jnp.sin(losses.cross_entropy_sum(x, e, targets.astype(int), weights, chunk=5, **record))

    empty = jnp.zeros_like(x)
    gradient, means = jax.grad(lambda x, empty: loss(x, empty=empty), argnums=(0, 1))(x, empty)
    np.testing.assert_allclose(means, jax.nn.softmax(x @ e.T) @ e, rtol=1e-12)
    np.testing.assert_allclose(gradient, jax.grad(loss)(x), rtol=1e-12)

    def mixed(**record):
        return jax.jvp(jax.grad(partial(loss, **record)), (x,), (jnp.cos(x),))

    for found, expected in zip(mixed(means=means), mixed(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    assert all(np.abs(found - wrong).max() > 0.01 for found, wrong in zip(mixed(), mixed(means=2 * means), strict=True))


def test_blocks_hold_no_more_logits_than_a_chunk_of_tokens_would():
    assert losses._block(256, 1024, 49_152) == losses.CPU_BLOCK
    assert losses._block(64, 4096, 32_000) == 384  # 500, in whole vectors
    assert losses._block(1, 17, 29) == 1
    assert losses._block(64, 17, 29) == 29


def test_a_narrow_embedding_is_not_copied_for_its_blocks():
    embedding = jax.ShapeDtypeStruct((20_000, 64), jnp.bfloat16)
    x, targets = jax.ShapeDtypeStruct((128, 64), jnp.bfloat16), jax.ShapeDtypeStruct((128,), jnp.int32)
    weights = jax.ShapeDtypeStruct((128,), jnp.float32)
    gradient = jax.jit(jax.value_and_grad(partial(losses.cross_entropy_sum, chunk=16)))
    memory = gradient.lower(x, embedding, targets, weights).compile(AS_USERS).memory_analysis()
    assert memory.temp_size_in_bytes < 20_000 * 64 * 2


@pytest.mark.parametrize("shape", [(5, 7), (7, 5)])
def test_gram_penalty_is_its_definition_on_either_side(shape):
    d = np.random.default_rng(1).normal(size=shape)
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    d[2] = 0.0
    found = losses.gram_penalty(jnp.asarray(d, jnp.float32))
    np.testing.assert_allclose(found, np.linalg.norm(d @ d.T - np.eye(shape[0])), rtol=1e-5)


def test_gram_penalty_of_orthonormal_rows_is_zero_with_a_finite_gradient():
    value, gradient = jax.value_and_grad(losses.gram_penalty)(jnp.eye(3, 5))
    assert value == 0 and np.isfinite(gradient).all()


@pytest.mark.parametrize(("tokens", "devices"), [(31, 4), (4092, 8), (5000, 2), (1, 3)])
def test_a_devices_share_of_the_tokens_passes_over_the_blocks_of_one_device(tokens, devices):
    """Up to the rounding of chunks to whole tokens."""
    vocabulary, chunk = 151_936, 256
    own = losses.share_of_chunk(chunk, tokens, devices)
    spans = [-(-count // losses.SPAN) for count in (tokens, tokens * devices)]
    rows = [
        losses._block(size, -(-count // parts), vocabulary)
        for size, count, parts in zip((own, chunk), (tokens, tokens * devices), spans, strict=True)
    ]
    assert rows[0] == pytest.approx(rows[1], abs=128 + vocabulary // tokens // 128)
    assert losses.share_of_chunk(chunk, tokens, 1) == chunk
