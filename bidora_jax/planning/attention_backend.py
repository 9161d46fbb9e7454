"""Which attention a run's gradients go through: cuDNN's fused kernels where they serve, the chunked form everywhere else.

    chunked   kernels/attention.py: any device, dtype and row; differentiable to any order
    cudnn     an NVIDIA GPU, 16-bit floats, a document a row, head sizes that cuDNN takes; first derivatives alone

                                       through cudnn               always chunked
    lora, dora, lower steps, retrain   the gradient
    bidora, exact                      ∇L_inner and ∇L_outer       the mixed product
    bidora, reverse                    ∇L_outer                    ∇L_inner and the mixed product, which is its derivative
    bidora, direct, finite-difference  all gradients               there is no mixed product

`auto` takes cudnn where the rules allow it and cuDNN, tried at the run's heads and sizes, compiles and gives what the chunked
form gives. Its scores never are in memory, nor computed where the mask hides them; that it is the faster of the two has not
been measured for this package. Losses that are reported (tasks/evaluation.py) are of the chunked form on every device. cuDNN's
backward pass may sum in another order each time: bit for bit the same again it is under --xla_gpu_deterministic_ops only.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp

from bidora_jax.data.settings import DataConfig
from bidora_jax.errors import InputError, listing
from bidora_jax.kernels import attention
from bidora_jax.models.architectures.architecture import Architecture
from bidora_jax.models.architectures.encoder import EncoderConfig
from bidora_jax.models.settings import ModelConfig

AUTO, CHUNKED, CUDNN = "auto", "chunked", "cudnn"
TRIED = 208
"""Tokens of the row that the two forms are compared on: of several cuDNN tiles, the last one cut."""
TOLERANCE = 0.03
"""By the length of the difference. JAX's own form is 0.004 to 0.005 off in bfloat16, by a window one token too long 0.07."""


def check(model: ModelConfig, data: DataConfig) -> None:
    """Refuses model.attention cudnn where the settings alone show that it can't be: before anything is loaded."""
    if model.attention == CUDNN:
        _refuse(obstacles(None if model.dtype == AUTO else model.dtype, data.packing))


def check_family(model: ModelConfig, architecture: Architecture) -> None:
    """Refuses model.attention cudnn for an encoder: cuDNN knows neither its documents nor its windows to both sides."""
    if model.attention == CUDNN and isinstance(architecture, EncoderConfig):
        _refuse(["the model is an encoder, and those are attended in chunks alone"])


def settle(
    model: ModelConfig, architecture: Architecture, data: DataConfig, dtype, lengths: Sequence[int]
) -> tuple[ModelConfig, str]:
    """The settings with what `auto` stands for in a run of these padded lengths, and one line on it; empty on a CPU, where there
    is no choice, and where nothing was left to choose. InputError where cudnn is asked for and can't be."""
    if model.attention == CHUNKED:
        return model, ""
    check_family(model, architecture)
    if isinstance(architecture, EncoderConfig):
        return replace(model, attention=CHUNKED), ""
    against = obstacles(dtype, data.packing) or refusals(architecture, data.batch_size, lengths, dtype)
    if model.attention == CUDNN:
        _refuse(against)
        return model, ""
    if against:
        silent = jax.default_backend() == "cpu"
        return replace(model, attention=CHUNKED), "" if silent else f"attention chunked: cuDNN's won't do, {against[0]}"
    return replace(model, attention=CUDNN), f"attention cudnn: {jax.devices()[0].device_kind} has it at these sizes"


def obstacles(dtype, packing: bool) -> list[str]:
    """What stands against cudnn, without trying it. A dtype of None is not known yet."""
    found = []
    backend = jax.default_backend()
    if backend != "gpu":
        found.append(f"it needs an NVIDIA GPU, and this is a {backend}")
    if dtype is not None and jnp.dtype(dtype).itemsize != 2:
        found.append(f"it takes bfloat16 and float16, and the base is {jnp.dtype(dtype).name} (model.dtype)")
    if packing:
        found.append("it can't keep the records of a row apart (data.packing)")
    return found


def refusals(architecture: Architecture, batch: int, lengths: Sequence[int], dtype) -> list[str]:
    """What cuDNN says against attention and its gradient at these sizes, or how far off the chunked form it is. Empty: nothing."""
    heads = (architecture.num_heads, architecture.num_kv_heads, architecture.num_kv_heads)
    try:
        for length in lengths:
            rows = [jax.ShapeDtypeStruct((batch, length, count, architecture.head_dim), dtype) for count in heads]
            jax.jit(lambda *rows: _with_gradients(attention.fused_attention, architecture.window, *rows)).lower(
                *rows
            ).compile()
        off = difference(architecture, dtype)
    except (RuntimeError, ValueError) as error:  # jax raises several kinds, and XLA one of its own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return [f"at heads of {architecture.head_dim} it says: {first}"]
    return [] if off <= TOLERANCE else [f"its result or a gradient is {off:.0%} off the chunked form's"]


def difference(architecture: Architecture, dtype) -> float:
    """The largest of ‖fused − chunked‖/‖chunked‖ over attention and its three gradients, of normal q, k, v on one row. A window
    takes part at a third of the row."""
    window = None if architecture.window is None else TRIED // 3
    heads = (architecture.num_heads, architecture.num_kv_heads, architecture.num_kv_heads)
    rows = [
        jax.random.normal(jax.random.key(number), (1, TRIED, count, architecture.head_dim), dtype)
        for number, count in enumerate(heads)
    ]

    def chunked(*rows, window):
        return attention.causal_attention(*rows, chunk=TRIED, window=window)

    @jax.jit
    def largest(*rows):
        pairs = zip(
            *(_with_gradients(form, window, *rows) for form in (attention.fused_attention, chunked)), strict=True
        )
        wide = [[part.astype(jnp.float32) for part in pair] for pair in pairs]
        return jnp.stack([jnp.linalg.norm(a - b) / jnp.linalg.norm(b) for a, b in wide]).max()

    return float(largest(*rows))


def _with_gradients(form, window: int | None, *rows):
    """attention(q, k, v) and the gradients of half its square in the three."""
    out, pull = jax.vjp(lambda *rows: form(*rows, window=window), *rows)
    return out, *pull(out)


def _refuse(against: list[str]) -> None:
    if against:
        raise InputError(
            f"model.attention cudnn is not for this run:\n{listing(against)}\n"
            "choose auto or chunked: the same gradients to rounding"
        )
