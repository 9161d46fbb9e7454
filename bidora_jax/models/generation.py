"""Answers to prompts: one parallel pass over the prompts, then one step a token, looped on the device.

    prefill   prompts (B, P) -> keys and values of every layer, and the first token of each answer
    decode    while a row goes on and tokens are asked for:  token -> layer by layer over the cache -> the next token

Prompts are padded on the right to one of a few widths P and answers have room for one of a few numbers of tokens, so that
compilations are bounded. How many tokens are made and how they are drawn (kernels/sampling.py) is data. All rows write the
same column of the cache (kernels/cached.py). A row's draws hang on the key, its number and the position alone. After its
end-of-text token a row repeats that token.

The layers run in one of two ways. Stacked weights are scanned, as in training: quantised bases, and everything on a GPU.
On a CPU a scan would copy each dense layer's weights in every step, so `prepare` turns them once and hands them out layer
by layer, in the memory of the turned stack, for a plain loop.

Several adapters of one shape (models/ensembles.py) go through the layers together, and the next token is that of their mean.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from bidora_jax.errors import InputError, listing
from bidora_jax.kernels import attention, cached, quant, sampling
from bidora_jax.kernels.dora import frozen_dot, wide
from bidora_jax.kernels.sampling import Sampling
from bidora_jax.models import decoder
from bidora_jax.models.adapters import Adapter
from bidora_jax.models.decoder import DecoderConfig, DecoderLayer

GREEDY = Sampling()
Combine = Literal["logits", "probabilities"]


class Weights(NamedTuple):
    """A base as generation reads it."""

    base: PyTree
    layers: tuple[PyTree, ...] | None
    """The layers one by one; None: they are scanned."""
    head: quant.Weight
    """The output embedding (V, D)."""


class Prompts(NamedTuple):
    """What stays the same from token to token."""

    tokens: Int[Array, "B P"]
    lengths: Int[Array, " B"]
    numbers: Int[Array, " B"]
    """What tells the draws of the rows apart."""
    key: Array
    ends: Int[Array, " E"]
    """End-of-text tokens."""
    sampling: Sampling


class State(NamedTuple):
    """What a step changes."""

    cache: tuple[tuple[Array, Array], ...]
    """Keys and values, (L, B, K, S, h) each: one pair for all layers, or a pair with L = 1 for every layer."""
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
    """None: one adapter, or none; otherwise what of the members is averaged."""
    weights: Weights
    trained: PyTree
    """{'direction', 'magnitude'} of the adapter, or stacks of several members' on a leading axis."""


def model(
    config: DecoderConfig,
    base: PyTree,
    adapter: Adapter | None = None,
    direction: PyTree = None,
    magnitude: PyTree = None,
    *,
    combine: Combine | None = None,
) -> Model:
    """A model from its parts. The base must be prepared for the adapter, or the adapter be at rest (models/ensembles.py)."""
    return with_adapter(Model(config, None, None, prepare(base), {}), adapter, direction, magnitude, combine=combine)


def with_adapter(
    model: Model, adapter: Adapter | None, direction: PyTree, magnitude: PyTree, *, combine: Combine | None = None
) -> Model:
    """The model with another adapter. Nothing is compiled anew where that adapter has the last one's shape."""
    named = {"direction": direction, "magnitude": magnitude}
    trained = {name: tree["layers"] for name, tree in named.items() if tree}
    return model._replace(adapter=adapter, combine=combine, trained=trained)


def prepare(base: PyTree) -> Weights:
    """The base in the form that this backend generates from.

    On a CPU the dense weights are copied, a stack at a time: whoever does not need the base any more should drop it.
    """
    head = decoder.head(base)
    leaves = jax.tree.leaves(base["layers"], is_leaf=quant.is_packed)
    if jax.default_backend() != "cpu" or any(map(quant.is_quantised, leaves)):
        return Weights(base, None, head)
    turned = jax.tree.map(_turned, base["layers"], is_leaf=quant.is_packed)
    return Weights({**base, "layers": turned}, _layers(turned), quant.Turned(_transposed(head)))


