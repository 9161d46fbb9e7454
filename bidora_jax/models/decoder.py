"""The decoder-only transformer of Llama, Mistral, Qwen2 and Qwen3; where they differ is a flag.

    x ← E[tokens];   for each layer:  x ← x + attention(norm(x));  x ← x + mlp(norm(x));   logits = norm(x)·Eᵀ

One Linen layer is applied by `lax.scan` over parameters stacked on a leading layer axis, under `jax.checkpoint`, so that
compile time does not grow with depth and one layer's activations live at a time. A batch is right-padded; positions count
from 0, in a row of several documents, which `segments` tells apart, from 0 in each. Activations have the dtype of the base;
norms, softmax, logits and losses are float32.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from bidora_jax.kernels import attention, norms, quantized, rope
from bidora_jax.kernels.matmul import frozen_dot
from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.save_for_backward import saved_dtype
from bidora_jax.kernels.swiglu import swiglu
from bidora_jax.kernels.xla_cpu.bfloat16 import bits, floats
from bidora_jax.models.adapters.adapter import Adapter, with_saved
from bidora_jax.models.architectures.decoder import DecoderConfig, linear_shapes
from bidora_jax.models.architectures.rope import frequencies
from bidora_jax.models.layer_scan import (
    Blank,
    Record,
    Remat,
    _by_bits,
    _packed,
    _rematerialised,
    _unpacked,
    blank,
    scan_layers,
)
from bidora_jax.models.linear import Linear, side_by_side
from bidora_jax.models.tape import tapped, written_down

Attend = Callable[..., tuple[Array, PyTree]]
"""(causal attention, q, k, v) -> (its result, what to keep): how generation puts a cache between a layer's two halves."""


class RMSNorm(nn.Module):
    eps: float

    @nn.compact
    def __call__(self, x):
        weight = self.variable("base", "weight", jnp.ones, (x.shape[-1],), x.dtype).value
        return norms.rms_norm(x, weight, eps=self.eps)


class Attention(nn.Module):
    config: DecoderConfig
    adapter: Adapter | None
    chunk: int
    reopen: bool
    fused: bool = False

    @nn.compact
    def __call__(self, x, cos, sin, attend: Attend | None = None, starts=None):
        c = self.config
        x = tapped(self, "x", x)
        layers = [_linear(self, name, c.qkv_bias) for name in ("q_proj", "k_proj", "v_proj")]
        q, k, v = (out.reshape(*x.shape[:2], -1, c.head_dim) for out in side_by_side(layers, x))
        if c.qk_norm:
            q, k = RMSNorm(c.rms_norm_eps, name="q_norm")(q), RMSNorm(c.rms_norm_eps, name="k_norm")(k)
        q, k = rope.rope(q, cos, sin), rope.rope(k, cos, sin)
        if self.fused:
            causal = partial(attention.fused_attention, window=c.window)
        else:
            causal = partial(attention.causal_attention, chunk=self.chunk, window=c.window, starts=starts)
        out, kept = (causal(q, k, v), None) if attend is None else attend(causal, q, k, v)
        out = out.reshape(*x.shape[:2], c.num_heads * c.head_dim)
        if attend is None and not self.fused and x.shape[1] > self.chunk:
            # In chunks the backward pass computes the scores anew anyway: with the result at hand it does so once, not twice.
            out = written_down(self, out, out.dtype, "attended").astype(out.dtype)
        return _linear(self, "o_proj", c.o_bias)(tapped(self, "out", out)), kept


class MLP(nn.Module):
    config: DecoderConfig
    adapter: Adapter | None
    reopen: bool

    @nn.compact
    def __call__(self, x):
        bias = self.config.mlp_bias
        x = tapped(self, "x", x)
        gate, up = side_by_side([_linear(self, name, bias) for name in ("gate_proj", "up_proj")], x)
        return _linear(self, "down_proj", bias)(swiglu(gate, up))


