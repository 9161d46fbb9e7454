"""training/adam8bit.py: optax's Adam on small leaves, a NumPy twin and bitsandbytes on large ones, and the hypergradient.

Large is 4096 elements or more: A is stored in 8 bits, 16 whole blocks of 256 and 207 numbers; B and m are not.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from environment import AS_USERS

from bidora_jax.kernels import dynamic_8bit, hypergrad
from bidora_jax.training import optim
from bidora_jax.training.adam8bit import Stored, scale_by_adam_8bit
from bidora_jax.training.bilevel import bilevel_step
from bidora_jax.training.checkpoint import Checkpoints
from bidora_jax.training.settings import OptimizerConfig
from bidora_jax.training.state import init_state

SHAPES = {"A": (13, 331), "B": (7, 13), "m": (7,)}
CONSTANTS = {"b1": 0.8, "b2": 0.95, "eps": 1e-5, "eps_root": 1e-10}


def gradients(step: int, dtype=jnp.float32) -> dict[str, jax.Array]:
    """Of several sizes within a block, one of them zero throughout."""
    random = np.random.default_rng(step)
    rows = {"A": 10 ** np.linspace(-3, 0, 13)[:, None] * (np.arange(13)[:, None] != 5), "B": 1.0, "m": 0.1}
    return {name: jnp.asarray(rows[name] * random.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def run(tx: optax.GradientTransformation, steps: int, dtype=jnp.float32):
    """(updates of every step, the last state)."""
    state, update, all_updates = tx.init(gradients(0, dtype)), jax.jit(tx.update), []
    for step in range(steps):
        updates, state = update(gradients(step, dtype), state)
        all_updates.append(updates)
    return all_updates, state


def moments(state: optax.ScaleByAdamState, name: str) -> list[np.ndarray]:
    """Both moments of a large leaf, read back."""
    pairs = ((state.mu[name], True), (state.nu[name], False))
    return [np.asarray(dynamic_8bit.dequantise(*m, SHAPES[name], signed=signed, block=256)) for m, signed in pairs]


# The law


def test_small_leaves_are_those_of_optax_bit_for_bit():
    found, state = run(scale_by_adam_8bit(**CONSTANTS), 5)
    wanted, reference = run(optax.scale_by_adam(**CONSTANTS), 5)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a["B"], b["B"])
        np.testing.assert_array_equal(a["m"], b["m"])
        assert a["A"].dtype == b["A"].dtype
    for name in ("B", "m"):
        np.testing.assert_array_equal(state.mu[name], reference.mu[name])
        np.testing.assert_array_equal(state.nu[name], reference.nu[name])
    assert state.count == reference.count == 5
    assert isinstance(state.mu["A"], Stored) and isinstance(state.nu["A"], Stored)


def test_a_leaf_of_min_size_is_large():
    shapes = {"at": jnp.zeros((3, 5)), "below": jnp.zeros((2, 7))}
    state = scale_by_adam_8bit(block=7, min_size=15).init(shapes)
    assert isinstance(state.mu["at"], Stored) and not isinstance(state.mu["below"], Stored)
    assert state.nu["at"].codes.shape == (3, 7)


def test_the_first_update_of_a_large_leaf_is_that_of_optax():
    """Both start from moments that are exactly zero."""
    found, wanted = (run(form(**CONSTANTS), 1)[0][0]["A"] for form in (scale_by_adam_8bit, optax.scale_by_adam))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)  # a handful of float32 operations


@pytest.mark.usefixtures("x64")
def test_the_numpy_twin_for_several_steps():
    """In float64, where the twin's few operations cannot cross a border of the map."""
    found, state = run(scale_by_adam_8bit(**CONSTANTS), 5, jnp.float64)
    m, v = np.zeros(SHAPES["A"]), np.zeros(SHAPES["A"])
    for step in range(5):
        g = np.asarray(gradients(step, jnp.float64)["A"])
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        m_hat, v_hat = m / (1 - 0.8 ** (step + 1)), v / (1 - 0.95 ** (step + 1))
        # Where the two terms of m cancel, a thousandth of it remains.
        np.testing.assert_allclose(found[step]["A"], m_hat / (np.sqrt(v_hat + 1e-10) + 1e-5), rtol=1e-11)
        m, v = rounded(m, signed=True), rounded(v, signed=False)
    for read, wanted in zip(moments(state, "A"), (m, v), strict=True):
        np.testing.assert_array_equal(read, wanted)


