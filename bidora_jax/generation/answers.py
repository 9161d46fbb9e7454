"""Answers to prompts of token ids, whole or as they grow. The programs are those of generation/decoding.py.

Prompts are padded to one of a few widths, and the room for an answer is one of a few numbers of tokens (`bucket`), so that few
programs serve all prompts. A batch that is filled up to the rows of the last one compiles nothing.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bidora_jax.errors import InputError, listing
from bidora_jax.generation.decoding import Model, Prompts, assemble, decode, prefill, with_adapter
from bidora_jax.generation.settings import Sampled
from bidora_jax.kernels import xla_cpu
from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.sampling import Sampling
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.base import dtype_of

__all__ = ["GREEDY", "Model", "Piece", "assemble", "bucket", "check_room", "complete", "each", "stream", "with_adapter"]
GREEDY = Sampling()


class Piece(NamedTuple):
    """New tokens of one row, without the end-of-text token."""

    tokens: list[int]
    ended: bool
    """Whether the row has come to an end-of-text token, here or before."""


def complete(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    ends: Sequence[int],
    sampling: Sampling = GREEDY,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    rows: int = 0,
) -> list[Piece]:
    """The whole answer to each prompt, of at least one token and at most `max_new_tokens`.

    An answer stops before any of `ends`, the end-of-text tokens. A row's draws depend on `seed` and on its number in `numbers`
    (0, 1, … by default). The batch is filled up to `rows`, so that a smaller last batch compiles nothing anew. Raises
    InputError for an empty prompt, and where prompt and answer do not fit the model's context.
    """
    check_room(model.config, prompts, max_new_tokens)
    request = _request(prompts, ends, sampling, seed, numbers, max(rows, _fewest_rows(model)))
    *_, last = _grown(model, request, len(prompts), ends, max_new_tokens, chunk=max_new_tokens, first_alone=False)
    return last


def each(
    model: Model, prompts: Sequence[Sequence[int]], how: Sampled, *, ends: Sequence[int], batch_size: int
) -> Iterator[Piece]:
    """The whole answer to each prompt, `batch_size` at a time; the number of a prompt is its place. The rest as in `complete`."""
    size = min(batch_size, len(prompts))
    rows = min(batch_size, 1 << (size - 1).bit_length())  # few numbers of rows, few programs
    for first in range(0, len(prompts), size):
        numbers = range(first, min(first + size, len(prompts)))
        yield from complete(
            model, prompts[first : numbers.stop], max_new_tokens=how.max_new_tokens, ends=ends, sampling=how.sampling,
            seed=how.seed, numbers=numbers, rows=rows,
        )  # fmt: skip


def stream(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    ends: Sequence[int],
    sampling: Sampling = GREEDY,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    chunk: int = 8,
) -> Iterator[list[Piece]]:
    """Answers as they grow: the first token of each, then at most `chunk` more at a time. The rest as in `complete`."""
    check_room(model.config, prompts, max_new_tokens)
    request = _request(prompts, ends, sampling, seed, numbers, _fewest_rows(model))
    return _grown(model, request, len(prompts), ends, max_new_tokens, chunk=chunk, first_alone=True)


def _request(
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    sampling: Sampling,
    seed: int,
    numbers: Sequence[int] | None,
    rows: int,
) -> Prompts:
    """The prompts as the device takes them; rows that no prompt is left for are filled with one token."""
    padded = _padded(prompts, max(rows, len(prompts)))
    numbers = range(len(prompts)) if numbers is None else numbers
    filled = jnp.asarray([*numbers, *[0] * (len(padded.lengths) - len(prompts))], jnp.int32)
    return padded._replace(
        numbers=filled, key=jax.random.key(seed), ends=jnp.asarray(ends, jnp.int32), sampling=sampling.as_data()
    )


def _grown(
    model: Model,
    request: Prompts,
    given: int,
    ends: Sequence[int],
    max_new_tokens: int,
    *,
    chunk: int,
    first_alone: bool,
) -> Iterator[list[Piece]]:
    """The new tokens of the `given` rows that are prompts, `chunk` at a time; with `first_alone` the first one by itself."""
    idle = jnp.arange(len(request.lengths)) >= given
    state = prefill(model, request, idle, room=bucket(max_new_tokens))
    shown, over = 0, [False] * given
    while shown < max_new_tokens and not all(over):
        if shown or not first_alone:
            state = decode(model, request, state, shown + chunk)
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


def bucket(length: int, least: int = 64) -> int:
    """The smallest of 64, 128, 256, 384, 512, 768, … that holds `length`: two for every doubling where padding costs time, and one
    where compiling costs more. On two cores that others shared (2026-11-29) both programs of the quickstart's model took 38 s to
    compile and 8 s to read back; its pass over 64 padded tokens takes 12 ms, over 128 it takes 22 ms."""
    power = least
    while power < length:
        power *= 2
    between = power * 3 // 4
    return between if between >= max(length, 4 * least) else power


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