class DecoderLayer(nn.Module):
    """One layer; its variables are one slice of the stacked trees."""

    config: DecoderConfig
    adapter: Adapter | None
    chunk: int = 1024
    reopen: bool = False
    """See models/linear.py."""
    fused: bool = False
    """Attention by cuDNN, without a second derivative."""

    @nn.compact
    def __call__(self, x, cos, sin, attend: Attend | None = None, starts=None):
        eps = self.config.rms_norm_eps
        normed = RMSNorm(eps, name="input_layernorm")(x)
        mix = Attention(self.config, self.adapter, self.chunk, self.reopen, self.fused, name="self_attn")
        mixed, kept = mix(normed, cos, sin, attend, starts)
        x = x + mixed
        normed = RMSNorm(eps, name="post_attention_layernorm")(x)
        return x + MLP(self.config, self.adapter, self.reopen, name="mlp")(normed), kept


def _linear(parent: Attention | MLP, name: str, bias: bool = False) -> Linear:
    path = f"{parent.name}.{name}"
    out_features, in_features = linear_shapes(parent.config)[path]
    adapted = None if parent.adapter is None else parent.adapter.at(path)
    return Linear(in_features, out_features, bias, adapted, parent.reopen, name=name)


def base_shapes(config: DecoderConfig, dtype) -> PyTree:
    """Shapes and dtypes of the base tree of this model, without allocating any of it."""
    x = jax.ShapeDtypeStruct((1, 2, config.hidden_size), dtype)
    angle = jax.ShapeDtypeStruct((2, config.head_dim), dtype)
    layer = jax.eval_shape(DecoderLayer(config, None).init, jax.random.key(0), x, angle, angle)["base"]
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((config.num_layers, *leaf.shape), leaf.dtype), layer)
    vocabulary = {"weight": jax.ShapeDtypeStruct((config.vocab_size, config.hidden_size), dtype)}
    norm = {"weight": jax.ShapeDtypeStruct((config.hidden_size,), dtype)}
    base = {"embed_tokens": vocabulary, "layers": stacked, "norm": norm}
    return base if config.tie_word_embeddings else {**base, "lm_head": vocabulary}


def hidden(
    config: DecoderConfig,
    adapter: Adapter | None,
    base: PyTree,
    direction: PyTree,
    magnitude: PyTree,
    tokens: Int[Array, "B T"],
    key: Array | None = None,
    *,
    remat: Remat = "layer",
    fused: bool = False,
    attention_chunk: int = 1024,
    dtype=None,
    segments: Int[Array, "B T"] | None = None,
    record: Blank | Record | None = None,
    reversible: bool = True,
) -> Float[Array, "B T D"]:
    """The normed last hidden states. A `key` switches the adapter's dropout on; `dtype` is that of the activations where
    it is another than the base's, whose layers are then cast one at a time; `segments` number the documents of a row.
    `fused` takes attention from cuDNN, without a second derivative; ValueError with `segments`, which cuDNN does not know.
    A gradient that is not `reversible` has derivatives forward alone: on a CPU what remat keeps of 16-bit activations is half."""
    if fused and segments is not None:
        raise ValueError("fused attention can't tell the documents of a row apart: pack no rows, or leave `fused` out")
    layer = DecoderLayer(config, adapter, attention_chunk, reopen=remat == "none", fused=fused)
    base = with_saved(base, direction)
    one, variables, frozen, shared, x = _stacked(layer, base, direction, magnitude, tokens, key, dtype, segments)
    if remat in ("layer", "dots"):
        by_bits = _by_bits(reversible, dtype or base["norm"]["weight"].dtype)
        x = scan_layers(one, variables, frozen, shared, x, sums=remat == "dots", record=record, by_bits=by_bits)
    else:
        body = _rematerialised(lambda x, slices: (one(slices[0], slices[1], shared, x)[0], None), remat, base)
        x, _ = jax.lax.scan(body, x, (variables, frozen))
    weight = base["norm"]["weight"]
    return norms.rms_norm(x.astype(dtype or weight.dtype), weight, eps=config.rms_norm_eps)


