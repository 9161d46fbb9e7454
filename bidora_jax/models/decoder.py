"""The decoder-only transformer of Llama, Mistral, Qwen2 and Qwen3; where they differ is a flag.

    x ← E[tokens];   for each layer:  x ← x + attention(norm(x));  x ← x + mlp(norm(x));   logits = norm(x)·Eᵀ

One Linen layer is applied by a scan over parameters that are stacked on a leading layer axis (layer_scan.py), so that compile
time does not grow with depth and one layer's activations live at a time. A batch is right-padded; positions count from 0, in a
row of several documents, which `segments` tells apart, from 0 in each. Activations have the dtype of the base; norms, softmax,
logits and losses are float32.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from bidora_jax.kernels import attention, norms, rope
from bidora_jax.kernels.matmul import frozen_dot
from bidora_jax.kernels.swiglu import swiglu
from bidora_jax.models import stacks, tensor
from bidora_jax.models.adapters.adapter import Adapter
from bidora_jax.models.architectures.decoder import DecoderConfig, linear_shapes
from bidora_jax.models.architectures.rope import frequencies
from bidora_jax.models.base import dtype_of, embedded, head_of, with_whole_modules
from bidora_jax.models.compute import DEFAULT, Compute
from bidora_jax.models.layer_scan import Layer
from bidora_jax.models.linear import Linear, side_by_side
from bidora_jax.models.stacks import Stacks, Trained
from bidora_jax.models.tape import EmptyTape, TapeValues

Attend = Callable[..., tuple[Array, PyTree]]
"""(causal attention, q, k, v) -> (its result, what to keep): how generation puts a cache between a layer's two halves."""
Batch = dict[str, Array]
"""tokens (B, T); for a loss loss_mask (B, T); segments (B, T) where a row holds several documents."""


class RMSNorm(nn.Module):
    eps: float

    @nn.compact
    def __call__(self, x):
        weight = self.variable("base", "weight", jnp.ones, (x.shape[-1],), x.dtype).value
        return norms.rms_norm(x, weight, eps=self.eps)


class Attention(nn.Module):
    config: DecoderConfig
    adapter: Adapter | None
    compute: Compute

    @nn.compact
    def __call__(self, x, cos, sin, attend: Attend | None = None, starts=None):
        c, chunk, fused = self.config, self.compute.attention_chunk, self.compute.fused
        layers = [_linear(self, name, c.qkv_bias) for name in ("q_proj", "k_proj", "v_proj")]
        q, k, v = (out.reshape(*x.shape[:2], -1, c.head_dim) for out in side_by_side(layers, x))
        if c.qk_norm:
            q, k = RMSNorm(c.rms_norm_eps, name="q_norm")(q), RMSNorm(c.rms_norm_eps, name="k_norm")(k)
        q, k = rope.rope(q, cos, sin), rope.rope(k, cos, sin)
        if fused:
            causal = partial(attention.fused_attention, window=c.window)
        else:
            causal = partial(attention.causal_attention, chunk=chunk, window=c.window, starts=starts)
        out, kept = (causal(q, k, v), None) if attend is None else attend(causal, q, k, v)
        out = out.reshape(*x.shape[:2], -1)
        # In chunks the backward pass computes the scores anew: once where the result is saved, else twice.
        in_chunks = attend is None and not fused and x.shape[1] > chunk
        return _linear(self, "o_proj", c.o_bias, saves_input=in_chunks, exposes_input=True)(out), kept


class MLP(nn.Module):
    config: DecoderConfig
    adapter: Adapter | None
    compute: Compute

    @nn.compact
    def __call__(self, x):
        bias = self.config.mlp_bias
        gate, up = side_by_side([_linear(self, name, bias) for name in ("gate_proj", "up_proj")], x)
        return _linear(self, "down_proj", bias)(swiglu(gate, up))


class DecoderLayer(nn.Module):
    """One layer; its variables are one slice of the stacked trees."""

    config: DecoderConfig
    adapter: Adapter | None
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x, cos, sin, attend: Attend | None = None, starts=None):
        eps, parts = self.config.rms_norm_eps, (self.config, self.adapter, self.compute)
        normed = RMSNorm(eps, name="input_layernorm")(x)
        mixed, kept = Attention(*parts, name="self_attn")(normed, cos, sin, attend, starts)
        x = x + mixed
        normed = RMSNorm(eps, name="post_attention_layernorm")(x)
        return x + MLP(*parts, name="mlp")(normed), kept


