"""The scan over layers whose stacks are bits, against the one whose stacks are float32."""

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels.save_for_backward import ONLY_SAVED
from bidora_jax.kernels.xla_cpu.scan import scan

LAYERS, BATCH, TOKENS, WIDTH = 5, 2, 3, 7


def numbers(seed: int, *shape: int):
    """Of 16 bits, so that a stack of bits loses nothing of them."""
    return jax.random.normal(jax.random.key(seed), shape).astype(jnp.bfloat16)


X = numbers(0, BATCH, TOKENS, WIDTH).astype(jnp.float32)
WEIGHTS = jnp.sin(jnp.arange(LAYERS * WIDTH, dtype=jnp.float32)).reshape(LAYERS, WIDTH)
HALF = jnp.asarray(0.5)
READ = numbers(1, LAYERS, BATCH, TOKENS, WIDTH)


def body(x, slices, half):
    weights, read, index = slices
    # Rounded, as a body `as_bits` leaves it: float32 stacks of the same numbers hold them as they are.
    part = (jnp.tanh(x * weights[None, None]) + index).astype(jnp.bfloat16)
    return x + half * read.astype(jnp.float32) * weights[None, None], {"narrow": part, "wide": weights * 2}


def wide(x, slices, half):
    x, parts = body(x, slices, half)
    return x, jax.tree.map(lambda part: part.astype(jnp.float32), parts)


def both(weights, read, reverse=False):
    """By bits and in float32."""
    slices = weights, read, jnp.arange(LAYERS)
    as_bits = scan(body, X, slices, HALF, after=weights, reverse=reverse, as_bits=True, policy=ONLY_SAVED)
    slices = weights, read.astype(jnp.float32), slices[2]
    return as_bits, scan(wide, X, slices, HALF, after=weights, reverse=reverse, policy=ONLY_SAVED)


def assert_equal(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(jnp.float32), b), found, expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_stacks_of_bits_hold_the_same_numbers(reverse):
    found, expected = both(WEIGHTS, READ, reverse)
    assert {name: part.dtype for name, part in found[1].items()} == {"narrow": jnp.bfloat16, "wide": jnp.float32}
    assert_equal(found, expected)


@pytest.mark.parametrize("moved", [(0,), (1,), (0, 1)])
def test_so_do_stacks_of_their_tangents(moved):
    directions = jnp.cos(WEIGHTS), numbers(2, *READ.shape)

    def along(form):
        def at(*some):
            arguments = [WEIGHTS, READ]
            for place, value in zip(moved, some, strict=True):
                arguments[place] = value
            return both(*arguments)[form]

        primals = tuple((WEIGHTS, READ)[place] for place in moved)
        return jax.jvp(at, primals, tuple(directions[place] for place in moved))[1]

    found, expected = along(0), along(1)
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(found)) > 0.1
    # A tangent is rounded like the part itself, of which float32 rounds once as well.
    assert_equal(found, expected)


def test_so_do_those_of_a_further_derivative():
    def second(form):
        def first(weights):
            return jax.jvp(lambda w: both(w, READ)[form], (weights,), (jnp.cos(WEIGHTS),))[1]

        return jax.jvp(first, (WEIGHTS,), (jnp.sin(3 * WEIGHTS),))[1]

    found, expected = second(0), second(1)
    assert jnp.abs(found[1]["narrow"]).max() > 0.1
    assert_equal(found, expected)


def test_they_have_none_in_what_is_shared():
    with pytest.raises(TypeError, match="share"):
        jax.jvp(
            lambda half: scan(body, X, (WEIGHTS, READ, jnp.arange(LAYERS)), half, as_bits=True, policy=ONLY_SAVED),
            (HALF,),
            (HALF,),
        )


def test_they_have_no_derivative_in_reverse():
    with pytest.raises((ValueError, NotImplementedError), match="reverse-mode"):
        jax.grad(lambda weights: jnp.sum(both(weights, READ)[0][1]["narrow"].astype(jnp.float32)))(WEIGHTS)


def test_the_loop_updates_integers_in_place():
    arguments = WEIGHTS, READ, jnp.arange(LAYERS)
    loop = hlo.loops(
        hlo.compiled(lambda *slices: scan(body, X, slices, HALF, as_bits=True, policy=ONLY_SAVED), *arguments)
    )[0]
    stack = f"[{LAYERS},{BATCH},{TOKENS},{WIDTH}]"
    assert loop.count(f"u16{stack}") >= 2  # one read, one written; the line names them twice
    assert f"f32{stack}" not in loop
    assert f"bf16{stack}" not in loop
