"""samples.jsonl of a run: what the model answers to the same prompts as training goes on.

    {"phase": "search", "step": 20, "samples": [{"prompt": …, "answer": …, "expected": … or null}, …]}

The adapter is applied, not merged. A draw depends on the seed, the number of the prompt and the position, so the answers of
two steps differ by the adapter alone. On a CPU with a dense base, generation holds a transposed copy of the weights.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import PyTree

from bidora_jax.data import records, tokenizer
from bidora_jax.data.prompts import prompt_ids, prompt_text, question_text, response_text
from bidora_jax.errors import InputError
from bidora_jax.generation import answers, decoding, ensembles
from bidora_jax.generation.ensembles import Member
from bidora_jax.kernels.sampling import Sampling
from bidora_jax.models.adapters.adapter import Adapter
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.training.metrics_log import MetricsLog
from bidora_jax.training.settings import SamplesConfig

FILE = "samples.jsonl"


class Prompt(NamedTuple):
    """A prompt that is answered again and again while training goes on."""

    text: str
    tokens: list[int]
    expected: str | None
    """The record's own answer; None for a prompt of the settings."""


def prompts(
    settings: SamplesConfig, splits: Sequence[Sequence[records.Record]], tokenizer: tokenizer.Tokenizer, context: int
) -> list[Prompt]:
    """The prompts of the settings, or of the first records that have one, in the first of `splits` that has any.

    A text of the settings is an instruction where the training records (the last split) have prompts; where they are plain
    text, it is the beginning of one. Raises InputError for a prompt that leaves no room for an answer in `context`, and where
    there is no prompt.
    """
    if not settings.every:
        return []
    if settings.prompts:
        key = "instruction" if any(prompt_text(record, tokenizer) for record in splits[-1]) else "prompt"
        chosen = [(text, records.Record({key: text}), None) for text in settings.prompts]
    else:
        asking = ([*islice((r for r in split if prompt_text(r, tokenizer)), settings.count)] for split in splits)
        taken = next(filter(None, asking), [])
        chosen = [(_question(record), record, response_text(record)) for record in taken]
    if not chosen:
        raise InputError("samples.every is set, and no record has a prompt to answer: give some with samples.prompts")
    found = [Prompt(text, prompt_ids(record, tokenizer), expected) for text, record, expected in chosen]
    longest = max(len(prompt.tokens) for prompt in found)
    if longest + settings.max_new_tokens > context:
        raise InputError(
            f"samples: a prompt of {longest} tokens and an answer of {settings.max_new_tokens} do not fit the model's "
            f"context of {context}; lower samples.max_new_tokens or give other prompts in samples.prompts"
        )
    return found


def _question(record: records.Record) -> str:
    return "\n\n".join(filter(None, [question_text(record), record.get("input")]))


class Samples:
    """A watcher of the loop; `answer` maps (direction, magnitude) to an answer for each prompt."""

    def __init__(
        self, folder: Path, every: int, asked: Sequence[Prompt], answer: Callable[[PyTree, PyTree], list[str]]
    ) -> None:
        self.name, self.every = "samples", every
        self._asked, self._answer, self._log = asked, answer, MetricsLog(folder / FILE)

    def look(self, phase: str, step: int, direction: PyTree, magnitude: PyTree) -> str:
        answers = self._answer(direction, magnitude)
        pairs = zip(self._asked, answers, strict=True)
        lines = [{"prompt": asked.text, "answer": text, "expected": asked.expected} for asked, text in pairs]
        self._log.append({"phase": phase, "step": step, "samples": lines})
        self._log.close()
        return f"{phase} {step}  sample: {_one_line(self._asked[0].text, 40)} → {_one_line(answers[0])}"

    def truncate(self, phase: str, step: int) -> None:
        self._log.truncate(phase, step)


def answerer(
    settings: SamplesConfig,
    config: DecoderConfig,
    adapter: Adapter,
    base: PyTree,
    tokenizer: Any,
    asked: Sequence[Prompt],
    seed: int,
) -> Callable[[PyTree, PyTree], list[str]]:
    """Maps (direction, magnitude) to the answers. Compiled once, as every adapter of the run has the same shapes."""
    sampling = Sampling(temperature=settings.temperature)
    prepared: list[decoding.Model] = []

    def answer(direction: PyTree, magnitude: PyTree) -> list[str]:
        members = {"": Member(adapter, direction, magnitude)}
        placed, chosen = ensembles.for_serving(base, members, None, False, ())
        if adapter.whole_modules or not prepared:  # modules trained whole take the place of the base's
            prepared[:] = [decoding.assemble(config, placed)]
        model = decoding.with_adapter(prepared[0], *chosen[""])
        pieces = answers.complete(
            model, [prompt.tokens for prompt in asked], max_new_tokens=settings.max_new_tokens,
            ends=[tokenizer.eos_token_id], sampling=sampling, seed=seed,
        )  # fmt: skip
        return tokenizer.batch_decode([piece.tokens for piece in pieces], skip_special_tokens=True)

    return answer


def _one_line(text: str, limit: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