def _linear(parent: Attention | MLP, name: str, bias: bool, *, saves_input=False, exposes_input=False) -> Linear:
    path = f"{parent.name}.{name}"
    out_features, in_features = linear_shapes(parent.config)[path]
    adapted = None if parent.adapter is None else parent.adapter.at(path)
    parts = in_features, out_features, bias, adapted, parent.compute, saves_input, exposes_input
    return Linear(*parts, is_summed=name in tensor.SUMMED, name=name)


def hidden(
    config: DecoderConfig,
    adapter: Adapter | None,
    compute: Compute,
    base: PyTree,
    trained: Trained,
    batch: Batch,
    key: Array | None = None,
    tape: EmptyTape | TapeValues | None = None,
) -> Float[Array, "B T D"]:
    """The normed last hidden states. A `key` switches the adapter's dropout on; `tape` asks for what a pass computes, or gives it
    (tape.py). ValueError for cuDNN's attention over `segments`, which it does not know."""
    if compute.fused and "segments" in batch:
        raise ValueError(
            "fused attention can't tell the documents of a row apart: pack no rows, or take chunked attention"
        )
    stacked, layer = parts(config, adapter, compute, base, trained, batch, key)
    x, weight = stacked.applied(layer, compute, tape), base["norm"]["weight"]
    return norms.rms_norm(x.astype(compute.dtype or weight.dtype), weight, eps=config.rms_norm_eps)


def parts(
    config: DecoderConfig,
    adapter: Adapter | None,
    compute: Compute,
    base: PyTree,
    trained: Trained,
    batch: Batch,
    key: Array | None = None,
) -> tuple[Stacks, Layer]:
    """What the scan over layers takes, and the layer that it applies."""
    base = with_whole_modules(base, trained[0])
    if compute.tensor_axis is not None:
        direction, magnitude = trained
        base, direction, magnitude = (tensor.own(tree, compute.tensor_axis) for tree in (base, direction, magnitude))
        trained = direction, magnitude
    return _stacked(config, compute, base, trained, batch, key), _layer(config, adapter, compute)


def empty_tape(
    config: DecoderConfig,
    adapter: Adapter | None,
    compute: Compute,
    base: PyTree,
    trained: Trained,
    batch: Batch,
    means: Array | None,
) -> EmptyTape:
    """The empty tape of a pass over this batch: with remat `dots` of the layers, and of a head that has `means`."""
    stacked, layer = parts(config, adapter, compute, base, trained, {"tokens": batch["tokens"]})
    return stacked.empty_tape(layer, compute, means)


def _stacked(config: DecoderConfig, compute: Compute, base: PyTree, trained: Trained, batch: Batch, key) -> Stacks:
    tokens = batch["tokens"]
    x = embedded(base, tokens).astype(compute.dtype or dtype_of(base))
    starts, positions = (
        stacks.documents(batch["segments"]) if "segments" in batch else (None, jnp.arange(tokens.shape[1]))
    )
    return stacks.stacked(base, trained, x, (*angles(config, positions, x.dtype), starts), key)


def _layer(config: DecoderConfig, adapter: Adapter | None, compute: Compute) -> Layer:
    layer = DecoderLayer(config, adapter, compute)

    def apply(variables, x, given, own, **how):
        cos, sin, starts = given
        (out, _), written = layer.apply(variables, x, cos, sin, starts=starts, **how)
        return out, written

    return stacks.as_layer(apply)


def logits(
    config: DecoderConfig,
    adapter: Adapter | None,
    base: PyTree,
    direction: PyTree,
    magnitude: PyTree,
    tokens: Int[Array, "B T"],
    compute: Compute = DEFAULT,
) -> Float[Array, "B T V"]:
    """All logits in float32; for probes and short texts, the loss never calls it."""
    x = hidden(config, adapter, compute, base, (direction, magnitude), {"tokens": tokens})
    return frozen_dot(x, head_of(with_whole_modules(base, direction)).astype(x.dtype))


def angles(config: DecoderConfig, positions, dtype):
    theta, gain = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    return rope.rope_angles(positions, theta, gain=gain, dtype=dtype)
