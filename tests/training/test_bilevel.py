"""The exact hypergradient of a language model against central differences of the whole one-step map, in float64.

m  ↦  L_val(U(d, ∇_d L_tr(d, m)), m)        a tiny Qwen3, every optimiser, with and without accumulation

training/objective.py gives the losses, training/accumulation.py sums micro-batches, training/state.py is what goes in and out.
"""

from functools import partial

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bilevel_problem import MODEL, OPTIMIZERS, batch, dot
from environment import AS_USERS
from tiny import CONFIG, random_base

from bidora_jax.kernels import hypergrad
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.training import objective, optim
from bidora_jax.training.bilevel import bilevel_step, lower_step
from bidora_jax.training.state import init_state


def problem(dtype=jnp.float64, targets=("q_proj", "down_proj"), **settings):
    adapter = adapters.resolve(AdapterConfig(rank=3, target_modules=targets, **settings), CONFIG)
    base = initial.prepare_base(random_base(dtype=dtype), adapter)
    direction, magnitude = initial.init(adapter, base, jax.random.key(0))
    losses = {
        "inner_loss": objective.inner_loss(CONFIG, adapter, MODEL),
        "outer_loss": objective.outer_loss(CONFIG, adapter, MODEL),
    }
    return base, direction, magnitude, losses


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_exact_is_the_central_difference_of_the_whole_step(x64, name, micro):
    base, direction, magnitude, losses = problem()
    tx = optim.transformation(OPTIMIZERS[name], 10)
    train, val = batch(1, micro), batch(2, micro)
    step = jax.jit(partial(bilevel_step, **losses, inner_tx=tx, outer_tx=optax.sgd(1.0)))

    @jax.jit
    def whole_map(state, magnitude):
        def inner(d):
            return losses["inner_loss"](d, magnitude, base, train, state.key)

        updates, _ = tx.update(jax.grad(inner)(state.direction), state.inner_opt, state.direction)
        moved = optax.apply_updates(state.direction, updates)
        return losses["outer_loss"](moved, magnitude, base, val, state.key)

    state = init_state(direction, magnitude, tx, optax.sgd(1.0), jax.random.key(1))
    random = np.random.default_rng(7)
    for steps in (0, 5):  # at B = 0, and away from it
        for _ in range(steps):
            after, _ = step(state, base, train, val)
            state = after._replace(magnitude=state.magnitude)
        after, _ = step(state, base, train, val)
        h = jax.tree.map(jnp.subtract, state.magnitude, after.magnitude)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(h))
        along = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), magnitude)
        np.testing.assert_allclose(
            dot(h, along), central(lambda m, state=state: float(whole_map(state, m)), state.magnitude, along), rtol=1e-6
        )


def central(f, at, along, width: float = 1e-4):
    """df/dt of f(at + t·along), by the five-point rule: at this width its truncation and its rounding are below 1e-8."""

    def shifted(t):
        return f(jax.tree.map(lambda m, v: m + t * v, at, along))

    return (8 * (shifted(width) - shifted(-width)) - (shifted(2 * width) - shifted(-2 * width))) / (12 * width)


