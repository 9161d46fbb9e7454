"""kernels/dynamic_8bit.py against the definition of the map, a float64 search for the nearest value, and bitsandbytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels import dynamic_8bit

SHAPE, BLOCK = (3, 5, 11), 7  # 165 numbers: 23 whole blocks and 4 numbers
BOTH = pytest.mark.parametrize("signed", [True, False])
FORMS = {
    "normal": lambda random, n: random.normal(size=n),
    "square": lambda random, n: random.normal(size=n) ** 2,  # like second moments
    "decades": lambda random, n: 10 ** random.uniform(-8, 0, size=n) * random.choice([-1, 1], size=n),
}


def numbers(shape, signed: bool, form: str = "decades", seed: int = 0) -> np.ndarray:
    x = FORMS[form](np.random.default_rng(seed), shape).astype(np.float32)
    return x if signed else np.abs(x)


def scaled(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """(blocks, block) of x over its block's largest, in float32, and (blocks,) of these."""
    flat = np.pad(x.reshape(-1), (0, -x.size % block)).reshape(-1, block)
    absmax = np.abs(flat).max(1)
    return flat / absmax[:, None], absmax


def nearest(z: np.ndarray, signed: bool) -> np.ndarray:
    """The code of the nearest value, by trying all of them; argmin takes the first, the lower one."""
    table = dynamic_8bit.dynamic_map(signed).astype(np.float64)
    return np.abs(z.astype(np.float64)[..., None] - table).argmin(-1)


# The map


@BOTH
def test_the_map_is_cells_of_decades_with_zero_and_one(signed):
    wanted = [0.0, 1.0]
    for exponent in range(-7, 0):
        cells = 2 ** (exponent + (7 if signed else 8))
        width = 0.9 / cells
        centres = [10.0 ** (exponent + 1) * (0.1 + width * (cell + 0.5)) for cell in range(cells)]
        wanted += centres + ([-c for c in centres] if signed else [])
    found = dynamic_8bit.dynamic_map(signed)
    assert found.shape == (256,) and found.dtype == np.float32 and (np.diff(found) > 0).all()
    # Edges up to 1 are rounded to 6e-8, and the smallest centre of a decade is 0.1 of them.
    np.testing.assert_allclose(found, sorted(wanted), rtol=6e-7)


@pytest.mark.torch
@BOTH
def test_the_map_is_that_of_bitsandbytes_bit_for_bit(signed):
    import torch
    from bitsandbytes import functional

    wanted = functional.create_dynamic_map(signed).numpy()
    # torch.linspace rounds twice on processors without fused multiply-add, which moves the last bit of some entries.
    fused = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    np.testing.assert_array_max_ulp(dynamic_8bit.dynamic_map(signed), wanted, maxulp=0 if fused else 1)


