"""Opens a classifier for predict, evaluate and Python: a model with its head, or with adapters that bring heads of their own.

labels      labels.json beside the adapter or in the model's folder; else the names of config.json; else LABEL_0, LABEL_1, …
outputs     of every record in its order, by adapter; what is done with them is in tasks/outputs.py
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bidora_jax.errors import InputError, listing, unusable
from bidora_jax.generation.served_model import Served
from bidora_jax.runs import label_files, labelling

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from bidora_jax.data.labelled import FileRows
    from bidora_jax.data.labels import LabelledExample, Labels
    from bidora_jax.data.settings import DataConfig
    from bidora_jax.models.adapters.adapter import Adapter
    from bidora_jax.models.architectures.architecture import Architecture
    from bidora_jax.models.architectures.heads import HeadSpec
    from bidora_jax.models.settings import ModelConfig
    from bidora_jax.runs.sharing import Shared
    from bidora_jax.tasks.class_evaluation import LabelScores, Outputs


class Member(NamedTuple):
    """What labels texts over a base: an adapter, or the model's own head."""

    adapter: "Adapter | None"
    direction: "PyTree"
    magnitude: "PyTree"
    labels: "Labels"
    head: "HeadSpec"


@dataclass(frozen=True)
class Classifier:
    """A model that labels texts."""

    folder: Path
    config: "Architecture"
    tokenizer: Any
    base: "PyTree"
    members: dict[str, Member]
    """By the name of the adapter; '' for the model itself."""
    settings: "ModelConfig"

    @property
    def labels(self) -> "Labels":
        """Of the first member."""
        return next(iter(self.members.values())).labels

    def outputs(
        self, examples: "Sequence[LabelledExample]", batch_size: int = 8, lengths: tuple[int, ...] = ()
    ) -> "dict[str, Outputs]":
        """What each member says of the examples, in their order; examples without a label too. `lengths`: padded ones, ascending,
        of which the last holds the longest example; without them, those that these examples need least padding with.

        InputError where a member's outputs are no numbers."""
        lengths = lengths or self._lengths(examples)
        return {name: self._outputs(member, examples, batch_size, lengths) for name, member in self.members.items()}

    def read(self, source: Any, data: "DataConfig", *, labelled: bool = False) -> "FileRows":
        """A file, or rows, in the model's tokens; with `labelled` every row must have a label that the model knows."""
        from bidora_jax.data import labelled as reading

        room = labelling.room_of(self.config)
        return reading.read_file(source, self.labels, self.tokenizer, room, data, labelled=labelled)

    def scores(self, examples: "Sequence[LabelledExample]", batch_size: int = 8) -> "dict[str, LabelScores]":
        """The loss and the metrics of each member on labelled examples."""
        from bidora_jax.tasks import class_evaluation
        from bidora_jax.tasks.task import LOSS

        found = self.outputs(examples, batch_size)
        return {name: class_evaluation.scored(one, self.members[name].labels, LOSS) for name, one in found.items()}

    def _lengths(self, examples: "Sequence[LabelledExample]") -> tuple[int, ...]:
        from bidora_jax.data.batches import bucket_lengths

        return bucket_lengths([len(example.tokens) for example in examples], LENGTHS)

    def _outputs(
        self, member: Member, examples: "Sequence[LabelledExample]", batch_size: int, lengths: tuple[int, ...]
    ) -> "Outputs":
        import numpy as np

        from bidora_jax.data.batches import BatchForm, LabelForm, full_pass
        from bidora_jax.data.tokenizer import pad_id
        from bidora_jax.tasks import class_evaluation
        from bidora_jax.tasks.classification import Classification

        kind = label_files.kind_of(member.labels.type)
        types = self.config.types > 0
        form = BatchForm(
            1, batch_size, pad_id(self.tokenizer), labels=LabelForm(kind, member.labels.count, types=types)
        )
        task = Classification(member.labels.type, member.head)
        read = class_evaluation.reader(task, self.config, member.adapter, self.settings)
        base = member_base(self.base, member)
        found = read(base, member.direction, member.magnitude, full_pass(examples, lengths, form))
        order = np.argsort([len(example.tokens) for example in examples], kind="stable")  # that of a full pass
        back = np.argsort(order, kind="stable")
        outputs, targets = ([part[place] for place in back] for part in found[:2])
        if wrong := sum(not np.isfinite(of_one).all() for of_one in outputs):
            raise unusable(f"the outputs are NaN or infinite for {wrong} of {len(outputs)} records", str(self.folder))
        if kind == "sequence":
            outputs, targets = np.array(outputs), np.array(targets)
        return found._replace(outputs=outputs, targets=targets)


LENGTHS = 4
"""Padded lengths, at most."""


