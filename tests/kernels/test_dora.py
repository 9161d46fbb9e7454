"""kernels/dora.py against float64 NumPy, written out plainly, and the laws of weight decomposition."""

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels import dora, row_gain

BATCH, TOKENS, IN, OUT, RANK, SCALE = 2, 5, 13, 7, 3, 1.7


def case(dtype=jnp.float32, seed: int = 0):
    random = np.random.default_rng(seed)
    x, w, a, b = (random.normal(size=shape) for shape in ((BATCH, TOKENS, IN), (OUT, IN), (RANK, IN), (OUT, RANK)))
    m = random.uniform(0.5, 2.0, OUT)
    return (jnp.asarray(x, dtype), jnp.asarray(w, dtype), dora.Direction(*(jnp.asarray(v, jnp.float32) for v in (a, b))),
            jnp.asarray(m, jnp.float32))  # fmt: skip


def dense(x, w, direction, m):
    """W' as the paper writes it, in float64."""
    x, w, a, b, m = (np.asarray(v, np.float64) for v in (x, w, *direction, m))
    v = w + SCALE * b @ a
    merged = m[:, None] * v / np.linalg.norm(v, axis=1, keepdims=True)
    return x @ merged.T, merged


def composed(x, w, direction, gain):
    """gain ⊙ (x·W0ᵀ + s·(x·Aᵀ)·Bᵀ), as models/linear.py composes it, without a tape."""
    lowered = dora.lower(x, direction.A).astype(x.dtype)
    y = dora.frozen(x, w) + dora.raised(lowered, SCALE * direction.B, x.shape)
    gain = row_gain.away_from_zero(gain, x.dtype)
    return row_gain.scaled(y, gain, row_gain.save_scaled(y, gain, x.dtype).astype(x.dtype))


def adapted(x, w, direction, m):
    norm = dora.row_norm(w, dora.square_norm(w), direction, scale=SCALE)
    return composed(x, w, direction, dora.gain(m, norm))


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)])
def test_the_layer_is_the_dense_formula(dtype, tolerance):
    # bfloat16 keeps 8 bits: 2^-8 a rounding, and the inner product of the low-rank path is rounded once more.
    x, w, direction, m = case(dtype)
    expected, _ = dense(x, w, direction, m)
    found = adapted(x, w, direction, m)
    assert found.dtype == dtype
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=tolerance * np.abs(expected).max())


def test_init_changes_nothing():
    x, w, _, _ = case()
    direction, m = dora.init(jax.random.key(0), w, rank=RANK)
    np.testing.assert_allclose(adapted(x, w, direction, m), x @ w.T, rtol=1e-5, atol=1e-6)
    assert np.abs(direction.A).max() <= IN**-0.5 and np.abs(direction.A).min() > 0


def test_merge_is_the_layer_and_its_rows_have_length_m():
    x, w, direction, m = case()
    merged = dora.merge(w, direction, m, scale=SCALE)
    np.testing.assert_allclose(merged, dense(x, w, direction, m)[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(merged, axis=1), m, rtol=1e-6)
    np.testing.assert_allclose(x @ merged.T, adapted(x, w, direction, m), rtol=1e-4, atol=1e-5)


def test_merge_without_magnitude_is_lora():
    _, w, direction, _ = case()
    np.testing.assert_allclose(
        dora.merge(w, direction, scale=SCALE), np.asarray(w) + SCALE * np.asarray(direction.B) @ np.asarray(direction.A),
        rtol=1e-6, atol=1e-6,
    )  # fmt: skip


def test_the_direction_has_no_length():
    x, w, direction, m = case()
    longer = jnp.arange(1.0, OUT + 1)
    scaled = dora.Direction(direction.A, longer[:, None] * direction.B)
    np.testing.assert_allclose(
        adapted(x, longer[:, None] * w, scaled, m), adapted(x, w, direction, m), rtol=1e-4, atol=1e-5
    )


def test_gradients_are_those_of_the_dense_formula(x64):
    x, w, direction, m = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), case())

    def plain(direction, m):
        v = w + SCALE * direction.B @ direction.A
        return jnp.sum(jnp.sin(x @ (m[:, None] * v / jnp.linalg.norm(v, axis=1, keepdims=True)).T))

    def factored(direction, m):
        return jnp.sum(jnp.sin(adapted(x, w, direction, m)))

    for found, expected in zip(
        jax.tree.leaves(jax.grad(factored, (0, 1))(direction, m)),
        jax.tree.leaves(jax.grad(plain, (0, 1))(direction, m)), strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_a_layer_made_again_has_no_product_of_zeros():
    x, w, direction, m = case(jnp.bfloat16)

    @jax.checkpoint
    def layer(x, direction, m):
        return jnp.sin(composed(x, w, direction, m).astype(jnp.float32))

    def loss(*arguments):
        return jnp.sum(layer(*arguments) ** 2)

    program = hlo.compiled(jax.grad(loss, argnums=(0, 1, 2)), x, direction, m)
    assert hlo.dots(program, "f32", BATCH * TOKENS, IN) == 2  # of x, with W0 and with A


def test_a_narrow_base_has_no_derivative_rather_than_one_of_zero():
    x, w, direction, m = case(jnp.bfloat16)
    with pytest.raises(AssertionError):  # linear_call's own: what it holds constant was differentiated
        jax.grad(lambda w: jnp.sum(composed(x, w, direction, m).astype(jnp.float32)))(w)


def test_the_norm_over_a_narrow_base_is_that_of_the_same_weights_in_float32():
    _, w, direction, _ = case(jnp.bfloat16)
    wide = w.astype(jnp.float32)
    found, expected = (dora.row_norm(v, dora.square_norm(v), direction, scale=SCALE) for v in (w, wide))
    np.testing.assert_allclose(found, expected, rtol=2e-5)  # A rounded to 8 bits differs by 2.6e-4


def test_a_zero_row_stays_zero_and_has_finite_derivatives():
    x, w, direction, m = case()
    w = w.at[2].set(0.0)
    direction = dora.Direction(direction.A, direction.B.at[2].set(0.0))
    value, gradients = jax.value_and_grad(lambda d, m: jnp.sum(adapted(x, w, d, m) ** 2), (0, 1))(direction, m)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert not adapted(x, w, direction, m)[..., 2].any()


def test_vmap_over_layers_is_the_loop():
    stacks = [case(seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stacks)
    found = jax.vmap(adapted)(*stacked)
    for one, layer in zip(found, stacks, strict=True):
        np.testing.assert_allclose(one, adapted(*layer), rtol=1e-5, atol=1e-6)
