"""What a run with labels has that a language model's has not: a head, the labels that its outputs stand for, a task, a criterion.

    model folder ─ head parts that are there ─┐
    records ─ labels of train, or task.labels ┴→ head of C outputs → adapter with the parts that are trained → task

The head's frozen parts stand in the base, its trained ones in the direction. Labels are kept as labels.json beside the adapter.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bidora_jax.config import Config
from bidora_jax.data.records import in_records
from bidora_jax.errors import InputError, listing
from bidora_jax.runs import label_files
from bidora_jax.runs.label_files import kind_of

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from bidora_jax.data.batches import Examples
    from bidora_jax.data.labelled import PreparedLabels, Room
    from bidora_jax.data.labels import Labels, TaskType
    from bidora_jax.models.adapters.adapter import Adapter
    from bidora_jax.models.architectures.architecture import Architecture
    from bidora_jax.models.architectures.heads import HeadSpec, PartName
    from bidora_jax.tasks.classification import Classification
    from bidora_jax.tasks.task import Criterion


class Head(NamedTuple):
    """A head for the labels of a run."""

    spec: "HeadSpec"
    held: "PyTree"
    """The parts that the model's folder has."""


def is_asked(config: Config, architecture: "Architecture") -> bool:
    """Whether the run labels texts. InputError for a model without an output that is to predict the next token."""
    from bidora_jax.models.architectures.decoder import DecoderConfig

    decoder, type = isinstance(architecture, DecoderConfig), config.task.type
    if type == "language_modeling" and not decoder:
        raise InputError(
            f"model.path {config.model.path} is an encoder, which predicts no next token: set task.type (--task) to "
            "classification, multilabel, regression or tokens, or leave it at auto"
        )
    asked = type != "language_modeling"
    if type == "auto":
        asked = not decoder or bool(config.data.text_columns or config.data.label_columns)
    if not asked and (idle := _set_for_labels(config)):
        raise InputError(
            f"{', '.join(idle)} belong to a run with labels, and this one trains a language model: leave them out, or set "
            "task.type (--task) to classification, multilabel, regression or tokens"
        )
    return asked


def _set_for_labels(config: Config) -> list[str]:
    """Settings that only a run with labels reads, and that are set."""
    data, task = config.data, config.task
    given = {
        "data.text_columns": data.text_columns, "data.label_columns": data.label_columns,
        "data.group_column": data.group_column, "task.labels": task.labels, "task.label_smoothing": task.label_smoothing,
        "task.class_weights": task.class_weights != "none", "task.head": task.head != "keep",
        "search.metric": config.search.metric not in ("auto", "loss"),
    }  # fmt: skip
    return [name for name, value in given.items() if value]


def room_of(architecture: "Architecture") -> "Room":
    from bidora_jax.data.labelled import Room

    return Room(architecture.max_positions, architecture.vocab_size, architecture.types > 0)


def prepare(config: Config, folder: Path, architecture: "Architecture", tokenizer: Any) -> "PreparedLabels":
    """The data of a run with labels; in the order of the head's outputs where the model's folder has one that is kept."""
    from bidora_jax.data import labelled, labelled_splits

    found = labelled_splits.load(config.data, config.task.type, config.seed)
    names = _names(config, folder, architecture, found.how.labels.type)
    return labelled.encode(
        config.data, found, tokenizer, room_of(architecture), names=names or None, seed=config.seed
    )  # fmt: skip


def _names(config: Config, folder: Path, architecture: "Architecture", type: "TaskType") -> tuple[str, ...]:
    from bidora_jax.models.formats import hf_head

    if config.task.labels or config.task.head == "new" or type == "regression":
        return config.task.labels
    names = hf_head.names_in(folder)
    return names if hf_head.outputs_in(folder, architecture, kind_of(type)) == len(names) else ()