def member_base(base: "PyTree", member: Member) -> "PyTree":
    """The base as the member's adapter needs it."""
    from bidora_jax.models.adapters import initial

    return base if member.adapter is None else initial.prepare_base(base, member.adapter)


def open_classifier(served: Served) -> Classifier:
    """InputError for a folder without a head, and for adapters whose labels differ."""
    from bidora_jax.generation import ensembles
    from bidora_jax.machine.compile_cache import keep_compiled

    keep_compiled(served.compilation_cache)
    return opened(served.model, dict(map(ensembles.named, served.adapter)), served.settings)


def opened(
    model: str, adapters: Mapping[str, str], settings: "ModelConfig", shared: "Shared | None" = None
) -> Classifier:
    """A model with adapters by their names, held as the settings say; `shared`: over the base that is held there."""
    from bidora_jax.data.tokenizer import load_tokenizer
    from bidora_jax.models.architectures.heads import HEAD_TREE, PartName
    from bidora_jax.models.formats import hf, hf_config, hf_head

    folder = hf_config.resolve_folder(model)
    config = hf_config.read_config(folder).without_output()
    members = {name: _of_adapter(Path(where), folder, config) for name, where in adapters.items()}
    members = members or {"": _of_model(folder, config)}
    first = next(iter(members.values()))
    if differing := [name for name, one in members.items() if {*one.labels.names} != {*first.labels.names}]:
        raise InputError(
            f"the adapters have other labels than {next(iter(members))}, {', '.join(first.labels.names)}:\n"
            f"{listing(f'{name}: ' + ', '.join(members[name].labels.names) for name in differing)}\nuse them one at a time"
        )
    load = hf.load if shared is None else shared.base
    base = load(settings, folder, config, flag="--dtype")
    heads = [one.adapter.head.parts if one.adapter and one.adapter.head else () for one in members.values()]
    brought = set.intersection(*({part.name for part in parts} for parts in heads))
    needed: list[PartName] = [part.name for part in first.head.parts if part.name not in brought]
    held = hf_head.load(folder, config, first.head, needed)
    if absent := [part.module for part in first.head.parts if part.name in needed and part.name not in held]:
        raise InputError(
            f"neither {folder} nor the adapter has {', '.join(absent)}: a classifier without it would answer at random; take the "
            "base that the adapter was trained on"
        )
    return Classifier(folder, config, load_tokenizer(folder, ends=False), {**base, HEAD_TREE: held}, members, settings)


def _of_adapter(where: Path, folder: Path, config: "Architecture") -> Member:
    from bidora_jax.models.formats import peft, peft_config

    where = peft_config.meant(where)
    kind = peft_config.kind_of_head(where)
    if kind is None:
        raise InputError(f"{where} is no classifier: its task_type is neither SEQ_CLS nor TOKEN_CLS; use generate")
    adapter, direction, magnitude = peft.load_adapter(where, config)
    assert adapter.head is not None
    outputs = adapter.head.parts[-1].shape[0]
    labels = label_files.read(where) or label_files.unnamed(folder, kind, outputs)
    return Member(replace(adapter, dropout=0.0), direction, magnitude, labels, config.head(kind, outputs))


def _of_model(folder: Path, config: "Architecture") -> Member:
    from bidora_jax.models.architectures.heads import Kind
    from bidora_jax.models.formats import hf_head

    kind: Kind = hf_head.kind_in(folder)
    outputs = hf_head.outputs_in(folder, config, kind)
    if outputs is None:
        raise InputError(
            f"{folder} has no head of classification: name the adapter that was trained on it with --adapter, or a run with --run"
        )
    labels = label_files.read(folder) or label_files.unnamed(folder, kind, outputs)
    return Member(None, {}, {}, labels, config.head(kind, outputs))


def is_classifier(served: Served) -> bool:
    """Whether what is served labels texts: an adapter with a head, or a model of a classifier's class."""
    from bidora_jax.generation import ensembles
    from bidora_jax.models.formats import hf_config, hf_head, peft_config

    if served.adapter:
        folders = [peft_config.meant(Path(ensembles.named(text)[1])) for text in served.adapter]
        return any(peft_config.kind_of_head(one) for one in folders if (one / peft_config.CONFIG).is_file())
    return hf_head.is_classifier(hf_config.resolve_folder(served.model, weights=False))


def reading(served: Any, *, max_length: int, long: str) -> "DataConfig":
    """How a file is read: with the columns that are given, or those of the run."""
    from bidora_jax.data.settings import DataConfig
    from bidora_jax.runs.folder import run_config

    data = run_config(served.run).data if served.run else DataConfig()
    columns = {name: given for name in ("text_columns", "label_columns") if (given := getattr(served, name))}
    return replace(data, max_length=max_length, long=long, **columns)
