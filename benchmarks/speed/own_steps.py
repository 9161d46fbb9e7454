"""Our side of bench_speed.py: a step of LoRA, DoRA or BiDoRA, or the two gradients that every bilevel step contains."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.compute import Compute
from bidora_jax.models.formats import hf, hf_config
from bidora_jax.models.settings import ModelConfig
from bidora_jax.training import objective, optim
from bidora_jax.training.bilevel import bilevel_step
from bidora_jax.training.phases import HYPERGRADIENTS
from bidora_jax.training.settings import OptimizerConfig
from bidora_jax.training.state import init_state, init_train_state
from bidora_jax.training.step import train_step


def contestant(
    folder: Path, *, method: str, dtype: str, remat: str, form: str, rank: int, parts: int, loss_chunk: int
) -> tuple[Callable[[], float], dict]:
    """A step on the model and the tokens in a folder, and what the compiler says of it; the step gives the train loss."""
    config = hf_config.read_config(folder)
    model = ModelConfig(dtype=dtype, remat=remat)
    model = replace(model, loss_chunk=loss_chunk or model.loss_chunk)
    adapter = adapters.resolve(AdapterConfig(method=method, rank=rank, alpha=2.0 * rank), config)
    base = initial.prepare_base(hf.load(model, folder, config), adapter)
    params = initial.init(adapter, base, jax.random.key(0))

    def micro_batches(name: str):
        tokens = np.load(folder / f"{name}.npy")
        tokens = jnp.asarray(tokens.reshape(parts, -1, tokens.shape[-1]), jnp.int32)
        return {"tokens": tokens, "loss_mask": jnp.ones(tokens.shape, jnp.float32)}

    train, val = map(micro_batches, ("train", "val"))
    compute = Compute.of(model, reverse_differentiable=form == "reverse")
    inner, outer = (make(config, adapter, compute) for make in (objective.inner_loss, objective.outer_loss))
    if method != "bidora":
        return compiled(*one_level(inner, params), base, train)
    if form not in HYPERGRADIENTS:
        return compiled(*two_gradients(inner, outer, params), base, train, val)
    if form == "exact":
        inner = objective.inner_two_pass(config, adapter, compute, compute)
    losses = {"inner_loss": inner, "outer_loss": outer}
    return compiled(*two_levels(losses, params, form), base, train, val)


def compiled(step, state, *arguments) -> tuple[Callable[[], float], dict]:
    """A closure over a step of (state, *arguments) to (state, loss), and what the compiler says of it."""
    began = time.monotonic()
    run = jax.jit(step, donate_argnums=0).lower(state, *arguments).compile()
    seconds, temporaries = time.monotonic() - began, run.memory_analysis().temp_size_in_bytes
    program = hashlib.sha256(run.as_text().encode()).hexdigest()
    held = [state]

    def once() -> float:
        state, loss = jax.block_until_ready(run(held.pop(), *arguments))
        held.append(state)
        return float(loss)

    return once, {"compile_seconds": seconds, "temporaries_gb": temporaries / 1e9, "program": program}


def one_level(loss, params):
    """LoRA or DoRA."""
    tx = adamw()

    def step(state, base, train):
        state, metrics = train_step(state, base, train, loss=lambda p, *rest: loss(*p, *rest), tx=tx)
        return state, metrics["train_loss"]

    return step, init_train_state(params, tx, jax.random.key(1))


def two_levels(losses: dict, params, form: str):
    """A bilevel step with one of the hypergradient forms."""
    tx = adamw()
    settings = {"inner_tx": tx, "outer_tx": tx, "hypergradient": HYPERGRADIENTS[form]}

    def step(state, base, train, val):
        state, metrics = bilevel_step(state, base, train, val, **losses, **settings)
        return state, metrics["train_loss"]

    return step, init_state(*params, tx, tx, jax.random.key(1))


def two_gradients(inner, outer, params):
    """The gradients of the train and the val loss in both parts of the adapter; kept, or the compiler drops them."""

    def step(state, base, train, val):
        (params, _), key = state, jax.random.key(1)
        (loss, first), (_, second) = (
            jax.value_and_grad(lambda p, f=f, batch=batch: f(*p, base, batch, key))(params)
            for f, batch in ((inner, train), (outer, val))
        )
        return (params, (first, second)), loss

    zeros = jax.tree.map(jnp.zeros_like, (params, params))
    return step, (params, zeros)


def adamw():
    return optim.transformation(OptimizerConfig(clip=0.0, schedule="constant", warmup=0.0), 1)
