"""Answers to prompts of token ids, whole or as they grow.

Prompts are padded to one of a few widths and answers have room for one of a few numbers of tokens, two of each for every
doubling, so that compilations are bounded; a filled-up batch compiles nothing anew either. What runs is generation/decoding.py.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bidora_jax.errors import InputError, listing
from bidora_jax.generation.decoding import Model, Prompts, assemble, decode, prefill, with_adapter
from bidora_jax.kernels import xla_cpu
from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.sampling import Sampling
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.base import dtype_of

__all__ = ["GREEDY", "Model", "Piece", "assemble", "bucket", "check_room", "complete", "stream", "with_adapter"]
GREEDY = Sampling()


class Piece(NamedTuple):
    """New tokens of one row, without the end-of-text token."""

    tokens: list[int]
    ended: bool
    """Whether the row has come to an end-of-text token, here or before."""


def complete(model: Model, prompts: Sequence[Sequence[int]], **how: Any) -> list[Piece]:
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
    dtype = dtype_of(model.weights.base)
    return 2 if dtype != wide(dtype) and xla_cpu.active() else 1


def _padded(prompts: Sequence[Sequence[int]], rows: int) -> Prompts:
    tokens = np.zeros((rows, bucket(max(map(len, prompts)))), np.int32)
    lengths = np.ones(rows, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
    nothing = jnp.zeros(0, jnp.int32)
    return Prompts(jnp.asarray(tokens), jnp.asarray(lengths), nothing, jax.random.key(0), nothing, Sampling())