@pytest.mark.parametrize("form", [hypergrad.exact, hypergrad.reverse, hypergrad.finite_difference])
def test_accumulated_micro_batches_are_one_large_batch(form, x64):
    base, direction, magnitude, losses = problem()
    tx = optim.transformation(OPTIMIZERS["adamw"], 10)
    state = init_state(direction, magnitude, tx, tx, jax.random.key(1))
    three = [batch(seed, 3) for seed in (1, 2)]
    one = [{name: array.reshape(1, 6, 11) for name, array in b.items()} for b in three]
    (after_three, _), (after_one, _) = (
        jax.jit(partial(bilevel_step, **losses, inner_tx=tx, outer_tx=tx, hypergradient=form))(state, base, *b)
        for b in (three, one)
    )
    for a, b in zip(jax.tree.leaves(after_three[1:3]), jax.tree.leaves(after_one[1:3]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_the_gradient_of_micro_batches_computes_none_of_them_twice():
    base, direction, magnitude, losses = problem(jnp.float32)

    def products(micro_batches):
        gradient = jax.jit(jax.value_and_grad(losses["inner_loss"], argnums=(0, 1)))
        arguments = direction, magnitude, base, batch(1, micro_batches, np.float32), jax.random.key(0)
        return hlo.products(gradient.lower(*arguments))

    assert products(3) == products(1)


def test_micro_batches_hold_no_copy_of_the_embedding():
    """Its bits, say, which a part of the batch makes of it: a loop over parts would keep them through the layers."""
    base, direction, magnitude, losses = problem(jnp.bfloat16)
    table = jnp.zeros((100_000, base["norm"]["weight"].size), jnp.bfloat16)
    base = {**base, "embed_tokens": {"weight": table}}

    def temporaries(micro_batches):
        gradient = jax.jit(jax.value_and_grad(losses["inner_loss"], argnums=(0, 1)))
        arguments = direction, magnitude, base, batch(1, micro_batches, np.float32), jax.random.key(0)
        return gradient.lower(*arguments).compile(AS_USERS).memory_analysis().temp_size_in_bytes

    assert temporaries(3) < temporaries(1) + 0.5 * table.nbytes


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
def test_forward_over_reverse_is_reverse_over_reverse(dtype, tolerance):
    """By the length of the difference; in bfloat16 the two round in different places, 8 bits at a time."""
    base, direction, magnitude, losses = problem(dtype)
    tx = optim.transformation(OPTIMIZERS["momentum"], 10)
    train, val = batch(1, 1, np.float32), batch(2, 1, np.float32)

    def update(d, g):
        updates, opt = tx.update(g, tx.init(direction), d)
        return optax.apply_updates(d, updates), opt

    def by(form):
        def run(base, direction, magnitude):
            inner, outer = (
                lambda d, m, loss=loss, b=b: loss(d, m, base, b, jax.random.key(0))
                for loss, b in ((losses["inner_loss"], train), (losses["outer_loss"], val))
            )
            return form(inner, outer, update, direction, magnitude).hypergradient

        return jax.jit(run)(base, direction, magnitude)

    exact, reverse = by(hypergrad.exact), by(hypergrad.reverse)
    difference = jax.tree.map(jnp.subtract, exact, reverse)
    assert dot(difference, difference) ** 0.5 < tolerance * dot(reverse, reverse) ** 0.5


def test_same_inputs_give_bit_equal_outputs_without_callbacks_in_one_compilation():
    base, direction, magnitude, losses = problem(jnp.float32, dropout=0.3)
    tx = optim.transformation(OPTIMIZERS["adamw"], 10)
    state = init_state(direction, magnitude, tx, tx, jax.random.key(1))
    step = jax.jit(partial(bilevel_step, **losses, inner_tx=tx, outer_tx=tx))
    train, val = batch(1, 1, np.float32), batch(2, 1, np.float32)
    first, again = step(state, base, train, val), step(state, base, train, val)
    for a, b in zip(*map(jax.tree.leaves, ((first[0][1:5], first[1]), (again[0][1:5], again[1]))), strict=True):
        np.testing.assert_array_equal(a, b)
    for seed in (5, 6):
        state, _ = step(state, base, batch(seed, 1, np.float32), batch(seed + 1, 1, np.float32))
    assert step._cache_size() == 1
    assert "callback" not in str(jax.make_jaxpr(step)(state, base, train, val))


def test_a_lower_step_is_the_direction_half_of_a_bilevel_step():
    base, direction, magnitude, losses = problem(jnp.float32, targets=("v_proj",))
    tx = optim.transformation(OPTIMIZERS["adamw"], 10)
    state = init_state(direction, magnitude, tx, tx, jax.random.key(1))
    train, val = batch(1, 1, np.float32), batch(2, 1, np.float32)
    both, _ = jax.jit(partial(bilevel_step, **losses, inner_tx=tx, outer_tx=tx))(state, base, train, val)
    lower, _ = jax.jit(partial(lower_step, inner_loss=losses["inner_loss"], inner_tx=tx))(state, base, train)
    for a, b in zip(jax.tree.leaves(both.direction), jax.tree.leaves(lower.direction), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(
        lower.magnitude["layers"]["self_attn"]["v_proj"]["m"], magnitude["layers"]["self_attn"]["v_proj"]["m"]
    )


def test_the_base_has_no_gradient_and_is_never_copied_out():
    base, direction, magnitude, losses = problem(jnp.float32)
    tx = optim.transformation(OPTIMIZERS["sgd"], 10)
    state = init_state(direction, magnitude, tx, tx, jax.random.key(1))
    step = jax.jit(partial(bilevel_step, **losses, inner_tx=tx, outer_tx=tx), donate_argnums=0)
    compiled = step.lower(state, base, batch(1, 1, np.float32), batch(2, 1, np.float32)).compile()
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(state._replace(key=jnp.zeros(2, jnp.uint32)))]
    assert compiled.memory_analysis().output_size_in_bytes < sum(sizes) + 4096
    assert compiled.memory_analysis().alias_size_in_bytes > 0.9 * sum(sizes)
