"""Rounding by the outputs: against GPTQ written out in float64, against all roundings there are, and against what it promises."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels import rounding

DTYPES = [jnp.bfloat16, jnp.float16]


def inputs(count: int, columns: int, rank: int = 3, seed: int = 0) -> np.ndarray:
    """Inputs most of whose size lies in a few directions, as a model's do."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, rank)) @ random.normal(size=(rank, columns)) + 0.1 * random.normal(
        size=(count, columns)
    )


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


def by_elimination(w, low, high, moments) -> np.ndarray:
    """GPTQ as its paper says it: the inverse of H, of which each column done is eliminated. float64."""
    order = np.argsort(-np.diagonal(moments), kind="stable")
    h = moments[np.ix_(order, order)].astype(np.float64)
    h += rounding.DAMPING * np.diagonal(moments).mean() * np.eye(len(h))
    inverse, now, found = np.linalg.inv(h), w[:, order].astype(np.float64), np.zeros(w.shape)
    for column, place in enumerate(order):
        lows, highs = low[:, place], high[:, place]
        found[:, place] = np.where(now[:, column] - lows <= highs - now[:, column], lows, highs)
        error = (now[:, column] - found[:, place]) / inverse[column, column]
        now -= np.outer(error, inverse[column])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return found


@pytest.mark.parametrize("columns", [37, rounding.BLOCK + 5])
def test_feedback_is_gptq(columns):
    _, w = changed(11, columns, 1e-3)
    x = inputs(400, columns)
    moments = jnp.asarray(x.T @ x, jnp.float32)
    low, high = rounding.neighbours(w, jnp.bfloat16)
    found, near = np.asarray(rounding.feedback(w, low, high, rounding.inputs(moments))), rounding.nearest(w, low, high)
    wanted = by_elimination(*map(np.asarray, (w, low, high, moments)))
    errors = [np.square((np.asarray(one) - np.asarray(w)) @ x.T).sum(axis=1) for one in (found, near, wanted)]
    wanted = np.where((errors[2] <= errors[1])[:, None], wanted, near)
    # A tie that float32 breaks the other way turns what comes after it; few entries may.
    assert np.mean(found != wanted) < 0.02
    assert {*np.unique((found == low) | (found == high))} == {True}
    assert np.all(errors[0] <= errors[1])
    assert errors[0].sum() < errors[1].sum()


def test_feedback_is_not_far_from_the_best_rounding_there_is():
    _, w = changed(3, 9, 2e-3)
    x = inputs(60, 9)
    low, high = rounding.neighbours(w, jnp.bfloat16)
    moments = jnp.asarray(x.T @ x, jnp.float32)
    found = np.asarray(rounding.feedback(w, low, high, rounding.inputs(moments))) - np.asarray(w)
    near = np.asarray(rounding.nearest(w, low, high)) - np.asarray(w)
    for row in range(3):
        ends = np.asarray(low)[row], np.asarray(high)[row]
        every = [np.where(chosen, ends[1], ends[0]) - np.asarray(w)[row] for chosen in product((0, 1), repeat=9)]
        errors = np.array([np.square(x @ one).sum() for one in every])
        at, of_nearest = np.square(x @ found[row]).sum(), np.square(x @ near[row]).sum()
        assert errors.min() * 0.999 <= at <= of_nearest
        assert np.mean(errors < at * 0.999) < 0.15  # a greedy way: 0.09 of all are better in the worst of these rows


def test_inputs_that_are_all_zero_give_the_nearest_value():
    _, w = changed(5, 7, 1e-3)
    low, high = rounding.neighbours(w, jnp.bfloat16)
    found = rounding.feedback(w, low, high, rounding.inputs(jnp.zeros((7, 7))))
    assert jnp.array_equal(found, rounding.nearest(w, low, high))


def test_unbiased_rounding_has_the_value_as_its_mean():
    _, w = changed(5, 7, 1e-3)
    low, high = rounding.neighbours(w, jnp.bfloat16)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: rounding.unbiased(key, w, low, high))(keys)
    assert jnp.all((drawn == low[None]) | (drawn == high[None]))
    # The mean of n draws between neighbours is off by at most half a step over the root of n, six of which never happen.
    assert jnp.all(jnp.abs(drawn.mean(axis=0) - w) <= 3 * (high - low) / np.sqrt(len(keys)))


def test_without_inputs_a_row_is_drawn_only_where_the_nearest_value_loses_its_change():
    (w0, small), (_, large) = changed(6, 501, 1e-4), changed(6, 501, 0.3)
    w = jnp.concatenate([small, large])
    w0 = jnp.concatenate([w0, w0])
    low, high = rounding.neighbours(w, jnp.bfloat16)
    found, near = (
        rounding.without_inputs(jax.random.key(0), w, w0, low, high),
        rounding.nearest(w, low, high),
    )
    assert jnp.array_equal(found[6:], near[6:])
    kept = [jnp.sum((one - w0) * (w - w0), axis=1) / jnp.sum((w - w0) ** 2, axis=1) for one in (near, found)]
    assert kept[0][:6].max() < 0.5
    assert abs(kept[1][:6].mean() - 1) < 0.2