def head_for(config: Config, folder: Path, architecture: "Architecture", labels: "Labels") -> Head:
    """InputError where the folder's head is for another number of labels."""
    from bidora_jax.models.formats import hf_head

    spec = architecture.head(kind_of(labels.type), labels.count)
    wanted: list[PartName] = [part.name for part in spec.parts]
    if config.task.head == "new":
        replaced = {part.name for part in spec.trained(wanted).parts}
        wanted = [name for name in wanted if name not in replaced]
    held = hf_head.load(folder, architecture, spec, wanted)
    if "out" in held:
        held = {**held, "out": label_files.standardised(labels, held["out"])}
    return Head(spec, held)


def check_last_tokens(architecture: "Architecture", ready: "PreparedLabels", pad_id: int, tokenizer: Any) -> None:
    """InputError for a text that ends with the token which fills rows up: transformers takes the last token before the filling for
    the end of a text, and would read another one."""
    from bidora_jax.models.architectures.decoder import DecoderConfig

    if not isinstance(architecture, DecoderConfig) or ready.labels.type == "tokens":
        return
    places = [
        ready.splits.records(use)[example.record].place
        for use, part in ready.encoded.items()
        for example in part.examples
        if example.tokens[-1] == pad_id
    ]
    if places:
        raise InputError(
            f"texts end with {tokenizer.convert_ids_to_tokens(pad_id)}, which also fills rows up, and other programs would read "
            f"the token before it: {in_records(places)}\ngive the tokenizer a pad_token of its own in tokenizer_config.json, or "
            "take that token out of the texts"
        )


def task_of(config: Config, ready: "PreparedLabels", head: "HeadSpec") -> "Classification":
    from bidora_jax.tasks.classification import Classification

    type = ready.labels.type
    weights = _balanced(ready) if config.task.class_weights == "balanced" and type != "regression" else None
    smoothing = config.task.label_smoothing if type in ("classification", "tokens") else 0.0
    return Classification(type, head, weights, smoothing)


def _balanced(ready: "PreparedLabels") -> tuple[float, ...]:
    """n/(C·n_c) by class; of several labels n₋/n₊. InputError for a label that no training record has."""
    labels, counts = ready.labels, ready.counts
    if absent := [name for name, count in zip(labels.names, counts, strict=True) if not count]:
        raise InputError(
            f"task.class_weights balanced: no training record has the label\n{listing(absent)}\nleave it at none, or give "
            "records of every label"
        )
    if labels.type == "multilabel":
        rows = len(ready.encoded["train"].examples)
        return tuple((rows - count) / count for count in counts)
    return tuple(sum(counts) / (labels.count * count) for count in counts)


def criterion_of(config: Config, labels: "Labels") -> "Criterion":
    """InputError for a metric that the task has not."""
    from bidora_jax.tasks import metric_names
    from bidora_jax.tasks.task import LOSS, Criterion

    if config.search.metric == "loss":
        return LOSS
    auto = config.search.metric == "auto"
    chosen = metric_names.default(labels.type, labels.names) if auto else metric_names.named(
        config.search.metric, labels.type
    )  # fmt: skip
    return Criterion(chosen.name, chosen.higher_is_better)


def check_criterion(criterion: "Criterion", labels: "Labels", val: "Examples") -> None:
    """InputError where the validation records don't define the metric: no step would be the best one."""
    import numpy as np

    from bidora_jax.tasks import metrics

    rows: Any = val
    targets: Any = [row.labels for row in rows]
    if labels.type != "tokens":
        targets = np.concatenate([one.reshape(-1, labels.count) for one in targets])
    if criterion.name != "loss" and (why := metrics.why_undefined(labels, targets, criterion.name)):
        raise InputError(
            f"search.metric {criterion.name} can't choose the best step by these validation records: {why}; choose by another one, "
            "such as --search.metric loss, or give other records"
        )


def say(head: Head, adapter: "Adapter") -> str:
    """One line on where the parts of the head come from, and which are trained."""
    trained = [] if adapter.head is None else [part.module for part in adapter.head.parts]
    fresh = [part.module for part in head.spec.parts if part.name not in head.held]
    held = [part.module for part in head.spec.parts if part.name in head.held]
    words = [f"{', '.join(fresh)} new"] * bool(fresh) + [f"{', '.join(held)} of the model's folder"] * bool(held)
    return f"head: {' and '.join(words)}; trained with the direction: {', '.join(trained)}"
