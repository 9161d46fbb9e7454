"""What a device does to generate: one parallel pass over the prompts, then one step a token in a loop.

    prefill   prompts (B, P) -> keys and values of every layer, and the first token of each answer
    decode    while a row goes on and tokens are asked for:  token -> layer by layer over the cache -> the next token

Prompts are padded on the right. All rows write the same column of the cache (kernels/cached_attention.py). The number of tokens
and the way they are drawn (kernels/sampling.py) are data; a row's draws depend on the key, its number and the position alone.
After its end-of-text token a row repeats that token.

The layers run in one of two ways. Stacked weights are scanned, as in training: quantised bases, and everything on a GPU.
On a CPU a scan would copy each dense layer's weights in every step; `prepare` transposes the stacks once and gives a plain loop
one layer after the other, each a view of the transposed stack's memory.

Several adapters of one shape (generation/ensembles.py) pass the layers of a step together, N members of B rows, so that the
base's weights are read once; the next token is drawn from the mean of their outputs.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from bidora_jax.errors import InputError, unusable
from bidora_jax.generation.ensembles import Combine, combined
from bidora_jax.kernels import cached_attention, norms, quantized, sampling, xla_cpu
from bidora_jax.kernels.matmul import frozen_dot
from bidora_jax.kernels.sampling import Sampling
from bidora_jax.kernels.xla_cpu import weights
from bidora_jax.kernels.xla_cpu.bfloat16 import bits
from bidora_jax.models import decoder, layer_scan
from bidora_jax.models.adapters import merging
from bidora_jax.models.adapters.adapter import Adapter
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.base import dtype_of, head_of
from bidora_jax.models.decoder import DecoderLayer


class Weights(NamedTuple):
    """A base as generation reads it."""

    base: PyTree
    layers: tuple[PyTree, ...] | None
    """The layers one by one; None: they are scanned."""
    head: quantized.Weight
    """The output embedding (V, D)."""


class Prompts(NamedTuple):
    """The inputs of a step that stay the same from token to token."""

    tokens: Int[Array, "B P"]
    lengths: Int[Array, " B"]
    numbers: Int[Array, " B"]
    """Numbers that distinguish the draws of the rows."""
    key: Array
    ends: Int[Array, " E"]
    """End-of-text tokens."""
    sampling: Sampling


class State(NamedTuple):
    """The arrays that a step changes."""

    cache: tuple[tuple[Array, Array], ...]
    """Keys and values, (L, N·B, K, S, h) each: one pair for all layers, or a pair with L = 1 for every layer."""
    answers: Int[Array, "B N"]
    made: Int[Array, ""]
    """Tokens so far."""
    last: Int[Array, " B"]
    ended: Bool[Array, " B"]
    seen: Bool[Array, "B V"]
    """Tokens of the prompt and the answer."""


class Model(NamedTuple):
    """A model that generates. The first three fields say what is compiled, the others are its arrays."""

    config: DecoderConfig
    adapter: Adapter | None
    combine: Combine | None
    """None: one adapter, or none; otherwise the output of the members that is averaged."""
    weights: Weights
    trained: PyTree
    """{'direction', 'magnitude'} of the adapter, stacked over layers; with `combine`, over layers and then over members."""


def assemble(
    config: DecoderConfig,
    base: PyTree,
    adapter: Adapter | None = None,
    direction: PyTree = None,
    magnitude: PyTree = None,
    *,
    combine: Combine | None = None,
) -> Model:
    """A model from its parts. Either the base is prepared for the adapter, or the adapter has the form for inference
    (generation/ensembles.py). Modules that the adapter trained whole are moved into the base.
    """
    if adapter is not None:
        base, adapter, direction = merging.move_whole_modules(adapter, base, direction)
    return with_adapter(Model(config, None, None, prepare(base), {}), adapter, direction, magnitude, combine=combine)


def with_adapter(
    model: Model, adapter: Adapter | None, direction: PyTree, magnitude: PyTree, *, combine: Combine | None = None
) -> Model:
    """The model with another adapter, or with a stack of several and the way to `combine` them.

    Nothing is compiled anew where that adapter has the last one's shape. InputError for an adapter that trained modules
    whole, since those belong to the base.
    """
    if adapter is not None and adapter.whole_modules:
        raise InputError(
            f"the adapter trained {' and '.join(adapter.whole_modules)} whole (modules_to_save), which cannot be switched in a "
            "model; assemble a model with it"
        )
    named = {"direction": direction, "magnitude": magnitude}
    trained = {name: tree["layers"] for name, tree in named.items() if tree}
    trained = trained if combine is None else _swapped(trained)
    return model._replace(adapter=adapter, combine=combine, trained=trained)


def prepare(base: PyTree) -> Weights:
    """The base in the form that this backend generates from.

    On a CPU the dense weights are copied, a stack at a time: a caller that needs the base no more should drop it.
    """
    head = head_of(base).astype(dtype_of(base))  # one that was trained is float32
    leaves = jax.tree.leaves(base["layers"], is_leaf=quantized.is_packed)
    if not xla_cpu.active() or any(map(quantized.is_quantised, leaves)):
        return Weights(base, None, head)
    turned = jax.tree_util.tree_map_with_path(_turned, base["layers"], is_leaf=quantized.is_packed)
    return Weights({**base, "layers": turned}, _layers(turned), weights.Transposed(_transposed(head)))


def _turned(path: Any, leaf: Any) -> Any:
    """A stack of weights (L, O, I) as (L, I, O). Vectors stay as they are, and so do an adapter's factors beside a weight."""
    if isinstance(leaf, weights.Bits):
        return weights.Transposed(weights.Bits(_transposed(leaf.bits), leaf.dtype))
    if leaf.ndim != 3 or path[-1].key != "weight":
        return leaf
    if leaf.dtype.itemsize == 2:
        return weights.Transposed(weights.Bits(_transposed(bits(leaf)), leaf.dtype))
    return weights.Transposed(_transposed(leaf))