def rounded(x: np.ndarray, signed: bool) -> np.ndarray:
    """x to the nearest value of the map in blocks of 256, by trying all values."""
    table = dynamic_8bit.dynamic_map(signed)
    flat = np.pad(x.astype(np.float32).reshape(-1), (0, -x.size % 256)).reshape(-1, 256)
    absmax = np.abs(flat).max(1, keepdims=True)
    z = np.divide(flat, absmax, out=np.zeros_like(flat), where=absmax > 0)
    codes = np.abs(z.astype(np.float64)[..., None] - table.astype(np.float64)).argmin(-1)
    return (table[codes] * absmax).reshape(-1)[: x.size].reshape(x.shape).astype(np.float64)


def test_zero_gradients_give_zero_updates():
    tx = scale_by_adam_8bit()
    zeros = jax.tree.map(jnp.zeros_like, gradients(0))
    updates, state = tx.update(zeros, tx.init(zeros))
    updates, _ = tx.update(zeros, state)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_dtypes(x64, dtype):
    """Stored moments do not depend on the gradient's dtype; the update is in float32 or wider."""
    state = scale_by_adam_8bit().init(gradients(0, dtype))
    updates, after = scale_by_adam_8bit().update(gradients(0, dtype), state)
    assert after.mu["A"].codes.dtype == jnp.uint8 and after.mu["A"].absmax.dtype == jnp.float32
    assert updates["A"].dtype == jnp.promote_types(dtype, jnp.float32)
    assert updates["B"].dtype == after.mu["B"].dtype == dtype
    assert [leaf.dtype for leaf in jax.tree.leaves(state)] == [leaf.dtype for leaf in jax.tree.leaves(after)]


def test_both_moments_of_a_large_leaf_take_about_two_bytes_a_parameter():
    leaf = jnp.zeros((7, 13, 1009))
    state = jax.eval_shape(scale_by_adam_8bit().init, leaf)
    parts = [part for moment in (state.mu, state.nu) for part in moment]
    assert sum(part.size * part.dtype.itemsize for part in parts) <= 2.04 * leaf.size


@pytest.mark.torch
def test_a_step_of_bitsandbytes_from_its_own_state():
    """AdamW8bit on the CPU: every parameter after every step, and what is stored to the next code.

    Its codes are not always the nearest, and are far off near zero (see test_dynamic8.py): each step starts from what it
    has stored, and codes are compared above a hundredth of the block's largest.
    """
    import torch
    from bitsandbytes import optim as optimisers

    rate, decay = 0.01, 0.1
    start = np.random.default_rng(3).normal(size=SHAPES["A"]).astype(np.float32)
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimiser = optimisers.AdamW8bit([theirs], lr=rate, betas=(0.8, 0.95), eps=1e-5, weight_decay=decay)
    settings = OptimizerConfig(
        "adamw_8bit",
        rate,
        "constant",
        warmup=0.0,
        weight_decay=decay,
        clip=0.0,
        b1=0.8,
        b2=0.95,
        eps=1e-5,
        eps_root=0.0,
    )
    tx = optim.transformation(settings, 10)
    params = {"A": jnp.asarray(start)}
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(7):
        gradient = {"A": gradients(step)["A"]}
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        theirs.grad = torch.from_numpy(np.array(gradient["A"]))
        optimiser.step()
        # Updates of about 0.01; parameters of up to 4, whose last digit in float32 is 2.4e-7.
        np.testing.assert_allclose(params["A"], theirs.detach().numpy(), rtol=1e-6, atol=1e-6)
        stored = {name: padded(optimiser.state[theirs], key) for name, key in (("mu", "1"), ("nu", "2"))}
        for name, moment in stored.items():
            mine = getattr(state[1], name)["A"]
            np.testing.assert_allclose(mine.absmax, moment.absmax, rtol=1e-6)
            large = np.abs(dynamic_8bit.dynamic_map(name == "mu")[mine.codes]) > 0.01
            away = np.abs(np.asarray(mine.codes, int) - np.asarray(moment.codes, int))[large]
            assert away.max() <= 1 and (away > 0).mean() < 0.01
        params = {"A": jnp.asarray(theirs.detach().numpy().copy())}
        moments = state[1]._replace(**{name: {"A": moment} for name, moment in stored.items()})
        state = (state[0], moments, *state[2:])


