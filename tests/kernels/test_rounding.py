"""Rounding that keeps a change: the grid's neighbours, the mean, and which rows are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels import rounding

DTYPES = [jnp.bfloat16, jnp.float16]


def changed(rows: int, columns: int, by: float, seed: int = 1):
    """(W0 on the grid of bfloat16, W' that is `by` of it away along one direction)."""
    random = np.random.default_rng(seed)
    w0 = jnp.asarray(random.normal(size=(rows, columns)), jnp.bfloat16).astype(jnp.float32)
    update = np.outer(random.normal(size=rows), random.normal(size=columns))
    return w0, w0 + by * jnp.asarray(update, jnp.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_neighbours_are_next_to_each_other_and_hold_the_value_between_them(dtype):
    random = np.random.default_rng(0)
    exact = jnp.asarray(random.normal(size=(1, 41)), dtype).astype(jnp.float32)
    w = jnp.concatenate([jnp.asarray(random.normal(size=(1, 500)), jnp.float32), exact, jnp.zeros((1, 1))], axis=1)
    low, high = rounding.neighbours(w, dtype)
    assert jnp.all((low <= w) & (w <= high))
    for one in (low, high):
        assert jnp.array_equal(one.astype(dtype).astype(jnp.float32), one)
    between = (low != high)[0]
    assert between[:500].all() and not between[500:].any()
    step = jnp.nextafter(low.astype(dtype), jnp.full_like(low, jnp.inf, dtype)).astype(jnp.float32)
    assert jnp.array_equal(jnp.where(low != high, step, low), high)
    assert jnp.array_equal(rounding.nearest(w, low, high)[:, :500] == low[:, :500], (w - low <= high - w)[:, :500])


def test_beyond_the_range_there_is_no_neighbour():
    low, high = rounding.neighbours(jnp.asarray([[7e4, -1e6]]), jnp.float16)
    assert jnp.isinf(low).all() and jnp.array_equal(low, high)


def test_unbiased_rounding_has_the_value_as_its_mean():
    _, w = changed(5, 7, 1e-3)
    low, high = rounding.neighbours(w, jnp.bfloat16)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: rounding.unbiased(key, w, low, high))(keys)
    assert jnp.all((drawn == low[None]) | (drawn == high[None]))
    # The mean of n draws between neighbours is off by at most half a step over the root of n, six of which never happen.
    assert jnp.all(jnp.abs(drawn.mean(axis=0) - w) <= 3 * (high - low) / np.sqrt(len(keys)))


def test_a_row_is_drawn_only_where_the_nearest_value_loses_its_change():
    (w0, small), (_, large) = changed(6, 501, 1e-4), changed(6, 501, 0.3)
    w = jnp.concatenate([small, large])
    w0 = jnp.concatenate([w0, w0])
    low, high = rounding.neighbours(w, jnp.bfloat16)
    found, near = (
        rounding.keeping_change(jax.random.key(0), w, w0, low, high),
        rounding.nearest(w, low, high),
    )
    assert jnp.array_equal(found[6:], near[6:])
    kept = [jnp.sum((one - w0) * (w - w0), axis=1) / jnp.sum((w - w0) ** 2, axis=1) for one in (near, found)]
    assert kept[0][:6].max() < 0.5
    assert abs(kept[1][:6].mean() - 1) < 0.2
