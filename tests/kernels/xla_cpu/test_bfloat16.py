"""kernels/xla_cpu/bfloat16.py against XLA's own conversions, bit by bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels.xla_cpu.bfloat16 import to_bfloat16, to_float32


def bits(x) -> np.ndarray:
    return np.asarray(x).view(f"uint{8 * x.dtype.itemsize}")


def every_bfloat16():
    return jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint32).astype(jnp.uint16), jnp.bfloat16)


def test_every_bfloat16_is_opened_and_rounded_back_to_itself():
    x = every_bfloat16()
    np.testing.assert_array_equal(bits(jax.jit(to_float32)(x)), bits(x).astype(np.uint32) << 16)
    number = ~np.isnan(np.asarray(x, np.float32))
    back = to_bfloat16(to_float32(x), jnp.bfloat16)
    np.testing.assert_array_equal(bits(back)[number], bits(x)[number])
    assert np.isnan(np.asarray(back, np.float32)[~number]).all()


def test_float32_is_rounded_to_nearest_and_ties_to_even():
    whole = np.random.default_rng(0).integers(2**32, size=1 << 18, dtype=np.uint32)
    halves = (np.arange(2**16, dtype=np.uint32) << 16) + 0x8000
    x = jnp.asarray(np.concatenate([whole, halves, halves - 1, halves + 1]).view(np.float32))
    number = ~np.isnan(np.asarray(x))
    found, expected = jax.jit(lambda x: to_bfloat16(x, jnp.bfloat16))(x), x.astype(jnp.bfloat16)
    np.testing.assert_array_equal(bits(found)[number], bits(expected)[number])
    assert np.isnan(np.asarray(found, np.float32)[~number]).all()


def test_derivatives_are_those_of_the_casts():
    x, v = (jnp.asarray(np.random.default_rng(seed).normal(size=99), jnp.float32) for seed in (0, 1))

    def squares(down, up):
        return lambda x: jnp.sum(up(jnp.square(down(x))))

    def casts(x):
        return x.astype(jnp.bfloat16)

    found = squares(lambda x: to_bfloat16(x, jnp.bfloat16), to_float32)
    expected = squares(casts, lambda x: x.astype(jnp.float32))
    np.testing.assert_array_equal(jax.grad(found)(x), jax.grad(expected)(x))
    np.testing.assert_array_equal(jax.jvp(jax.grad(found), (x,), (v,))[1], jax.jvp(jax.grad(expected), (x,), (v,))[1])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.float64])
def test_other_dtypes_are_cast(x64, dtype):
    x = jnp.asarray([1 / 3, 1e-3], dtype)
    assert to_float32(x).dtype == jnp.promote_types(dtype, jnp.float32)
    assert to_bfloat16(to_float32(x), dtype).dtype == dtype
    np.testing.assert_array_equal(to_bfloat16(to_float32(x), dtype), x)
