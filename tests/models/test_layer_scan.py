"""The pass that reads a record against the one that computes everything: the same numbers, from half of the products.

models/stacks.py makes the stacks of the scan, models/tape.py writes the record down, kernels/known_values.py gives what it holds
back with its derivatives.
"""

from dataclasses import replace
from functools import partial

import hlo
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from environment import AS_USERS
from forms import quantised
from tiny import CONFIG, noisy, random_base

from bidora_jax.kernels import hypergrad, known_values
from bidora_jax.models import decoder
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures.decoder import linear_shapes
from bidora_jax.models.compute import Compute
from bidora_jax.models.linear import Linear
from bidora_jax.training import objective
from bidora_jax.training.bilevel import bilevel_step
from bidora_jax.training.state import init_state

MODEL = Compute(remat="dots", loss_chunk=64, reverse_differentiable=False)
REVERSIBLE = replace(MODEL, reverse_differentiable=True)
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KEY = jax.random.key(3)
CASES = {
    "all linear layers": {},
    "two of them, and dropout": {"target_modules": ("q_proj", "down_proj"), "dropout": 0.3},
    "constant norm, start away from zero": {"norm": "constant", "init": "olora"},
    "other ranks": {"rank_pattern": (("1.mlp.up_proj", 5), ("0.self_attn.q_proj", 0))},
    "trained head": {"modules_to_save": ("lm_head",)},
}


def problem(dtype=jnp.float64, form=None, **settings):
    """An adapter, its base and factors away from zero."""
    adapter = adapters.resolve(AdapterConfig(**{"rank": 3, "target_modules": ALL} | settings), CONFIG)
    base = random_base(dtype=dtype)
    base = initial.prepare_base(base if form is None else quantised(base, form), adapter)
    wide = jnp.promote_types(dtype, jnp.float32)
    trees = noisy(adapter, *initial.init(adapter, base, jax.random.key(0)))
    return adapter, base, *jax.tree.map(lambda leaf: leaf.astype(wide), trees)


def batch(seed: int, dtype=np.float64, micro: int = 1, **more):
    random = np.random.default_rng(seed)
    tokens = random.integers(CONFIG.vocab_size, size=(micro, 2, 11), dtype=np.int32)
    return {"tokens": jnp.asarray(tokens), "loss_mask": jnp.asarray(random.random(tokens.shape) < 0.6, dtype), **more}


def hypergradients(problem, train, val, model=MODEL, gram_weight=0.0, once=None):
    """With the record of the train gradient, and with all of it computed again."""
    adapter, base, direction, magnitude = problem
    inner = objective.inner_loss(CONFIG, adapter, model, gram_weight=gram_weight)
    two_pass = objective.inner_two_pass(CONFIG, adapter, once or model, model, gram_weight=gram_weight)
    losses = {"outer_loss": objective.outer_loss(CONFIG, adapter, model)}
    txs = {"inner_tx": optax.sgd(0.1, momentum=0.9), "outer_tx": optax.sgd(1.0)}
    state = init_state(direction, magnitude, *txs.values(), KEY)
    steps = (partial(bilevel_step, inner_loss=given, **losses, **txs) for given in (two_pass, inner))
    return [
        jax.tree.map(jnp.subtract, magnitude, jax.jit(step)(state, base, train, val)[0].magnitude) for step in steps
    ]


