"""tasks/language_modeling.py: the loss token by token in chunks, against the one of all logits, under every rematerialisation."""

import jax
import jax.numpy as jnp
import numpy as np
from random_adapters import adapted
from tiny import CONFIG

from bidora_jax.models import decoder
from bidora_jax.models.compute import Compute
from bidora_jax.tasks.language_modeling import token_loss_sum, token_scores

TOKENS = jnp.asarray(np.random.default_rng(3).integers(CONFIG.vocab_size, size=(2, 11), dtype=np.int32))
MASK = jnp.asarray(np.random.default_rng(4).random((2, 11)) < 0.7, jnp.float32)
BATCH = {"tokens": TOKENS, "loss_mask": MASK}


def test_loss_is_that_of_the_logits():
    adapter, base, direction, magnitude = adapted()
    total, count = token_loss_sum(CONFIG, adapter, Compute(loss_chunk=7), base, (direction, magnitude), BATCH)
    log_p = jax.nn.log_softmax(decoder.logits(CONFIG, adapter, base, direction, magnitude, TOKENS))
    expected = -sum(log_p[b, t - 1, TOKENS[b, t]] for b in range(2) for t in range(1, 11) if MASK[b, t])
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == MASK[:, 1:].sum()


def test_scores_are_the_loss_and_the_tokens_that_greedy_text_would_have():
    adapter, base, direction, magnitude = adapted()
    trained, compute = (direction, magnitude), Compute(loss_chunk=7)
    greedy = jnp.argmax(decoder.logits(CONFIG, adapter, base, direction, magnitude, TOKENS), axis=-1)
    batch = BATCH | {"tokens": TOKENS.at[0, -1].set(greedy[0, -2])}  # one hit at least; it changes no other prediction
    batch["loss_mask"] = MASK.at[0, -1].set(1)
    found = token_scores(CONFIG, adapter, compute, base, trained, batch)
    right = (greedy[:, :-1] == batch["tokens"][:, 1:]) * batch["loss_mask"][:, 1:]
    assert found.hits == right.sum() > 0
    np.testing.assert_allclose(found.loss, token_loss_sum(CONFIG, adapter, compute, base, trained, batch)[0], rtol=1e-6)


def test_remat_and_chunks_change_no_gradient():
    adapter, base, direction, magnitude = adapted()

    def gradient(**how):
        def loss(trained):
            return token_loss_sum(CONFIG, adapter, Compute(**how), base, trained, BATCH)[0]

        return jax.jit(jax.grad(loss))((direction, magnitude))

    plain = gradient(remat="none", attention_chunk=64, loss_chunk=64)
    for found, expected in zip(
        jax.tree.leaves(gradient(remat="layer", attention_chunk=4, loss_chunk=5)), jax.tree.leaves(plain), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