def padded(state, key: str) -> Stored:
    """A moment of a bitsandbytes optimiser, in whole blocks."""
    codes = state[f"state{key}"].numpy().reshape(-1)
    codes = np.pad(codes, (0, -codes.size % 256)).reshape(-1, 256)
    return Stored(jnp.asarray(codes), jnp.asarray(state[f"absmax{key}"].numpy().copy()))


# Training


def test_a_regression_ends_as_with_adamw():
    """Least squares in 4303 unknowns: both losses fall by six decades, to within half of each other."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(331, 97)), jnp.float32)
    y = jnp.asarray(random.normal(size=SHAPES["A"]), jnp.float32) @ x

    def loss(params):
        return jnp.mean(jnp.square(params["A"] @ x - y))

    def trained(optimizer: str) -> float:
        tx = optim.transformation(OptimizerConfig(optimizer, 0.05, clip=0.0), 150)

        @jax.jit
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        params = {"A": jnp.zeros(SHAPES["A"])}
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=150)
        return float(loss(params))

    start, wide, narrow = float(jnp.mean(jnp.square(y))), trained("adamw"), trained("adamw_8bit")
    assert wide < 1e-5 * start
    assert 0.5 * wide < narrow < 1.5 * wide and narrow != wide


# The derivative


def test_the_derivative_is_that_of_adam_at_the_moments_read_back():
    _, state = run(scale_by_adam_8bit(**CONSTANTS), 3)
    mu, nu = moments(state, "A")
    plain = optax.ScaleByAdamState(state.count, state.mu | {"A": jnp.asarray(mu)}, state.nu | {"A": jnp.asarray(nu)})
    at, along = gradients(3), gradients(4)

    def slope(tx, state):
        return jax.jvp(lambda g: tx.update(g, state)[0], (at,), (along,))[1]

    found = slope(scale_by_adam_8bit(**CONSTANTS), state)
    wanted = slope(optax.scale_by_adam(**CONSTANTS), plain)
    for name in SHAPES:
        # The two terms of the derivative can cancel: float32 of the larger.
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-5 * np.abs(wanted[name]).max())


def test_what_is_stored_has_no_derivative():
    tx = scale_by_adam_8bit()
    at = gradients(0)
    _, tangents = jax.jvp(lambda g: tx.update(g, tx.init(at))[1], (at,), (gradients(1),))
    for moment in (tangents.mu["A"], tangents.nu["A"]):
        assert moment.codes.dtype == jax.dtypes.float0
        np.testing.assert_array_equal(moment.absmax, 0)


def problem(dtype):
    """A DoRA layer of one matrix on a regression: (losses, direction, magnitude)."""
    random = np.random.default_rng(5)
    w0, x, y = (jnp.asarray(random.normal(size=shape), dtype) for shape in ((7, 331), (331, 17), (7, 17)))

    def loss(direction, magnitude, base, batch, key):
        w = base + direction["B"] @ direction["A"]
        w = (magnitude["m"] / jnp.linalg.norm(w, axis=1))[:, None] * w
        return jnp.mean(jnp.square(w @ batch[0] - batch[1]))

    direction = {"A": jnp.asarray(random.normal(size=SHAPES["A"]) / 18, dtype), "B": jnp.zeros(SHAPES["B"], dtype)}
    magnitude = {"m": jnp.linalg.norm(w0, axis=1)}
    batches = (x[:, :11], y[:, :11]), (x[:, 11:], y[:, 11:])
    return loss, w0, batches, direction, magnitude


TRANSFORMATIONS = {
    "settings": optim.transformation(OptimizerConfig("adamw_8bit", 1e-1, "cosine", weight_decay=0.1, clip=0.1), 10),
    # B in 8 bits too; its blocks of 8 end within a row.
    "all-8-bit": optax.chain(scale_by_adam_8bit(eps=0.01, eps_root=1e-16, block=8, min_size=50), optax.scale(-0.1)),
}


def stepper(loss, tx, form):
    """bilevel_step whose hypergradient is the old magnitude minus the new one."""
    return jax.jit(partial(bilevel_step, inner_loss=loss, outer_loss=loss, inner_tx=tx, outer_tx=optax.sgd(1.0),
                           hypergradient=form))  # fmt: skip


@pytest.mark.parametrize("form", [hypergrad.exact, hypergrad.reverse])
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_hypergradient_is_the_central_difference_of_the_whole_step(x64, name, form):
    tx = TRANSFORMATIONS[name]
    loss, base, (train, val), direction, magnitude = problem(jnp.float64)
    step = stepper(loss, tx, form)

    @jax.jit
    def whole_map(state, m):
        gradient = jax.grad(loss)(state.direction, m, base, train, None)
        updates, _ = tx.update(gradient, state.inner_opt, state.direction)
        return loss(optax.apply_updates(state.direction, updates), m, base, val, None)

    state = init_state(direction, magnitude, tx, optax.sgd(1.0), jax.random.key(1))
    random = np.random.default_rng(7)
    for steps in (0, 5):  # at B = 0, and away from it
        for _ in range(steps):
            state = step(state, base, train, val)[0]._replace(magnitude=magnitude)
        h = magnitude["m"] - step(state, base, train, val)[0].magnitude["m"]
        along = jnp.asarray(random.normal(size=SHAPES["m"]))
        wanted = central(lambda m, state=state: float(whole_map(state, {"m": m})), magnitude["m"], along)
        np.testing.assert_allclose(float(h @ along), wanted, rtol=1e-6)


def central(f, at, along, width: float = 1e-4):
    """df/dt of f(at + t·along), by the five-point rule: at this width its truncation and its rounding are below 1e-8."""
    near, far = (f(at + t * along) - f(at - t * along) for t in (width, 2 * width))
    return (8 * near - far) / (12 * width)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_float32_hypergradients_are_those_of_float64(x64, name):
    """Both forms from the same state, by length; sums of 331 products in float32 leave a few 1e-7."""
    tx = TRANSFORMATIONS[name]
    loss, base, batches, direction, magnitude = problem(jnp.float32)
    exact, reverse = (stepper(loss, tx, form) for form in (hypergrad.exact, hypergrad.reverse))

    def h(step, inputs):
        return inputs[0].magnitude["m"] - step(*inputs)[0].magnitude["m"]

    state = init_state(direction, magnitude, tx, optax.sgd(1.0), jax.random.key(1))
    for steps in (0, 5):
        for _ in range(steps):
            state = exact(state, base, *batches)[0]._replace(magnitude=magnitude)
        inputs = (state, base, *batches)
        wanted = h(exact, wider(inputs))
        for step in (exact, reverse):
            found = h(step, inputs)
            assert found.dtype == jnp.float32 and wanted.dtype == jnp.float64
            assert np.linalg.norm(found - wanted) < 2e-6 * np.linalg.norm(wanted)


def wider(tree):
    """The same numbers in float64, but for the scales of stored moments, which are float32 in either."""

    def wide(leaf):
        return leaf.astype(jnp.float64) if getattr(leaf, "dtype", None) == jnp.float32 else leaf

    return jax.tree.map(wide, tree, is_leaf=lambda leaf: isinstance(leaf, Stored))


# The state


def training(seed: int = 0):
    """(jitted step with its state donated, state, base, batches)."""
    tx = TRANSFORMATIONS["settings"]
    loss, base, batches, direction, magnitude = problem(jnp.float32)
    step = partial(bilevel_step, inner_loss=loss, outer_loss=loss, inner_tx=tx, outer_tx=tx)
    state = init_state(direction, magnitude, tx, tx, jax.random.key(seed))
    # Donated arrays are gone: each caller has its own.
    return jax.jit(step, donate_argnums=0), jax.tree.map(jnp.copy, state), base, batches


def bits(tree) -> list:
    plain = [jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
             for leaf in jax.tree.leaves(tree)]  # fmt: skip
    return [(leaf.dtype, np.asarray(leaf).tobytes()) for leaf in plain]


def test_a_run_that_is_resumed_half_way_ends_bit_for_bit_as_the_whole_one(tmp_path):
    step, state, base, batches = training()
    for _ in range(3):
        state, _ = step(state, base, *batches)
    saved = bits(state)
    assert np.dtype(np.uint8) in {dtype for dtype, _ in saved}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(3, state, {})
    for _ in range(3):
        state, _ = step(state, base, *batches)

    _, like, _, _ = training(seed=1)
    with Checkpoints(tmp_path, keep=None) as checkpoints:
        resumed, _ = checkpoints.restore(3, like)
    assert bits(resumed) == saved
    for _ in range(3):
        resumed, _ = step(resumed, base, *batches)
    assert bits(resumed) == bits(state)


def test_the_state_is_donated_and_compiled_for_once():
    step, state, base, batches = training()
    memory = step.lower(state, base, *batches).compile(AS_USERS).memory_analysis()
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves((state.direction, state.inner_opt)))
    assert memory.alias_size_in_bytes >= stored
    for _ in range(3):
        state, _ = step(state, base, *batches)
    assert step._cache_size() == 1
