"""The quantisers of kernels/quantized.py, on the host in numpy: they run once, while a model is loaded.

    int8   absmax_o = max_i |w_oi|,   code = round(w·(1/absmax·127))          w rounded to float16 first, as in bitsandbytes
    nf4    absmax_b = max |w| over block b,   index = #{midpoints of the codebook < w·(1/absmax)}
    nested offset = mean(absmax),   dynamic 8-bit codes of absmax − offset in blocks of 256

Codes and absmax are bitsandbytes' byte for byte. Its CPU quantiser for nested codes is a table of 65,536 entries that
misses the nearest code once in some hundred values; these are the nearest ones, which its CUDA kernel gives. Arrays are
taken a piece at a time, so that beside the weight and its codes a few megabytes are in use.
"""

import numpy as np
from jaxtyping import Float, Shaped

from bidora_jax.kernels.dynamic_8bit import dynamic_map
from bidora_jax.kernels.quantized import BLOCK, CODEBOOK, NESTED_BLOCK, NF4, Int8, Nested

# A value on a midpoint takes the lower code.
MIDPOINTS = (CODEBOOK[:-1] + CODEBOOK[1:]) / 2
PIECE = BLOCK * 4096
# bitsandbytes' smallest divisor; below it codes would be those of infinity. It is float32's, and subnormal.
SMALLEST = np.float32(1e-38)


def int8(weight: Float[np.ndarray, "O I"], dtype) -> Int8:
    """Row-wise absmax quantisation, halves to the even side. A row of zeros has codes 0."""
    codes, absmax = np.empty(weight.shape, np.int8), np.empty(weight.shape[0], np.float32)
    step = max(PIECE // weight.shape[1], 1)
    for begin in range(0, weight.shape[0], step):
        piece = slice(begin, begin + step)
        half = weight[piece].astype(np.float32).astype(np.float16)
        absmax[piece] = np.abs(half).max(axis=1)
        # torch's 127 / absmax is the rounded reciprocal times 127.
        factor = np.float32(1) / np.where(absmax[piece] > 0, absmax[piece], np.float32(1)) * np.float32(127)
        np.rint(half.astype(np.float32) * factor[:, None], out=codes[piece], casting="unsafe")
    return Int8(codes, absmax, np.dtype(dtype))


def nf4(weight: Float[np.ndarray, "O I"], dtype, *, double: bool) -> NF4:
    """Block-wise quantisation of the row-major weight; `double` quantises the absmax too."""
    flat = weight.reshape(-1)
    codes = np.empty(-(-flat.size // 2), np.uint8)
    absmax = np.empty(-(-flat.size // BLOCK), np.float32)
    for begin in range(0, flat.size, PIECE):
        piece = flat[begin : begin + PIECE].astype(np.float32)
        blocks = slice(begin // BLOCK, begin // BLOCK + -(-piece.size // BLOCK))
        indices, absmax[blocks] = _nf4_piece(piece)
        codes[begin // 2 : begin // 2 + indices.size // 2] = indices[0::2] << 4 | indices[1::2]
    if double:
        # bitsandbytes' float32 mean moves in its last bit with the machine's vector width; this one is rounded once.
        absmax = nested(absmax, np.float32(absmax.mean(dtype=np.float64)))
    return NF4(codes, absmax, (weight.shape[0], weight.shape[1]), np.dtype(dtype))


def nested(absmax: Float[np.ndarray, " blocks"], offset: np.float32) -> Nested:
    """absmax − offset in 8 bits."""
    count = -(-absmax.size // NESTED_BLOCK)
    centred = np.zeros(count * NESTED_BLOCK, np.float32)
    centred[: absmax.size] = absmax - offset
    centred = centred.reshape(count, NESTED_BLOCK)
    largest = np.abs(centred).max(axis=1)
    scaled = np.clip(centred * (np.float32(1) / np.maximum(largest, SMALLEST))[:, None], -1, 1)
    table = dynamic_map(signed=True)
    codes = np.searchsorted((table[:-1] + table[1:]) / 2, scaled.reshape(-1)[: absmax.size], side="left")
    return Nested(codes.astype(np.uint8), largest, offset)


def _nf4_piece(piece: Float[np.ndarray, " n"]) -> tuple[Shaped[np.ndarray, " m"], Float[np.ndarray, " blocks"]]:
    """(an even number of indices, absmax) of a piece that begins a block. A short last block is divided, not multiplied."""
    whole = piece.size - piece.size % BLOCK
    full = piece[:whole].reshape(-1, BLOCK)
    absmax = np.abs(full).max(axis=1)
    scaled = full * (np.float32(1) / np.maximum(absmax, SMALLEST))[:, None]
    indices = _indices(scaled.reshape(-1))
    if whole == piece.size:
        return indices, absmax
    rest = piece[whole:]
    last = np.maximum(np.abs(rest).max(), SMALLEST)
    padded = np.zeros(rest.size + rest.size % 2, np.float32)
    padded[: rest.size] = rest / last
    return np.concatenate([indices, _indices(padded)]), np.append(absmax, last)


def _indices(scaled: Float[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    """Counts the midpoints below each value: fifteen vector comparisons, ten times as fast as a binary search."""
    indices = np.zeros(scaled.shape, np.uint8)
    for midpoint in MIDPOINTS:
        indices += scaled > midpoint
    return indices
