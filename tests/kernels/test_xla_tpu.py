"""kernels/xla_tpu.py: NF4 as it is computed for a TPU has the bits of the plain form, and does without its lookup. None is here:
the form is run on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels import quantized, quantizers


@pytest.fixture
def on_tpu(monkeypatch):
    """The branch for a TPU is what runs here."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, tpu, **_: tpu(*operands))


def weights(columns: int, double: bool) -> quantized.NF4:
    random = np.random.default_rng(0).normal(size=(6, columns)).astype(np.float32)
    return quantizers.nf4(random, np.dtype(np.float32), double=double)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("columns", [128, 96])
def test_nf4_has_the_bits_of_the_plain_form(request, columns, double):
    """Blocks of rows of 96 run over their ends: these are looked up."""
    weight = weights(columns, double)
    plain = quantized.opened(weight)[0]
    assert len(np.unique(np.asarray(plain))) > 16
    request.getfixturevalue("on_tpu")
    np.testing.assert_array_equal(quantized.opened(weight)[0], plain)


def test_every_byte_is_read(on_tpu):
    codes, absmax = jnp.arange(256, dtype=jnp.uint8), jnp.linspace(0.5, 2.0, 8)
    weight = quantized.NF4(codes, absmax, (4, 128), np.dtype(np.float32))
    wanted = quantized.PAIRS.reshape(-1) * np.repeat(np.asarray(absmax), 64)
    np.testing.assert_array_equal(quantized.opened(weight)[0].reshape(-1), wanted)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_no_value_is_looked_up_in_a_tpus_program(platform):
    traced = jax.jit(lambda weight: quantized.opened(weight)[0]).trace(weights(128, False))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("gather" in text) == (platform == "cpu")
