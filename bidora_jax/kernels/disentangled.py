"""DeBERTa's disentangled attention: what positions add to the scores (arXiv:2006.03654, section 3).

    score_ij = s·(qᵢ·k_j + qᵢ·K[δ(i − j)] + k_j·Q[δ(i − j)])           s = 1/√(h·(1 + number of the two position terms))
    δ(r) = clip(bucket(r) + n, 0, 2n − 1)                              a row of the table of 2n relative positions
    bucket(r) = r to half of the buckets, and beyond by the logarithm of |r|

The paper writes δ(j − i) in the last term; its code and transformers compute δ(i − j), and so does this.

K and Q are projections of that table's rows. Here they hold one row for each difference m = j − i instead, from −T to T: the
caller takes the table's rows by `rows_by_difference` before it projects them. Rows repeat where the buckets are wide. So the
scores are products with a band of consecutive rows, and their derivatives are products too: no gather and no scatter-add.

    out[a, b] = x_a·R[c + b − a]           of the product with all rows of the band, row a is shifted by a: a pad and a reshape

Scores are float32 (float64 for float64); products have the dtype of the inputs.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bidora_jax.kernels.encoder_attention import Bias
from bidora_jax.kernels.matmul import product
from bidora_jax.kernels.xla_cpu.transpose import transpose


def rows_by_difference(length: int, half: int, *, buckets: int | None, most: int) -> np.ndarray:
    """δ(i − j) for each j − i from −length to length, as indices of the table's 2·half rows.

    `buckets`: how many logarithmic ones there are (None: each distance has its own row); `most`: the distance that the last one
    ends at.
    """
    distance = np.arange(length, -length - 1, -1)
    relative = distance if buckets is None else log_bucket(distance, buckets, most)
    return np.clip(relative + half, 0, 2 * half - 1)


def log_bucket(distance: np.ndarray, buckets: int, most: int) -> np.ndarray:
    """The signed bucket of each distance. The logarithm is float32 as in transformers: it decides on which side an edge falls."""
    middle = buckets // 2
    size = np.maximum(np.abs(distance), middle).astype(np.float32)
    steps = np.log(size / np.float32(middle)) / np.log(np.float32((most - 1) / middle)) * np.float32(middle - 1)
    far = np.sign(distance) * (np.ceil(steps).astype(np.int64) + middle)
    return np.where(np.abs(distance) <= middle, distance, far)


def position_scores(
    k: Float[Array, "B T H h"],
    key_rows: Float[Array, "D H h"] | None,
    query_rows: Float[Array, "D H h"] | None,
    *,
    chunk: int,
    scale: float,
) -> Bias:
    """What `segment_attention` with the same chunk adds to its scores: the terms whose rows, one for each difference, are given."""
    length = k.shape[1]
    missing = -length % chunk if length > chunk else 0
    center = length + missing

    def by_head(rows):
        # The last chunk is filled up with queries, whose differences reach beyond the rows.
        return jnp.pad(transpose(rows, 0, 1), ((0, 0), (missing, missing), (0, 0)))

    def bias(first, q):
        terms = []
        if key_rows is not None:
            terms.append(_by_difference(q, by_head(key_rows), center - first, length))
        if query_rows is not None:
            # A key's row of scores is over queries: it reads the rows of i − j. In tiles of keys: the product with a tile's
            # band has about twice as many numbers as are read of it.
            rows = by_head(query_rows[::-1])
            tiles = [
                _by_difference(k[:, start : start + chunk], rows, center + first - start, q.shape[1])
                for start in range(0, length, chunk)
            ]
            terms.append(jnp.concatenate(tiles, axis=2).swapaxes(2, 3))
        return sum(terms[1:], terms[0]) * scale

    return bias


def _by_difference(
    x: Float[Array, "B N H h"], rows: Float[Array, "H D h"], origin: Int[Array, ""] | int, columns: int
) -> Float[Array, "B H N M"]:
    """out[…, a, b] = x_a·rows[origin + b − a] for `columns` b.

    Of the band's product P, with the first band row at origin − (N − 1), out[a, b] is P[a, b − a + N − 1]. In memory that is number
    a·(W − 1) + b + N − 1, so rows of W − 1 numbers from N − 1 on are shifted by one each.
    """
    batch, count, heads, dim = x.shape
    band = jax.lax.dynamic_slice_in_dim(rows, origin - (count - 1), count + columns, axis=1)
    scores = product(transpose(x.reshape(batch * count, heads, dim), 0, 1), band)
    width = count + columns
    flat = scores.reshape(heads, batch, count * width)[..., count - 1 : count * width - 1]
    return flat.reshape(heads, batch, count, width - 1)[..., :columns].swapaxes(0, 1)
