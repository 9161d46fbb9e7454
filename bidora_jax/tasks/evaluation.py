"""A model's mean loss over a file, and its greedy answers to test prompts."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bidora_jax.data import records
from bidora_jax.data.batches import Batch
from bidora_jax.data.prompts import prompt_ids, response_text
from bidora_jax.generation import answers, decoding, ensembles
from bidora_jax.generation.settings import Sampled
from bidora_jax.models.adapters.adapter import Adapter
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.compute import Compute
from bidora_jax.models.settings import ModelConfig
from bidora_jax.models.spread import BATCH, Spread
from bidora_jax.tasks import language_modeling


class Evaluation(NamedTuple):
    """Means over all trained tokens of a file."""

    loss: float
    """−log p, in nats"""
    accuracy: float
    """Share of the tokens to which the model gives the highest probability."""
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))  # e^710 overflows a double

    @property
    def rank(self) -> float:
        return self.loss

    @property
    def facts(self) -> dict[str, float]:
        return {"loss": self.loss, "accuracy": self.accuracy, "tokens": self.tokens}

    @property
    def in_words(self) -> str:
        """For a line of the progress."""
        return f"loss {self.loss:.4f}, {self.accuracy:.1%} of its tokens right"


Evaluator = Callable[[PyTree, PyTree, PyTree, Iterable[Batch]], Evaluation]


@lru_cache(maxsize=8)
def evaluator(
    config: DecoderConfig,
    adapter: Adapter | None,
    model: ModelConfig,
    combine: ensembles.Combine | None = None,
    *,
    spread: Spread | None = None,
    wide: bool = False,
) -> Evaluator:
    """A function (base, direction, magnitude, batches) that gives the means over all tokens; sums on the host are float64.

    With `combine`, direction and magnitude are stacks of an ensemble's members. `spread`: the devices, where they are several.
    `wide` computes in float32 whatever the base is.
    """

    compute = Compute(
        remat="none", attention_chunk=model.attention_chunk, loss_chunk=model.loss_chunk, dtype=jnp.float32 if wide else None
    )  # fmt: skip
    compute = compute if spread is None else spread.share(compute)

    def sums(base, trained, batch):
        if adapter is not None and combine is not None:
            member = ensembles.Member(adapter, *trained)
            return language_modeling.combined_token_scores(config, member, compute, base, batch, combine=combine)
        return language_modeling.token_scores(config, adapter, compute, base, trained, batch)

    run = jax.jit(sums if spread is None else spread.sums(sums))

    def evaluate(base, direction, magnitude, batches):
        total = right = count = 0.0
        for batch in batches:
            micro = {name: part[0] for name, part in batch.items() if name in ("tokens", "loss_mask", "segments")}
            micro = micro if spread is None else spread.batch(micro, BATCH)
            loss, hits, tokens = map(float, run(base, (direction, magnitude), micro))
            total, right, count = total + loss, right + hits, count + tokens
        return Evaluation(total / max(count, 1.0), right / max(count, 1.0), round(count))

    return evaluate


class Answers(NamedTuple):
    """Greedy answers to test records, and the expected texts."""

    texts: list[str]
    expected: list[str]

    @property
    def right(self) -> int:
        """How many answers are the expected text, apart from blanks at the ends."""
        return sum(text.strip() == wanted.strip() for text, wanted in zip(self.texts, self.expected, strict=True))


ANSWERED = 64
"""The most test records that are answered at a time: each needs memory for its own keys and values."""


def rows(records: int) -> int:
    """Test records answered at a time, so that batches are as even as their number allows."""
    return -(-records // -(-records // ANSWERED))


def answer(
    model: decoding.Model, tokenizer: Any, test: Sequence[records.Record], *, max_new_tokens: int, ends: Sequence[int]
) -> Answers:
    """Greedy answers, cut at the first of `ends` or at the model's context."""
    prompts = [prompt_ids(record, tokenizer) for record in test]
    left = model.config.max_positions - max(map(len, prompts))
    how = Sampled(max_new_tokens=min(max_new_tokens, max(left, 1)))
    written = answers.each(model, prompts, how, ends=ends, batch_size=rows(len(prompts)))
    texts = tokenizer.batch_decode([piece.tokens for piece in written], skip_special_tokens=True)
    return Answers(texts, [response_text(record) for record in test])
