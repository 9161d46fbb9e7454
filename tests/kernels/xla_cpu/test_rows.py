"""kernels/xla_cpu/rows.py: some rows at a time give what all rows at once give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels.encoder_attention import segment_attention
from bidora_jax.kernels.xla_cpu import rows


@pytest.mark.parametrize(
    ("count", "row_bytes", "expected"),
    [
        (6, rows.CACHED // 6, 6),
        (6, rows.CACHED // 3, 3),
        (6, rows.CACHED // 5, 3),
        (7, rows.CACHED // 4, 1),
        (6, 2 * rows.CACHED, 1),
    ],
)
def test_a_group_is_a_divisor_that_fits(count, row_bytes, expected):
    assert rows.rows_at_a_time(count, row_bytes) == expected


def test_all_rows_are_one_group_on_another_device(monkeypatch):
    monkeypatch.setenv("BIDORA_PLAIN", "1")
    assert rows.rows_at_a_time(6, 2 * rows.CACHED) == 6


def test_attention_and_its_derivatives_are_the_same_in_groups(x64, monkeypatch):
    q, k, v, g = jax.random.normal(jax.random.key(0), (4, 6, 5, 2, 3))
    segments = jnp.array([[1, 1, 2, 2, 0]] * 6) * jnp.array([1, 1, 1, 2, 2, 2])[:, None]

    def loss(q, k, v):
        return jnp.sum(g * segment_attention(q, k, v, segments, chunk=64) ** 2)

    def both(q, k, v):
        mixed = jax.jvp(jax.grad(loss, (0, 1, 2)), (q, k, v), (g, q, k))
        return loss(q, k, v), mixed

    at_once = jax.jit(both)(q, k, v)
    calls = []
    monkeypatch.setattr(rows, "CACHED", 2 * 2 * 5**2 * 8)  # two rows of scores
    by_rows = rows.by_rows
    monkeypatch.setattr(
        "bidora_jax.kernels.encoder_attention.by_rows",
        lambda function, size, *arrays: calls.append(rows.rows_at_a_time(6, size)) or by_rows(function, size, *arrays),
    )
    jax.clear_caches()
    in_groups = jax.jit(both)(q, k, v)
    assert set(calls) == {2}
    for a, b in zip(jax.tree.leaves(in_groups), jax.tree.leaves(at_once), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