def blank_record(
    config: DecoderConfig,
    adapter: Adapter | None,
    base: PyTree,
    direction: PyTree,
    magnitude: PyTree,
    tokens: Int[Array, "B T"],
    *,
    remat: Remat,
    fused: bool = False,
    attention_chunk: int = 1024,
    reversible: bool = True,
) -> Blank:
    """What a pass over these tokens can be asked to fill in: with remat `dots` of layers and head, else of the head."""
    base = with_saved(base, direction)
    predicting = tokens.shape[0] * (tokens.shape[1] - 1)
    means = jnp.zeros((predicting, config.hidden_size), wide(base["norm"]["weight"].dtype))
    if remat != "dots":
        return Blank(None, None, None, means)
    layer = DecoderLayer(config, adapter, attention_chunk, fused=fused)
    one, variables, frozen, shared, x = _stacked(layer, base, direction, magnitude, tokens)
    return blank(one, variables, frozen, shared, x, means, by_bits=_by_bits(reversible, base["norm"]["weight"].dtype))


def _stacked(layer: DecoderLayer, base, direction, magnitude, tokens, key=None, dtype=None, segments=None):
    """One layer as a function, the stacks of what is trained and what is frozen, what all layers share, and the first one's x."""
    x = _embedded(base, tokens).astype(dtype or base["norm"]["weight"].dtype)
    starts, positions = (None, jnp.arange(tokens.shape[1])) if segments is None else _documents(segments)
    cos, sin = _angles(layer.config, positions, x.dtype)

    def one(variables, frozen, shared, carried, written=()):
        packed, index = frozen
        layers, cos, sin, starts, key = shared
        rngs = {} if key is None else {"dropout": jax.random.fold_in(key, index)}
        variables = _unpacked({**variables, **packed}, {"layers": layers}, index)
        taken = carried.astype(cos.dtype)
        (out, _), written = layer.apply(variables, taken, cos, sin, starts=starts, rngs=rngs, mutable=written)
        return out.astype(carried.dtype), written

    frozen = _packed({"base": base["layers"]}), jnp.arange(layer.config.num_layers)
    trained = {"direction": direction, "magnitude": magnitude}
    variables = {name: tree["layers"] for name, tree in trained.items() if tree}
    shared = base["layers"], cos, sin, starts, key
    return one, variables, frozen, shared, x.astype(saved_dtype(x.dtype))


def logits(
    config: DecoderConfig,
    adapter: Adapter | None,
    base: PyTree,
    direction: PyTree,
    magnitude: PyTree,
    tokens: Int[Array, "B T"],
    *,
    attention_chunk: int = 1024,
    dtype=None,
) -> Float[Array, "B T V"]:
    """All logits in float32; for probes and short texts, the loss never calls it."""
    x = hidden(config, adapter, base, direction, magnitude, tokens, attention_chunk=attention_chunk, dtype=dtype)
    return frozen_dot(x, head(with_saved(base, direction)).astype(x.dtype))


def head(base: PyTree) -> Float[Array, "V D"]:
    """The output embedding, dense: lm_head, or the input embedding where the two are tied."""
    weight = base["lm_head" if "lm_head" in base else "embed_tokens"]["weight"]
    return quantized.dense(weight).astype(weight.dtype)


def _documents(segments: Int[Array, "B T"]) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """The column that each token's document begins in, and its position in the document."""
    columns = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    starts = jax.lax.cummax(jnp.where(first, columns, 0), axis=1)
    return starts, columns - starts


def _angles(config: DecoderConfig, positions, dtype):
    theta, gain = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    return rope.rope_angles(positions, theta, gain=gain, dtype=dtype)


def _embedded(base: PyTree, tokens: Array) -> Array:
    weight = base["embed_tokens"]["weight"]
    if quantized.is_quantised(weight):
        return quantized.rows(weight, tokens)
    return floats(bits(weight)[tokens], weight)
