"""kernels/norms.py against its formula."""

import jax.numpy as jnp
import numpy as np

from bidora_jax.kernels import norms


def test_rms_norm_is_its_formula():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 11, 6, 10)), jnp.float32)
    weight = jnp.arange(1.0, 11.0)
    wide = np.asarray(x, np.float64)
    expected = np.asarray(weight) * wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(norms.rms_norm(x, weight, eps=1e-6), expected, rtol=1e-5)
