"""models/compute.py and kernels/xla_cpu/__init__.py: a whole step equals its plain twin, and what a run's settings become."""

from dataclasses import replace

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bilevel_problem import batch
from random_adapters import adapted
from tiny import CONFIG

from bidora_jax.kernels import xla_cpu
from bidora_jax.models.compute import Compute
from bidora_jax.models.settings import ModelConfig
from bidora_jax.training import objective
from bidora_jax.training.bilevel import bilevel_step
from bidora_jax.training.state import init_state

KEY = jax.random.key(5)
FIRST = Compute(remat="dots", loss_chunk=64, reverse_differentiable=False)


def step_of(method: str, remat: str, dtype):
    """One step by plain descent, traced anew: the loss, and the gradient or the hypergradient as one vector."""
    adapter, base, direction, magnitude = adapted(method, dtype)
    compute = replace(FIRST, remat=remat)
    train, val = (batch(seed, 1, np.float32) for seed in (1, 2))
    if method != "bidora":
        loss = objective.inner_loss(CONFIG, adapter, compute)
        found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(direction, magnitude, base, train, KEY)
        return found[0], jax.flatten_util.ravel_pytree(found[1])[0]
    txs = {"inner_tx": optax.sgd(0.1), "outer_tx": optax.sgd(1.0)}
    losses = {
        "inner_loss": objective.inner_two_pass(CONFIG, adapter, compute, compute),
        "outer_loss": objective.outer_loss(CONFIG, adapter, compute),
    }
    state = init_state(direction, magnitude, *txs.values(), KEY)
    after, metrics = jax.jit(lambda *at: bilevel_step(*at, **losses, **txs))(state, base, train, val)
    h = jax.tree.map(jnp.subtract, magnitude, after.magnitude)
    return metrics["val_loss"], jax.flatten_util.ravel_pytree((after.direction, h))[0]


@pytest.mark.parametrize(
    ("method", "remat", "dtype", "tolerance"),
    [("lora", "dots", jnp.float32, 1e-5), ("lora", "layer", jnp.bfloat16, 0.02), ("dora", "dots", jnp.bfloat16, 0.02),
     ("dora", "layer", jnp.float32, 1e-5), ("bidora", "dots", jnp.float32, 1e-4), ("bidora", "layer", jnp.bfloat16, 0.05)],
)  # fmt: skip
def test_a_whole_step_is_its_plain_twin(monkeypatch, method, remat, dtype, tolerance):
    """By the length of the difference. Sums in other orders are rounded otherwise: float32 to 2⁻²⁴ a sum, bfloat16 to 2⁻⁹."""
    assert xla_cpu.active()
    loss, found = step_of(method, remat, dtype)
    monkeypatch.setenv("BIDORA_PLAIN", "1")
    assert not xla_cpu.active()
    jax.clear_caches()
    plain_loss, plain = step_of(method, remat, dtype)
    np.testing.assert_allclose(loss, plain_loss, rtol=tolerance)
    assert np.linalg.norm(plain) > 0
    assert np.linalg.norm(found - plain) < tolerance * np.linalg.norm(plain)


def test_a_plain_step_has_no_detour(monkeypatch):
    """Not one call that XLA is told not to inline, nor an integer of 16 bits."""

    def program() -> str:
        adapter, base, direction, magnitude = adapted("dora", jnp.bfloat16)
        loss = objective.inner_loss(CONFIG, adapter, FIRST)
        traced = jax.jit(jax.grad(loss)).lower(direction, magnitude, base, batch(1, 1, np.float32), KEY)
        return traced.as_text()

    assert "inlineable" in program() and "ui16" in program()
    monkeypatch.setenv("BIDORA_PLAIN", "1")
    jax.clear_caches()
    assert "inlineable" not in program() and "ui16" not in program()


def test_a_runs_settings_become_one_value():
    model = ModelConfig(remat="layer", attention="auto", attention_chunk=5, loss_chunk=7)
    assert Compute.of(model) == Compute("layer", "chunked", 5, 7)
    assert Compute.of(replace(model, attention="cudnn"), reverse_differentiable=False).fused
    with pytest.raises(ValueError, match="remat auto is for training"):
        Compute.of(replace(model, remat="auto"))
