"""kernels/norms.py against its formulas, and layer norm against torch's."""

import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels import norms


def test_rms_norm_is_its_formula():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 11, 6, 10)), jnp.float32)
    weight = jnp.arange(1.0, 11.0)
    wide = np.asarray(x, np.float64)
    expected = np.asarray(weight) * wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(norms.rms_norm(x, weight, eps=1e-6), expected, rtol=1e-5)


def rows(dtype):
    """Far from zero, as a mean of squares less the square of a mean would show, and as wide as one sum is not (64 is cut)."""
    random = np.random.default_rng(0)
    return [jnp.asarray(array, dtype) for array in (5 + random.normal(size=(2, 11, 64)), *random.normal(size=(2, 64)))]


def torchs(x, weight, bias, eps):
    import torch

    dtype = {jnp.dtype(name): getattr(torch, name) for name in ("float32", "float64", "bfloat16")}[x.dtype]
    parts = [
        None if part is None else torch.tensor(np.asarray(part, np.float64)).to(dtype) for part in (x, weight, bias)
    ]
    out = torch.nn.functional.layer_norm(parts[0], (x.shape[-1],), *parts[1:], eps=eps)
    return out.to(torch.float64).numpy()


@pytest.mark.torch
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("eps", [1e-12, 1e-2])
def test_layer_norm_is_torchs(x64, biased, eps):
    x, weight, bias = rows(jnp.float64)
    bias = bias if biased else None
    np.testing.assert_allclose(norms.layer_norm(x, weight, bias, eps=eps), torchs(x, weight, bias, eps), rtol=1e-11)


@pytest.mark.torch
def test_layer_norm_of_bfloat16_is_rounded_once_as_torchs():
    x, weight, bias = rows(jnp.bfloat16)
    found = norms.layer_norm(x, weight, bias, eps=1e-5)
    assert found.dtype == jnp.bfloat16
    expected = torchs(x, weight, bias, 1e-5)
    # One step of bfloat16 where float32 sums of another order fall to either side; nearly all numbers are equal.
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2**-7, atol=2**-10)
    assert (np.asarray(found, np.float64) == expected).mean() > 0.98