def _turned(leaf: Any) -> Any:
    """A stack of weights (L, O, I) as (L, I, O); what is no matrix stays as it is."""
    if isinstance(leaf, quant.Bits):
        return quant.Turned(quant.Bits(_transposed(leaf.bits), leaf.dtype))
    if leaf.ndim != 3:
        return leaf
    if leaf.dtype.itemsize == 2:
        return quant.Turned(quant.Bits(_transposed(decoder._bits(leaf)), leaf.dtype))
    return quant.Turned(_transposed(leaf))


@jax.jit
def _transposed(matrices: Array) -> Array:
    return jnp.swapaxes(matrices, -1, -2)


def _layers(stacks: PyTree) -> tuple[PyTree, ...]:
    """Every layer of the stacks as arrays of its own that lie in the stacks' memory."""
    hosts = jax.tree.map(_host, stacks, is_leaf=quant.is_packed)
    count = jax.tree.leaves(hosts)[0].shape[0]
    return tuple(jax.tree.map(lambda host, layer=layer: jax.device_put(host[layer]), hosts) for layer in range(count))


def _host(leaf: Any) -> np.ndarray:
    return np.asarray(leaf.bits).view(leaf.dtype) if isinstance(leaf, quant.Bits) else np.asarray(leaf)


class Piece(NamedTuple):
    """New tokens of one row, without the end-of-text token."""

    tokens: list[int]
    ended: bool
    """Whether the row has come to an end-of-text token, here or before."""


def answers(model: Model, prompts: Sequence[Sequence[int]], **how: Any) -> list[Piece]:
    """The whole answer to each prompt; `how` as in `stream`."""
    *_, last = _streamed(model, prompts, chunk=None, **how)
    return last


def stream(model: Model, prompts: Sequence[Sequence[int]], *, chunk: int = 8, **how: Any) -> Iterator[list[Piece]]:
    """Answers as they grow: the first token of each, then at most `chunk` more at a time.

    `how`:  max_new_tokens, at least 1;  ends, the end-of-text tokens;  sampling, greedy by default;  seed;  numbers, what
    tells the rows' draws apart (0, 1, … by default);  rows, to which the batch is filled up so that a smaller last batch
    compiles nothing anew.  InputError for an empty prompt, and where prompt and answer do not fit the model's context.
    """
    return _streamed(model, prompts, chunk=chunk, **how)


def _streamed(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    ends: Sequence[int],
    sampling: Sampling = GREEDY,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    rows: int = 0,
    chunk: int | None,
) -> Iterator[list[Piece]]:
    check_room(model.config, prompts, max_new_tokens)
    given, numbers = len(prompts), range(len(prompts)) if numbers is None else numbers
    padded = _padded(prompts, max(rows, given, _fewest_rows(model)))
    filled = jnp.asarray([*numbers, *[0] * (len(padded.lengths) - given)], jnp.int32)
    request = padded._replace(
        numbers=filled, key=jax.random.key(seed), ends=jnp.asarray(ends, jnp.int32), sampling=sampling.as_data()
    )
    idle = jnp.arange(len(padded.lengths)) >= given
    state = prefill(model, request, idle, room=bucket(max_new_tokens))
    shown, over = 0, [False] * given
    while shown < max_new_tokens and not all(over):
        if shown or chunk is None:
            state = decode(model, request, state, max_new_tokens if chunk is None else shown + chunk)
        made = min(int(state.made), max_new_tokens)
        new = np.array(state.answers)[:given, shown:made]
        pieces = [_piece(row.tolist(), ends, ended) for row, ended in zip(new, over, strict=True)]
        shown, over = made, [piece.ended for piece in pieces]
        yield pieces