@jax.jit
def _transposed(matrices: Array) -> Array:
    return jnp.swapaxes(matrices, -1, -2)


def _layers(stacks: PyTree) -> tuple[PyTree, ...]:
    """The layers one by one, as arrays that share the stacks' memory."""
    hosts = jax.tree.map(_host, stacks, is_leaf=quantized.is_packed)
    count = jax.tree.leaves(hosts)[0].shape[0]
    return tuple(jax.tree.map(lambda host, layer=layer: jax.device_put(host[layer]), hosts) for layer in range(count))


def _host(leaf: Any) -> np.ndarray:
    return np.asarray(leaf.bits).view(leaf.dtype) if isinstance(leaf, weights.Bits) else np.asarray(leaf)


def prefill(model: Model, prompts: Prompts, ended: Bool[Array, " B"], *, room: int) -> State:
    """The state after the first token, with room for `room` tokens in all. Rows marked in `ended` only fill the batch.

    InputError where the logits are no numbers: an answer would be made of the first token of the vocabulary.
    """
    state, finite = _prefill(
        model.config, model.adapter, model.combine, model.weights, model.trained, prompts, ended, room
    )
    if not finite:
        raise unusable("the model's output is NaN or infinite")
    return state


def decode(model: Model, prompts: Prompts, state: State, until: int) -> State:
    """The state when `until` tokens are made, or every row has ended. The old state is donated."""
    until = min(until, state.answers.shape[1])
    return _decode(
        model.config, model.adapter, model.combine, model.weights, model.trained, prompts, state, jnp.int32(until)
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 7))
def _prefill(config, adapter, combine, weights: Weights, trained, prompts: Prompts, ended, room: int):
    """(State, whether the logits are finite)"""
    batch, width = prompts.tokens.shape
    x, cache = _read(config, adapter, combine, weights, trained, prompts, room)
    real = jnp.arange(width)[None, :] < prompts.lengths[:, None]
    seen = jnp.zeros((batch, config.vocab_size), bool).at[jnp.arange(batch)[:, None], prompts.tokens].max(real)
    answers = jnp.zeros((batch, room), jnp.int32)
    last = jnp.take_along_axis(prompts.tokens, prompts.lengths[:, None] - 1, axis=1)[:, 0]
    state = State(cache, answers, jnp.int32(0), last, ended, seen)
    logits = _logits(config, combine, weights, x)
    return _extend(state, logits, prompts), jnp.isfinite(logits).all()


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=6)
def _decode(config, adapter, combine, weights: Weights, trained, prompts: Prompts, state: State, until) -> State:
    def goes_on(state):
        return (state.made < until) & ~jnp.all(state.ended)

    def step(state):
        x, cache = _step(config, adapter, weights, trained, prompts, state)
        return _extend(state._replace(cache=cache), _logits(config, combine, weights, x), prompts)

    return jax.lax.while_loop(goes_on, step, state)


