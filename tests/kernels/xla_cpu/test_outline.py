"""kernels/xla_cpu/outline.py: a call of its own in the compiled program, and all derivatives as if it were none."""

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels.xla_cpu.outline import outlined


def curve(x, y):
    # Both are compiled functions of JAX, and would be calls as well.
    return jax.nn.silu(x) * jnp.where(y > 0, y, jnp.sin(y))


def calls(function, *args) -> list[str]:
    return hlo.calls(hlo.compiled(function, *args))


def numbers(seed: int):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(3, 4)))


def test_it_is_one_call_and_its_tangent_another(x64):
    x, y, v, w = (numbers(seed) for seed in range(4))

    def around(form):
        return lambda x, y: jnp.sum(jnp.cos(form(jnp.exp(x), y)))

    assert not calls(around(curve), x, y)
    assert len(calls(around(outlined(curve)), x, y)) == 1
    assert len(calls(lambda *at: jax.jvp(around(outlined(curve)), at, (v, w)), x, y)) == 2
    # What the tangent is multiplied by, and the product with the cotangent.
    assert len(calls(jax.grad(around(outlined(curve))), x, y)) == 3


def test_its_tangent_is_of_what_moves(x64):
    x, y, v = (numbers(seed) for seed in range(3))
    program = hlo.compiled(lambda x, y, v: jax.jvp(lambda y: outlined(jax.lax.mul)(x, y), (y,), (v,)), x, y, v)
    assert hlo.instructions(program, "multiply") == 2


@pytest.mark.parametrize("order", ["value", "forward", "reverse", "forward over reverse", "mapped"])
def test_it_changes_no_number(x64, order):
    x, y, v, w = (numbers(seed) for seed in range(4))

    def total(form):
        return lambda x, y: jnp.sum(jnp.cos(form(x, y)))

    def found(form):
        if order == "value":
            return form(x, y)
        if order == "forward":
            return jax.jvp(form, (x, y), (v, w))
        if order == "reverse":
            return jax.grad(total(form), argnums=(0, 1))(x, y)
        if order == "forward over reverse":
            return jax.jvp(jax.grad(total(form), argnums=(0, 1)), (x, y), (v, w))
        return jax.vmap(form, in_axes=1)(x, y)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), found(outlined(curve)), found(curve))


def test_on_another_device_it_is_the_function(monkeypatch):
    def steps() -> list[str]:
        return [step.primitive.name for step in jax.make_jaxpr(outlined(jax.lax.neg))(1.0).eqns]

    assert steps() == ["custom_jvp_call"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert steps() == ["neg"]