@BOTH
def test_the_map_is_shared_and_cannot_be_written(signed):
    assert dynamic_8bit.dynamic_map(signed) is dynamic_8bit.dynamic_map(signed)
    for array in (dynamic_8bit.dynamic_map(signed), dynamic_8bit.midpoints(signed)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0.0


@BOTH
def test_a_border_is_the_last_number_of_the_lower_value(signed):
    border = dynamic_8bit.midpoints(signed)
    np.testing.assert_array_equal(nearest(border, signed), np.arange(255))
    np.testing.assert_array_equal(nearest(np.nextafter(border, np.float32(2)), signed), np.arange(1, 256))


# Quantise and dequantise


@pytest.mark.parametrize("form", FORMS)
@BOTH
def test_codes_are_the_nearest_values(signed, form):
    x = numbers(SHAPE, signed, form)
    codes, absmax = jax.jit(lambda x: dynamic_8bit.quantise(x, signed=signed, block=BLOCK))(x)
    z, wanted = scaled(x, BLOCK)
    assert codes.dtype == jnp.uint8
    np.testing.assert_array_equal(absmax, wanted)
    np.testing.assert_array_equal(codes, nearest(z, signed))


@BOTH
def test_a_tie_goes_to_the_lower_code(signed):
    border = dynamic_8bit.midpoints(signed)
    x = np.stack([border, np.ones_like(border)], axis=1)  # every block's scale is 1
    codes, _ = dynamic_8bit.quantise(jnp.asarray(x), signed=signed, block=2)
    np.testing.assert_array_equal(codes[:, 0], np.arange(255))


@BOTH
def test_the_map_times_a_power_of_two_comes_back_as_it_was(signed):
    x = np.outer(np.array([0.25, 1.0, 2.0**40], np.float32), dynamic_8bit.dynamic_map(signed))
    codes, absmax = dynamic_8bit.quantise(jnp.asarray(x), signed=signed, block=256)
    np.testing.assert_array_equal(codes, np.tile(np.arange(256), (3, 1)))
    np.testing.assert_array_equal(dynamic_8bit.dequantise(codes, absmax, x.shape, signed=signed, block=256), x)


@BOTH
def test_what_comes_back_is_within_half_a_cell(signed):
    x = numbers(SHAPE, signed, "normal")
    codes, absmax = dynamic_8bit.quantise(jnp.asarray(x), signed=signed, block=BLOCK)
    back = np.asarray(dynamic_8bit.dequantise(codes, absmax, SHAPE, signed=signed, block=BLOCK))
    assert back.shape == SHAPE and back.dtype == np.float32
    largest = np.repeat(np.asarray(absmax), BLOCK)[: x.size].reshape(SHAPE)
    half = 0.9 / 2 ** (7 if signed else 8)  # of the widest cells, those of the highest decade
    assert (np.abs(back - x) <= (half + 1e-7) * largest).all()  # 1e-7: float32
    assert np.abs(back - x).max() > 0


@BOTH
def test_zeros_stay_zeros_beside_other_blocks(signed):
    x = np.zeros(SHAPE, np.float32)
    x.reshape(-1)[-1] = 3.0  # the block that is padded
    codes, absmax = dynamic_8bit.quantise(jnp.asarray(x), signed=signed, block=BLOCK)
    np.testing.assert_array_equal(absmax[:-1], 0)
    np.testing.assert_array_equal(dynamic_8bit.dynamic_map(signed)[codes[:-1]], 0)
    np.testing.assert_array_equal(dynamic_8bit.dequantise(codes, absmax, SHAPE, signed=signed, block=BLOCK), x)


def test_negative_numbers_are_zero_without_sign():
    codes, absmax = dynamic_8bit.quantise(jnp.asarray([-4.0, 2.0, 0.0]), signed=False, block=3)
    back = dynamic_8bit.dequantise(codes, absmax, (3,), signed=False, block=3)
    assert back[0] == 0 and abs(back[1] - 2) < 4 * 0.9 / 256


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@BOTH
def test_what_is_not_finite_does_not_become_a_number(signed, bad):
    x = numbers(SHAPE, signed)
    x.reshape(-1)[9] = bad
    codes, absmax = dynamic_8bit.quantise(jnp.asarray(x), signed=signed, block=BLOCK)
    back = np.asarray(dynamic_8bit.dequantise(codes, absmax, SHAPE, signed=signed, block=BLOCK)).reshape(-1)
    finite = np.isfinite(back)
    assert not finite[7:14].any() and finite[:7].all() and finite[14:].all()


def test_wider_numbers_are_rounded_on_entry(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE))
    assert x.dtype == jnp.float64
    found = dynamic_8bit.quantise(x, signed=True, block=BLOCK)
    wanted = dynamic_8bit.quantise(x.astype(jnp.float32), signed=True, block=BLOCK)
    assert found[1].dtype == jnp.float32
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.torch
@pytest.mark.parametrize("form", FORMS)
@BOTH
def test_against_bitsandbytes(signed, form):
    """The scales and what codes mean are equal bit for bit. Its CPU codes are not the nearest, but nearly.

    The CPU backend rounds x/absmax to a grid of 65536 points first, 3e-5 apart. Near a border that gives the neighbour:
    in 0.1 to 0.3 % of numbers above 0.01, where values lie 0.0005 apart or more. Below 1e-4 the grid is coarser than
    the map, and its codes say nothing.
    """
    import torch
    from bitsandbytes import functional

    x = numbers((11, 13, 509), signed, form)
    theirs, state = functional.quantize_blockwise(
        torch.from_numpy(x), code=functional.create_dynamic_map(signed), blocksize=256
    )
    codes, absmax = dynamic_8bit.quantise(jnp.asarray(x), signed=signed, block=256)
    np.testing.assert_array_equal(absmax, state.absmax.numpy())

    wanted = functional.dequantize_blockwise(theirs, state).numpy()
    padded = np.pad(theirs.numpy().reshape(-1), (0, -x.size % 256)).reshape(-1, 256)
    found = dynamic_8bit.dequantise(jnp.asarray(padded), absmax, x.shape, signed=signed, block=256)
    np.testing.assert_array_equal(np.asarray(found).view(np.int32), wanted.view(np.int32))

    size = np.abs(scaled(x, 256)[0]).reshape(-1)[: x.size]
    away = np.abs(np.asarray(codes, int) - padded).reshape(-1)[: x.size]
    assert away[size > 1e-4].max() == 1
    assert 0 < (away[size > 1e-2] > 0).mean() < 0.005
