"""kernels/sampling.py: transformers is the oracle for each filter, and draws have the probabilities of what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels import sampling
from bidora_jax.kernels.sampling import Sampling

LOGITS = np.random.default_rng(1).normal(size=(4, 53)).astype(np.float32) * 3


SEEN = np.random.default_rng(2).random((4, 53)) < 0.3


@pytest.mark.torch
@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.7}, {"top_k": 1}, {"top_k": 9}, {"top_k": 90}, {"top_p": 0.5}, {"top_p": 0.05}, {"min_p": 0.1},
     {"temperature": 1.6, "top_k": 20, "top_p": 0.8, "min_p": 0.05}, {"temperature": 0.5, "top_k": 3, "top_p": 0.9}],
)  # fmt: skip
def test_filters_are_those_of_transformers(settings):
    import torch
    from transformers.generation import logits_process as theirs

    known = {"temperature": theirs.TemperatureLogitsWarper, "top_k": theirs.TopKLogitsWarper,
             "top_p": theirs.TopPLogitsWarper, "min_p": theirs.MinPLogitsWarper}  # fmt: skip
    expected = torch.from_numpy(LOGITS.copy())
    for name, value in settings.items():
        expected = known[name](value)(torch.zeros(4, 1, dtype=torch.long), expected)
    found = sampling.filtered(jnp.asarray(LOGITS), Sampling(**{"temperature": 1.0} | settings).as_data())
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected.numpy()))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


@pytest.mark.torch
def test_the_repetition_penalty_is_that_of_transformers():
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    found = sampling.penalised(jnp.asarray(LOGITS), jnp.asarray(SEEN), jnp.float32(1.3))
    for row, logits, seen in zip(found, LOGITS, SEEN, strict=True):
        ids = torch.from_numpy(np.flatnonzero(seen)[None])
        expected = RepetitionPenaltyLogitsProcessor(1.3)(ids, torch.from_numpy(logits[None].copy()))
        np.testing.assert_allclose(row, expected[0].numpy(), rtol=1e-6)


def test_draws_have_the_probabilities_of_what_is_kept():
    count, settings = 20_000, Sampling(temperature=0.8, top_k=4, repetition_penalty=1.2).as_data()
    logits = jnp.asarray(np.tile(LOGITS[:1, :11], (count, 1)))
    seen = jnp.asarray(np.tile(SEEN[:1, :11], (count, 1)))
    drawn = sampling.choose(logits, seen, settings, jax.random.split(jax.random.key(5), count))
    kept = sampling.filtered(sampling.penalised(logits[:1], seen[:1], settings.repetition_penalty), settings)
    p = np.asarray(jax.nn.softmax(kept[0]))
    found = np.bincount(np.asarray(drawn), minlength=11) / count
    np.testing.assert_array_less(np.abs(found - p), 5 * np.sqrt(p * (1 - p) / count) + 1e-9)
