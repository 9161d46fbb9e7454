"""kernels/activations.py against torch's functions."""

import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels import activations

NUMBERS = 3 * np.random.default_rng(0).normal(size=(5, 67))


def torchs(x, kind):
    import torch.nn.functional as F

    return {
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "relu": F.relu,
        "silu": F.silu,
        "tanh": F.tanh,
    }[kind](x)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "relu", "silu", "tanh"])
def test_each_activation_is_torchs(x64, kind):
    import torch

    found = activations.activate(jnp.asarray(NUMBERS), kind)
    # Far below zero 1 + tanh and 1 + erf cancel: what is left has the rounding of 1.
    np.testing.assert_allclose(
        found, torchs(torch.tensor(NUMBERS), kind), rtol=1e-13, atol=1e-15 * np.abs(NUMBERS).max()
    )


@pytest.mark.torch
def test_bfloat16_is_rounded_where_torch_rounds_it():
    import torch

    a, g = (torch.tensor(part).to(torch.bfloat16) for part in (NUMBERS, NUMBERS[::-1].copy()))
    found = activations.gated(*(jnp.asarray(part.float().numpy(), jnp.bfloat16) for part in (a, g)), "gelu")
    assert found.dtype == jnp.bfloat16
    expected = (torchs(a, "gelu") * g).float().numpy()
    # Below zero 1 + erf cancels in float32: of two roundings of one number the results are a step of bfloat16 apart, and half a
    # step more after the product. Elsewhere nearly all numbers are equal.
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=1.5 * 2**-7, atol=2**-20)
    assert (np.asarray(found, np.float32) == expected)[NUMBERS > -2].mean() > 0.99


def test_the_first_argument_is_the_activated_one():
    a, g = jnp.full((3,), -1.0), jnp.full((3,), 2.0)
    np.testing.assert_array_equal(activations.gated(a, g, "relu"), np.zeros(3))
    np.testing.assert_array_equal(activations.gated(g, a, "relu"), np.full(3, -2.0))