def _swapped(trained: PyTree) -> PyTree:
    """The trees with their first two axes, members and layers, exchanged."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), trained)


def _read(config, adapter, combine: Combine | None, weights: Weights, trained, prompts: Prompts, room: int):
    """The hidden state (N, B, D) of the last token of each prompt, and a cache of the keys and values of all of them."""
    one = partial(_read_one, config, adapter, weights, prompts, room)
    if combine is None:
        x, kept = jax.tree.map(lambda part: part[None], one(trained))
    else:  # a member at a time: a prompt has tokens enough to pay for reading the weights once for each
        x, kept = jax.lax.map(one, _swapped(trained))
    keys, values = (jnp.swapaxes(part, 0, 1).reshape(part.shape[1], -1, *part.shape[3:]) for part in kept)
    if weights.layers is None:
        return x, ((keys, values),)
    each = [slice(layer, layer + 1) for layer in range(len(weights.layers))]
    return x, tuple((keys[part], values[part]) for part in each)


def _read_one(config, adapter, weights: Weights, prompts: Prompts, room: int, trained):
    """(B, D), and keys and values (L, B, K, S, h), of one member."""
    x = _embedded(weights, prompts.tokens)
    cos, sin = decoder.angles(config, jnp.arange(x.shape[1]), x.dtype)
    layer = DecoderLayer(config, adapter)

    def keep(causal, q, k, v):
        room_behind = ((0, 0), (0, 0), (0, room), (0, 0))
        return causal(q, k, v), tuple(jnp.pad(jnp.swapaxes(part, 1, 2), room_behind) for part in (k, v))

    def body(x, slices):
        variables, index = slices
        return layer.apply(layer_scan.unpacked(variables, weights.base["layers"], index), x, cos, sin, keep)

    packed = layer_scan.packed({"base": weights.base["layers"], **trained})
    x, kept = jax.lax.scan(body, x, (packed, jnp.arange(config.num_layers)))
    return jnp.take_along_axis(x, prompts.lengths[:, None, None] - 1, axis=1)[:, 0], kept


def _step(config, adapter, weights: Weights, trained, prompts: Prompts, state: State):
    """The hidden state (N, B, D) of the newest token of each row, and the cache with its keys and values in it."""
    width, (rows, columns) = prompts.tokens.shape[1], (state.cache[0][0].shape[1], state.cache[0][0].shape[3])
    column, position = width + state.made - 1, prompts.lengths + state.made - 1
    held, holds = cached_attention.column_positions(prompts.lengths, width, columns)
    members = rows // position.shape[0]
    visible = holds & (held <= position[:, None])
    if config.window is not None:
        visible &= position[:, None] - held < config.window
    visible = jnp.tile(visible, (members, 1))
    # Members take the axis of rows, and rows the axis of tokens: outside attention a layer treats these axes alike.
    x = jnp.tile(_embedded(weights, state.last), (members, 1, 1))
    cos, sin = decoder.angles(config, position, x.dtype)
    layer = DecoderLayer(config, adapter)

    def attend(cache, number, _, q, k, v):
        q, k, v = (part.reshape(rows, *part.shape[2:]) for part in (q, k, v))
        cache = tuple(cached_attention.write(old, new, number, column) for old, new in zip(cache, (k, v), strict=True))
        keys, values = (jax.lax.dynamic_index_in_dim(part, number, keepdims=False) for part in cache)
        return cached_attention.attend(q, keys, values, visible).reshape(members, -1, *q.shape[1:]), cache

    if weights.layers is not None:
        kept = []
        for number, (base, pair) in enumerate(zip(weights.layers, state.cache, strict=True)):
            variables = {"base": base} | jax.tree.map(lambda leaf, number=number: leaf[number], trained)
            x, pair = layer.apply(variables, x, cos, sin, partial(attend, pair, 0))
            kept.append(pair)
        return x, tuple(kept)

    def body(carry, slices):
        (x, cache), (variables, index) = carry, slices
        variables = layer_scan.unpacked(variables, weights.base["layers"], index)
        return layer.apply(variables, x, cos, sin, partial(attend, cache, index)), None

    packed = layer_scan.packed({"base": weights.base["layers"], **trained})
    (x, pair), _ = jax.lax.scan(body, (x, state.cache[0]), (packed, jnp.arange(config.num_layers)))
    return x, (pair,)


def _embedded(weights: Weights, tokens: Array) -> Array:
    """The tokens' embeddings in the base's dtype; those that were trained are float32."""
    return decoder.embedded(weights.base, tokens).astype(dtype_of(weights.base))


def _logits(config, combine: Combine | None, weights: Weights, x: Float[Array, "N B D"]) -> Float[Array, "B V"]:
    x = norms.rms_norm(x, weights.base["norm"]["weight"], eps=config.rms_norm_eps)
    logits = frozen_dot(x, quantized.opened(weights.head)[0].astype(x.dtype)).astype(jnp.float32)
    return logits[0] if combine is None else combined(logits, combine)


def _extend(state: State, logits: Float[Array, "B V"], prompts: Prompts) -> State:
    """One more token in every row."""

    def key(number, position):
        return jax.random.fold_in(jax.random.fold_in(prompts.key, number), position)

    keys = jax.vmap(key)(prompts.numbers, prompts.lengths + state.made)
    token = jnp.where(state.ended, state.last, sampling.choose(logits, state.seen, prompts.sampling, keys))
    return State(
        state.cache,
        jax.lax.dynamic_update_index_in_dim(state.answers, token, state.made, axis=1),
        state.made + 1,
        token,
        state.ended | jnp.isin(token, prompts.ends),
        state.seen.at[jnp.arange(token.shape[0]), token].set(True),
    )
