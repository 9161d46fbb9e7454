"""The run's own records, by which what is written of a run is compared with what was trained.

loss      of the base, of the adapter and of what was written, on validation and test, in float32: weights differ, arithmetic
          does not
answers   greedy, to the first ASKED records that ask something: how many are those of the adapter
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from bidora_jax.config import Config
from bidora_jax.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from bidora_jax.data.batches import Batch, Examples
    from bidora_jax.data.records import Record
    from bidora_jax.data.tokenizer import Tokenizer
    from bidora_jax.models.adapters.adapter import Adapter
    from bidora_jax.models.adapters.lora_approximation import Judge
    from bidora_jax.models.architectures.architecture import Architecture
    from bidora_jax.models.formats.export import Trained

ASKED, NEW_TOKENS = 12, 40
LENGTHS = 4
"""Padded lengths, at most."""


class Measured(NamedTuple):
    """What was written, beside what was trained."""

    losses: dict[str, tuple[float, float, float]]
    """By split: of the base, of the adapter, and of what was written."""
    equal: int | None
    """Answers that are the adapter's; None where no record asks anything."""
    asked: int

    @property
    def lines(self) -> list[str]:
        found = [
            f"{split}: loss {base:.4f} of the base, {adapter:.4f} of the adapter, {written:.4f} of what was written"
            f"{_share(base, adapter, written)}"
            for split, (base, adapter, written) in self.losses.items()
        ]
        if self.equal is None:
            return found
        return [*found, f"greedy answers equal to the adapter's: {self.equal} of {self.asked}"]


def _share(base: float, adapter: float, written: float) -> str:
    return f" ({(base - written) / (base - adapter):.1%} of the gain)" if base > adapter else ""


class Yardstick(NamedTuple):
    """The records of a language model's run."""

    config: Config
    architecture: "Architecture"
    tokenizer: "Tokenizer"
    splits: "dict[str, list[Batch]]"
    """validation and test, as far as they are there."""
    asked: "list[Record]"
    ends: tuple[int, ...]

    def losses(
        self, adapter: "Adapter | None", base: "PyTree", direction: "PyTree", magnitude: "PyTree"
    ) -> dict[str, float]:
        """By split. The base is prepared for the adapter."""
        from bidora_jax.models.architectures.decoder import DecoderConfig
        from bidora_jax.tasks import evaluation

        assert isinstance(self.architecture, DecoderConfig)
        still = None if adapter is None else replace(adapter, dropout=0.0)
        evaluate = evaluation.evaluator(self.architecture, still, self.config.model, wide=True)
        return {split: evaluate(base, direction, magnitude, batches).loss for split, batches in self.splits.items()}

    def answers(
        self, adapter: "Adapter | None", base: "PyTree", direction: "PyTree", magnitude: "PyTree"
    ) -> list[list[int]]:
        """Tokens of the greedy answers."""
        from bidora_jax.data.prompts import prompt_ids
        from bidora_jax.generation import answers, decoding, ensembles
        from bidora_jax.generation.settings import Sampled
        from bidora_jax.models.architectures.decoder import DecoderConfig

        assert isinstance(self.architecture, DecoderConfig)
        if not self.asked:
            return []
        members = {} if adapter is None else {"": ensembles.Member(adapter, direction, magnitude)}
        base, members = ensembles.for_serving(base, members, None, False, ())
        model = decoding.assemble(self.architecture, base, *next(iter(members.values()), ()))
        prompts = [prompt_ids(record, self.tokenizer) for record in self.asked]
        how = Sampled(max_new_tokens=NEW_TOKENS)
        return [piece.tokens for piece in answers.each(model, prompts, how, ends=self.ends, batch_size=ASKED)]

    def measured(
        self, trained: "Trained", adapter: "Adapter | None", base: "PyTree", direction: "PyTree", magnitude: "PyTree"
    ) -> Measured:
        """The model that was written, an adapter over a base or a base alone, beside the one that was trained."""
        from bidora_jax.models.adapters.initial import prepare_base

        parts = (trained.adapter, trained.base, trained.direction, trained.magnitude)
        written = (adapter, base if adapter is None else prepare_base(base, adapter), direction, magnitude)
        each = [self.losses(*one) for one in ((None, trained.base, {}, {}), parts, written)]
        losses = {split: (each[0][split], each[1][split], each[2][split]) for split in self.splits}
        wanted, found = self.answers(*parts), self.answers(*written)
        equal = sum(one == other for one, other in zip(wanted, found, strict=True))
        return Measured(losses, equal if wanted else None, len(wanted))

    def judge(self, trained: "Trained") -> "Judge | None":
        """The share of the gain of validation that a plain LoRA loses; None without a gain to judge by."""
        from bidora_jax.models.adapters.initial import prepare_base

        if "validation" not in self.splits:
            return None
        before = self.losses(None, trained.base, {}, {})["validation"]
        after = self.losses(trained.adapter, trained.base, trained.direction, trained.magnitude)["validation"]
        if before <= after:
            return None

        def lost(adapter: "Adapter", direction: "PyTree") -> float:
            found = self.losses(adapter, prepare_base(trained.base, adapter), direction, {})["validation"]
            return (found - after) / (before - after)

        return lost


def read(config: Config, architecture: "Architecture") -> Yardstick | None:
    """The records as the run read them; None of a classifier. InputError for those that are gone, or not the same."""
    from bidora_jax.data.tokenizer import pad_id
    from bidora_jax.generation import conversation
    from bidora_jax.models.formats import hf_config
    from bidora_jax.runs import assembly, labelling

    folder = hf_config.resolve_folder(config.model.path, weights=False)
    if labelling.is_asked(config, hf_config.read_config(folder)):
        return None
    # One padded length: the number that a run would choose takes a look at its steps.
    data = assembly.read_data(replace(config, data=replace(config.data, buckets=1)))
    rows = {"validation": data.ready.rows.get("val", []), "test": data.ready.test}
    pad = pad_id(data.tokenizer)
    splits = {split: _padded(part, config.data.batch_size, pad) for split, part in rows.items() if part}
    given = (data.splits.test.records, data.splits.val.records, data.splits.train.records)
    asked = next((found for part in given if (found := _asking(part))), [])
    ends = tuple(conversation.ends(folder, data.tokenizer))
    return Yardstick(config, architecture, data.tokenizer, splits, asked, ends)


def read_or_say(config: Config, architecture: "Architecture") -> Yardstick | None:
    """`read`, and where the records are gone a line that says what is not done without them."""
    try:
        return read(config, architecture)
    except InputError as problem:
        print(f"note: the run's records can't be read, so what is written is not compared on them: {problem}")
        return None


def _asking(records: "Sequence[Record]") -> "list[Record]":
    from bidora_jax.data.prompts import question_text

    return [record for record in records if question_text(record)][:ASKED]


def _padded(rows: "Examples", batch_size: int, pad: int) -> "list[Batch]":
    from bidora_jax.data import batches
    from bidora_jax.data.packing import PackedRow

    lengths = batches.bucket_lengths([len(row.tokens) for row in rows], LENGTHS)
    form = batches.BatchForm(1, batch_size, pad, packed=isinstance(rows[0], PackedRow))
    return list(batches.full_pass(rows, lengths, form))
