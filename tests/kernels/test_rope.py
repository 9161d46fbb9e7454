"""kernels/rope.py: a rotation keeps lengths, and products depend on distances only."""

import jax.numpy as jnp
import numpy as np

from bidora_jax.kernels import rope, rope_frequencies


def test_rope_keeps_lengths_and_depends_on_distances_only():
    q, k = (jnp.asarray(np.random.default_rng(seed).normal(size=(2, 11, 6, 10)), jnp.float32) for seed in (0, 1))
    cos, sin = rope.rope_angles(jnp.arange(11), rope_frequencies.frequencies(10, 1e4), dtype=jnp.float32)
    rotated = rope.rope(q, cos, sin)
    np.testing.assert_allclose(jnp.linalg.norm(rotated, axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-5)
    one_q, one_k = (jnp.broadcast_to(array[:1, :1, :1], (1, 11, 1, 10)) for array in (q, k))
    rq, rk = rope.rope(one_q, cos, sin)[0, :, 0], rope.rope(one_k, cos, sin)[0, :, 0]
    scores = np.asarray(rq @ rk.T)
    for offset in (0, 1, 5):
        np.testing.assert_allclose(np.diag(scores, offset), scores[0, offset], rtol=1e-4, atol=1e-4)