def assert_same(found, expected, tolerance: float):
    """By the largest number of each leaf."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("name", CASES)
def test_a_mixed_product_from_the_record_is_the_one_without(x64, name):
    case = problem(**CASES[name])
    gram_weight = 0.1 if name == "two of them, and dropout" else 0.0
    assert_same(*hypergradients(case, batch(1), batch(2), gram_weight=gram_weight), 1e-12)


def test_so_it_is_of_rows_of_several_documents_chunk_by_chunk(x64):
    documents = jnp.asarray([[[1] * 4 + [2] * 7, [1] * 6 + [2] * 3 + [3] * 2]])
    model = replace(MODEL, attention_chunk=5, loss_chunk=7)
    assert_same(*hypergradients(problem(), batch(1, segments=documents), batch(2), model), 1e-12)


@pytest.mark.parametrize("chunks", [(1024, 5), (5, 1024)])
def test_so_it_is_of_passes_that_attend_in_different_chunks(x64, chunks):
    # Only a pass in chunks writes down what attention gives; cuDNN's does not, and the mixed product after it is in chunks.
    once, twice = (replace(MODEL, attention_chunk=chunk) for chunk in chunks)
    assert_same(*hypergradients(problem(), batch(1), batch(2), twice, once=once), 1e-12)


def test_attention_in_chunks_is_computed_once_more_and_not_twice(monkeypatch):
    adapter, base, direction, magnitude = problem(jnp.float32)
    model = replace(MODEL, attention_chunk=4)

    def exponentials() -> float:
        loss = objective.inner_loss(CONFIG, adapter, replace(model, reverse_differentiable=True))
        step = jax.jit(jax.grad(loss)).lower(direction, magnitude, base, batch(1, np.float32), KEY).compile()
        return hlo.instructions(step, "exponential", "self_attn")

    found = exponentials()

    def unsaved(*parts, **named):
        *others, _, exposes_input = parts
        return Linear(*others, False, exposes_input, **named)

    monkeypatch.setattr(decoder, "Linear", unsaved)
    assert found == pytest.approx(exponentials() * 2 / 3)


def gradients(remat: str, method: str = "bidora", reverse_differentiable: bool = True):
    """Of a bfloat16 model: compiled, and as one vector."""
    adapter, base, direction, magnitude = problem(jnp.bfloat16, method=method)
    loss = objective.inner_loss(
        CONFIG, adapter, replace(MODEL, remat=remat, reverse_differentiable=reverse_differentiable)
    )
    arguments = direction, magnitude, base, batch(1, np.float32), KEY
    step = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
    return step, jax.flatten_util.ravel_pytree(step(*arguments))[0]


@pytest.mark.parametrize(("remat", "method"), [("layer", "bidora"), ("dots", "bidora"), ("dots", "lora")])
def test_a_gradient_with_derivatives_forward_alone_keeps_half_of_the_bits(remat, method):
    def in_loops(step) -> bool:
        stack = f"f32[{CONFIG.num_layers},2,11,"
        return any(stack in line for line in hlo.loops(step))

    step, found = gradients(remat, method, reverse_differentiable=False)
    other, expected = gradients(remat, method)
    assert not in_loops(step)
    assert in_loops(other)
    # What is kept is rounded as it goes on.
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("remat", ["layer", "dots"])
@pytest.mark.parametrize(("norm", "times"), [("constant", 1), ("differentiated", 2)])
def test_a_norm_that_is_held_constant_is_computed_once(remat, norm, times):
    adapter, base, direction, magnitude = problem(jnp.bfloat16, target_modules=("up_proj",), norm=norm)
    loss = objective.inner_loss(CONFIG, adapter, replace(MODEL, remat=remat))
    step = jax.jit(jax.grad(loss)).lower(direction, magnitude, base, batch(1, np.float32), KEY).compile()
    # W0·Aᵀ, with A in two parts; the loops over layers stand once in the program.
    assert hlo.dots(step, "f32", CONFIG.intermediate_size, 2 * 3) == times


def test_it_has_no_derivative_in_reverse():
    adapter, base, direction, magnitude = problem(jnp.bfloat16)
    loss = objective.inner_loss(CONFIG, adapter, MODEL)

    def length(d):
        gradient = jax.grad(loss)(d, magnitude, base, batch(1, np.float32), KEY)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient))

    with pytest.raises((ValueError, NotImplementedError), match="reverse-mode"):
        jax.grad(length)(direction)


@pytest.mark.parametrize("remat", ["layer", "none"])
def test_so_it_is_from_a_record_of_the_head_alone(x64, remat):
    case = problem(target_modules=("q_proj", "down_proj"))
    assert_same(*hypergradients(case, batch(1), batch(2), replace(MODEL, remat=remat, loss_chunk=7)), 1e-12)


@pytest.mark.parametrize(
    ("dtype", "form", "micro"), [(jnp.bfloat16, None, 1), (jnp.bfloat16, None, 2), (jnp.float32, "nf4 nested", 1)]
)
def test_it_rounds_as_the_one_without(dtype, form, micro):
    case = problem(dtype, form, target_modules=("q_proj", "down_proj"))
    # A hypergradient is read here as the difference of two magnitudes: to a unit in their last place.
    assert_same(*hypergradients(case, batch(1, np.float32, micro), batch(2, np.float32, micro)), 1e-5)


def two_passes(problem, batch, model=MODEL):
    """What the first pass of a batch makes, and the mixed product with some direction as a function of its record."""
    adapter, base, direction, magnitude = problem
    two_pass = objective.inner_two_pass(CONFIG, adapter, model, model)
    first = jax.jit(two_pass.first)(direction, magnitude, base, batch, KEY)
    v = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), direction)

    def mixed(record):
        def gradient(d):
            return jax.grad(two_pass.second, argnums=(0, 1))(d, magnitude, base, batch, KEY, record)[1]

        return jax.jvp(gradient, (direction,), (v,))[1]

    return first, mixed


def test_the_first_pass_is_the_gradient_and_micro_batches_leave_no_record(x64):
    adapter, base, direction, magnitude = case = problem()
    loss = objective.inner_loss(CONFIG, adapter, replace(REVERSIBLE, remat="none"))
    value, expected = jax.jit(jax.value_and_grad(loss))(direction, magnitude, base, batch(1), KEY)
    (found_value, found, record), _ = two_passes(case, batch(1))
    np.testing.assert_allclose(found_value, value, rtol=1e-13)
    assert_same(found, expected, 1e-12)
    assert record is not None and two_passes(case, batch(1, micro=2))[0][2] is None


def test_every_part_of_the_record_is_read():
    (_, _, record), mixed = two_passes(problem(jnp.float32), batch(1, np.float32))
    mixed = jax.jit(mixed)
    plain = mixed(record)
    for field in record._fields:
        doubled = record._replace(**{field: jax.tree.map(lambda leaf: 2 * leaf, getattr(record, field))})
        change = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), plain, mixed(doubled))
        assert min(jax.tree.leaves(change)) > 1e-3, field


def operations(mixed, record) -> float:
    """By the compiler's count, in which the body of a loop over layers stands once."""
    return jax.jit(mixed).lower(record).compile().cost_analysis()["flops"]