def _piece(tokens: list[int], ends: Sequence[int], ended: bool) -> Piece:
    if ended:
        return Piece([], True)
    first = next((place for place, token in enumerate(tokens) if token in ends), None)
    return Piece(tokens[:first], first is not None)


def check_room(config: DecoderConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """InputError for an empty prompt, and where a prompt and its answer do not fit the context; lists all of them."""
    context = config.max_position_embeddings
    wrong = [f"prompt {n} is empty" for n, prompt in enumerate(prompts, 1) if not len(prompt)]
    wrong += [
        f"prompt {n} has {len(prompt)} tokens"
        for n, prompt in enumerate(prompts, 1)
        if len(prompt) + max_new_tokens > context
    ]
    if wrong or not len(prompts):
        raise InputError(
            f"the model has a context of {context} tokens for a prompt, which may not be empty, and {max_new_tokens} new "
            f"tokens; shorten the prompt or ask for fewer:\n{listing(wrong or ['there is no prompt'])}"
        )


def bucket(length: int, least: int = 32) -> int:
    """The smallest of 32, 48, 64, 96, 128, 192, … that holds `length`: two programs for every doubling."""
    power = least
    while power * 2 < length:
        power *= 2
    return next(size for size in (power, power * 3 // 2, power * 2) if size >= length)


def _fewest_rows(model: Model) -> int:
    """XLA's CPU backend multiplies one row of 16-bit numbers as slowly as ten, so one row goes twice."""
    dtype = model.weights.base["norm"]["weight"].dtype
    return 2 if dtype != wide(dtype) and jax.default_backend() == "cpu" else 1


def _padded(prompts: Sequence[Sequence[int]], rows: int) -> Prompts:
    tokens = np.zeros((rows, bucket(max(map(len, prompts)))), np.int32)
    lengths = np.ones(rows, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
    nothing = jnp.zeros(0, jnp.int32)
    return Prompts(jnp.asarray(tokens), jnp.asarray(lengths), nothing, jax.random.key(0), nothing, Sampling())


def prefill(model: Model, prompts: Prompts, ended: Bool[Array, " B"], *, room: int) -> State:
    """The state after the first token, with room for `room` tokens in all. Rows that have `ended` only fill the batch."""
    return _prefill(model.config, model.adapter, model.combine, model.weights, model.trained, prompts, ended, room)


def decode(model: Model, prompts: Prompts, state: State, until: int) -> State:
    """The state when `until` tokens are made, or every row has ended. The old state is given up."""
    until = min(until, state.answers.shape[1])
    return _decode(
        model.config, model.adapter, model.combine, model.weights, model.trained, prompts, state, jnp.int32(until)
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 7))
def _prefill(config, adapter, combine, weights: Weights, trained, prompts: Prompts, ended, room: int) -> State:
    batch, width = prompts.tokens.shape
    x, cache = _members(combine, lambda trained: _read(config, adapter, weights, trained, prompts, room), trained)
    real = jnp.arange(width)[None, :] < prompts.lengths[:, None]
    seen = jnp.zeros((batch, config.vocab_size), bool).at[jnp.arange(batch)[:, None], prompts.tokens].max(real)
    answers = jnp.zeros((batch, room), jnp.int32)
    last = jnp.take_along_axis(prompts.tokens, prompts.lengths[:, None] - 1, axis=1)[:, 0]
    state = State(cache, answers, jnp.int32(0), last, ended, seen)
    return _extend(state, _logits(config, combine, weights, x), prompts)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=6)
def _decode(config, adapter, combine, weights: Weights, trained, prompts: Prompts, state: State, until) -> State:
    def goes_on(state):
        return (state.made < until) & ~jnp.all(state.ended)

    def step(state):
        one = partial(_step, config, adapter, weights, prompts, state)
        x, cache = _members(combine, one, trained, state.cache)
        return _extend(state._replace(cache=cache), _logits(config, combine, weights, x), prompts)

    return jax.lax.while_loop(goes_on, step, state)


def _members(combine: Combine | None, function, *trees):
    """function(*trees), or of every member's slice of the trees."""
    return function(*trees) if combine is None else jax.vmap(function)(*trees)


def _read(config, adapter, weights: Weights, trained, prompts: Prompts, room: int):
    """The hidden state of the last token of each prompt, and a cache of all their keys and values."""
    x = decoder._embedded(weights.base, prompts.tokens)
    cos, sin = decoder._angles(config, jnp.arange(x.shape[1]), x.dtype)
    layer = DecoderLayer(config, adapter)

    def keep(causal, q, k, v):
        return causal(q, k, v), (k, v)

    def body(x, slices):
        variables, index = slices
        return layer.apply(decoder._unpacked(variables, weights.base, index), x, cos, sin, keep)

    packed = decoder._packed({"base": weights.base["layers"], **trained})
    x, kept = jax.lax.scan(body, x, (packed, jnp.arange(config.num_layers)))
    # (L, B, P, K, h) -> (L, B, K, S, h)
    stacks = [jnp.pad(jnp.swapaxes(part, 2, 3), ((0, 0), (0, 0), (0, 0), (0, room), (0, 0))) for part in kept]
    each = (
        [slice(None)] if weights.layers is None else [slice(layer, layer + 1) for layer in range(len(weights.layers))]
    )
    cache = tuple((stacks[0][part], stacks[1][part]) for part in each)
    return jnp.take_along_axis(x, prompts.lengths[:, None, None] - 1, axis=1)[:, 0], cache


def _step(config, adapter, weights: Weights, prompts: Prompts, state: State, trained, cache):
    """The hidden state of the newest token of each row, and the cache with its keys and values in it."""
    width, columns = prompts.tokens.shape[1], cache[0][0].shape[3]
    column, position = width + state.made - 1, prompts.lengths + state.made - 1
    held, holds = cached.column_positions(prompts.lengths, width, columns)
    visible = holds & (held <= position[:, None])
    # The rows stand where a text's tokens do: what a layer does besides attention does not tell the two apart.
    x = decoder._embedded(weights.base, state.last)[None]
    cos, sin = decoder._angles(config, position, x.dtype)
    layer = DecoderLayer(config, adapter)

    def attend(cache, number, _, q, k, v):
        cache = tuple(cached.write(old, new[0], number, column) for old, new in zip(cache, (k, v), strict=True))
        keys, values = (jax.lax.dynamic_index_in_dim(part, number, keepdims=False) for part in cache)
        return cached.attend(q[0], keys, values, visible)[None], cache

    if weights.layers is not None:
        kept = []
        for number, (base, pair) in enumerate(zip(weights.layers, cache, strict=True)):
            variables = {"base": base} | jax.tree.map(lambda leaf, number=number: leaf[number], trained)
            x, pair = layer.apply(variables, x, cos, sin, partial(attend, pair, 0))
            kept.append(pair)
        return x[0], tuple(kept)

    def body(carry, slices):
        (x, cache), (variables, index) = carry, slices
        variables = decoder._unpacked(variables, weights.base, index)
        return layer.apply(variables, x, cos, sin, partial(attend, cache, index)), None

    packed = decoder._packed({"base": weights.base["layers"], **trained})
    (x, pair), _ = jax.lax.scan(body, (x, cache[0]), (packed, jnp.arange(config.num_layers)))
    return x[0], (pair,)


def _logits(config, combine: Combine | None, weights: Weights, x: Array) -> Float[Array, "B V"]:
    x = attention.rms_norm(x, weights.base["norm"]["weight"], eps=config.rms_norm_eps)
    logits = frozen_dot(x, quant.opened(weights.head)[0].astype(x.dtype)).astype(jnp.float32)
    if combine is None:
        return logits
    if combine == "logits":
        return jnp.mean(logits, axis=0)
    return jax.nn.logsumexp(jax.nn.log_softmax(logits, axis=-1), axis=0) - jnp.log(logits.shape[0])


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
