"""bitsandbytes on a CPU is the oracle for codes and scales, to the byte."""

import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels import quantized, quantizers
from bidora_jax.kernels.dynamic_8bit import dynamic_map

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
# Whole blocks, blocks that cross rows, an odd number of weights, less than one block, several pieces.
SHAPES = [(7, 64), (129, 191), (13, 5), (37, 640), (521, 1031)]


def _weight(shape, dtype, seed=0):
    """Normal weights with rows of zeros, of one sign, of subnormals and of values on the midpoints between codes."""
    random = np.random.default_rng(seed)
    weight = (0.02 * random.normal(size=shape)).astype(np.float32)
    weight[0], weight[1] = 0, np.abs(weight[1])
    weight[2] = random.normal(size=shape[1]) * (1e-40 if dtype == jnp.float32 else 6e-8)
    weight[3] = random.choice(np.append(quantizers.MIDPOINTS, 1.0), size=shape[1])
    weight[3, 0] = 1.0
    return weight.astype(dtype)


def _torch(weight):
    import torch

    return torch.from_numpy(weight.astype(np.float32)).to(getattr(torch, jnp.dtype(weight.dtype).name))


def _flushed(values):
    """XLA on a CPU takes subnormal float32 for zero."""
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, 0, values)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_has_the_bytes_of_bitsandbytes(shape, dtype):
    import bitsandbytes.functional as oracle

    weight = _weight(shape, dtype)
    codes, state = oracle.quantize_4bit(_torch(weight), blocksize=64, quant_type="nf4")
    found = quantizers.nf4(weight, dtype, double=False)
    np.testing.assert_array_equal(found.codes, codes.numpy().reshape(-1))
    np.testing.assert_array_equal(found.absmax, state.absmax.numpy())
    expected = oracle.dequantize_4bit(codes, state).float().numpy()
    opened, row_scale = quantized.opened(found)
    assert (opened.dtype, row_scale) == (dtype, None)
    np.testing.assert_array_equal(opened.astype(np.float32), _flushed(expected))
    np.testing.assert_array_equal(quantized.dense(found), _flushed(expected))


def _table_codes(values):
    """The CPU quantiser of bitsandbytes 0.50: a table of the nearest codes at 65,536 points of [-1, 1]."""
    code = dynamic_map(signed=True)
    points = np.float32(-1) + np.float32(2) * np.arange(65536, dtype=np.float32) / np.float32(65535)
    table = np.searchsorted((code[:-1] + code[1:]) / 2, points, side="left")
    return table[((values + 1) * np.float32(0.5) * np.float32(65535) + np.float32(0.5)).astype(np.int32)]


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_double_quantisation_is_that_of_bitsandbytes_but_for_its_table(shape, dtype):
    import bitsandbytes.functional as oracle

    weight = _weight(shape, dtype, seed=1)
    codes, state = oracle.quantize_4bit(_torch(weight), blocksize=64, quant_type="nf4", compress_statistics=True)
    found = quantizers.nf4(weight, dtype, double=True)
    np.testing.assert_array_equal(found.codes, codes.numpy().reshape(-1))
    absmax = quantizers.nf4(weight, dtype, double=False).absmax
    # torch's float32 mean sums in an order that depends on the machine, which moves its last bit.
    offset = np.float32(state.offset.item())
    np.testing.assert_array_max_ulp(found.absmax.offset, offset, maxulp=2)
    nested = quantizers.nested(absmax, offset)
    np.testing.assert_array_equal(nested.absmax, state.state2.absmax.numpy())
    theirs = state.absmax.numpy()
    groups = np.arange(absmax.size) // quantized.NESTED_BLOCK
    scaled = np.clip((absmax - offset) * (np.float32(1) / nested.absmax)[groups], -1, 1)
    np.testing.assert_array_equal(theirs, _table_codes(scaled))  # theirs is the table's, to the code
    code = dynamic_map(signed=True).astype(np.float64)
    nearest = np.abs(scaled[:, None].astype(np.float64) - code).argmin(axis=1)
    np.testing.assert_array_equal(nested.codes, nearest)  # and ours the nearest
    same = quantized.NF4(found.codes, quantized.Nested(theirs, nested.absmax, offset), found.matrix_shape, found.dtype)
    expected = oracle.dequantize_4bit(codes, state).float().numpy()
    np.testing.assert_array_equal(np.asarray(quantized.opened(same)[0], np.float32), _flushed(expected))


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_int8_has_the_bytes_of_bitsandbytes(shape, dtype):
    import bitsandbytes.functional as oracle

    weight = _weight(shape, dtype, seed=2)
    codes, absmax, _ = oracle.int8_vectorwise_quant(_torch(weight).half())
    found = quantizers.int8(weight, dtype)
    np.testing.assert_array_equal(found.absmax, absmax.numpy())
    some = found.absmax > 0  # bitsandbytes casts the NaN of 0/0 to an integer, which is anything
    assert not found.codes[~some].any()
    np.testing.assert_array_equal(found.codes[some], codes.numpy()[some])
    expected = oracle.int8_vectorwise_dequant(codes, absmax).numpy()
    np.testing.assert_array_equal(np.asarray(quantized.dense(found))[some], expected[some])


def test_pieces_are_the_whole(monkeypatch):
    """Weights are taken a piece at a time; the size of the pieces is not in the result."""
    weight = _weight((37, 191), np.float32)
    whole = quantizers.nf4(weight, np.float32, double=True), quantizers.int8(weight, np.float32)
    monkeypatch.setattr(quantizers, "PIECE", 128)
    pieces = quantizers.nf4(weight, np.float32, double=True), quantizers.int8(weight, np.float32)
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(whole[1].absmax, pieces[1].absmax)
    for a, b in zip(whole[0].absmax, pieces[0].absmax, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_error_is_that_of_the_format():
    """Half a step: 1/254 of a row's absmax for int8, half the widest gap between codes for nf4."""
    weight = _weight((37, 640), np.float32)
    blocks = np.abs(weight.reshape(-1, 64)).max(axis=1)
    error = np.abs(np.asarray(quantized.dense(quantizers.nf4(weight, np.float32, double=False))) - weight)
    gap = np.diff(quantized.CODEBOOK).max() / 2
    assert (error.reshape(-1, 64) <= gap * blocks[:, None] * (1 + 1e-6) + 1e-38).all()
    error = np.abs(np.asarray(quantized.dense(quantizers.int8(weight, np.float32))) - weight)
    half = 2.0**-11 * np.abs(weight)  # the rounding to float16 before
    assert (error <= np.abs(weight).max(axis=1, keepdims=True) / 254 * (1 + 1e-3) + half + 6e-8).all()


def test_double_quantisation_takes_4_13_bits():
    weight = np.random.default_rng(0).normal(size=(1024, 3072)).astype(jnp.bfloat16)
    bits = {double: 8 * quantized.tree_bytes(quantizers.nf4(weight, weight.dtype, double=double)) / weight.size
            for double in (True, False)}  # fmt: skip
    assert bits[True] <= 4.13
    assert bits[False] == 4.5