HEAD = CONFIG.vocab_size * CONFIG.hidden_size


def test_the_record_spares_two_products_of_four_with_every_frozen_matrix_of_the_layers():
    (_, _, record), mixed = two_passes(problem(jnp.float32), batch(1, np.float32))
    tokens, layer = 2 * 11, sum(out * inside for out, inside in linear_shapes(CONFIG).values())
    assert operations(mixed, None) - operations(mixed, record) > 2 * tokens * (2 * layer + HEAD)


@pytest.mark.parametrize("remat", ["layer", "none"])
def test_a_record_of_the_head_spares_one_product_of_four(remat):
    (_, _, record), mixed = two_passes(problem(jnp.float32), batch(1, np.float32), replace(MODEL, remat=remat))
    assert record.inputs is None and record.means.shape == (20, CONFIG.hidden_size)
    product = 2 * 20 * HEAD
    assert 0.9 * product < operations(mixed, None) - operations(mixed, record) < 1.2 * product


def test_stacks_of_one_pass_are_not_there_during_another():
    """A gradient after a gradient takes the memory of one: XLA's own zeros would be made before both."""
    adapter, base, direction, magnitude = problem(jnp.float32)
    loss = objective.inner_loss(CONFIG, adapter, REVERSIBLE)
    wide = {name: jnp.tile(array, (1, 8, 8)) for name, array in batch(1, np.float32).items()}

    def descents(count: int):
        def moved(d):
            for _ in range(count):
                d = jax.tree.map(lambda x, g: x - 0.1 * g, d, jax.grad(loss)(d, magnitude, base, wide, KEY))
            return d

        return jax.jit(moved).lower(direction).compile(AS_USERS).memory_analysis().temp_size_in_bytes

    assert descents(2) < 1.1 * descents(1)


def test_known_values_have_the_derivatives_of_what_they_stand_for():
    """with_value: all of them; with_value_first_order: the first, and its own from there.

    f = y³ at 2, where the value that is given is 8."""

    def f(how, x):
        return how(jnp.asarray(8.0), x**3) ** 2

    assert jax.jvp(partial(f, known_values.with_value), (2.0,), (1.0,)) == (64.0, 2 * 8 * 12.0)
    slopes = [
        jax.jvp(jax.grad(partial(f, how)), (2.0,), (1.0,))[1]
        for how in (known_values.with_value, known_values.with_value_first_order)
    ]
    assert slopes == [2 * (12.0**2 + 8 * 12.0), 2 * 8 * 12.0]  # the square's own slope is constant in the latter


def test_reverse_over_reverse_passes_through_the_same_scan():
    adapter, base, direction, magnitude = problem(jnp.float32, target_modules=("q_proj", "down_proj"))
    train, val = batch(1, np.float32), batch(2, np.float32)
    for remat in ("layer", "dots"):
        inner = objective.inner_loss(CONFIG, adapter, replace(REVERSIBLE, remat=remat))

        def loss(d, m, b, inner=inner):
            return inner(d, m, base, b, KEY)

        found, expected = (
            jax.jit(lambda d, m, form=form, loss=loss: form(
                lambda d, m: loss(d, m, train), lambda d, m: loss(d, m, val),
                lambda d, g: (jax.tree.map(lambda x, y: x - 0.1 * y, d, g), None), d, m).hypergradient)(direction, magnitude)
            for form in (hypergrad.exact, hypergrad.reverse)
        )  # fmt: skip
        assert_same(found, expected, 1e-5)


@pytest.mark.parametrize("remat", ["layer", "dots"])
def test_a_loss_can_be_differentiated_outside_of_its_jit_and_never_in_a_frozen_weight(remat):
    adapter, base, direction, magnitude = problem(jnp.float32, target_modules=("q_proj", "down_proj"), dropout=0.3)
    loss = objective.inner_loss(CONFIG, adapter, replace(REVERSIBLE, remat=remat))
    train = batch(1, np.float32)
    inside = jax.jit(jax.grad(loss))(direction, magnitude, base, train, KEY)
    assert_same(jax.grad(jax.jit(loss))(direction, magnitude, base, train, KEY), inside, 1e-6)
    with pytest.raises(TypeError, match="the base is frozen with remat layer and dots"):
        jax.eval_shape(jax.grad(loss, argnums=2), direction, magnitude, base, train, KEY)
