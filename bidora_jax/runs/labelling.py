"""What a run with labels has that a language model's has not: a head, the labels that its outputs stand for, a task, a criterion.

    model folder ─ head parts that are there ─┐
    records ─ labels of train, or task.labels ┴→ head of C outputs → adapter with the parts that are trained → task

The head's frozen parts stand in the base, its trained ones in the direction. Labels are kept as labels.json beside the adapter.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bidora_jax.config import Config
from bidora_jax.errors import InputError, listing
from bidora_jax.machine.files import read_json

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from bidora_jax.data.batches import Examples
    from bidora_jax.data.labelled import PreparedLabels, Room
    from bidora_jax.data.labels import Labels, TaskType
    from bidora_jax.models.adapters.adapter import Adapter
    from bidora_jax.models.architectures.architecture import Architecture
    from bidora_jax.models.architectures.heads import HeadSpec, Kind, PartName
    from bidora_jax.models.formats.export import Trained
    from bidora_jax.tasks.classification import Classification
    from bidora_jax.tasks.task import Criterion


class Head(NamedTuple):
    """A head for the labels of a run."""

    spec: "HeadSpec"
    held: "PyTree"
    """The parts that the model's folder has."""


class Labelled(NamedTuple):
    """What a run with labels knows beside its problem."""

    labels: "Labels"
    head: "HeadSpec"


def kind_of(type: "TaskType") -> "Kind":
    return "token" if type == "tokens" else "sequence"


def is_asked(config: Config, architecture: "Architecture") -> bool:
    """Whether the run labels texts. InputError for a model without an output that is to predict the next token."""
    from bidora_jax.models.architectures.decoder import DecoderConfig

    decoder, type = isinstance(architecture, DecoderConfig), config.task.type
    if type == "language_modeling" and not decoder:
        raise InputError(
            f"model.path {config.model.path} is an encoder, which predicts no next token: set task.type (--task) to "
            "classification, multilabel, regression or tokens, or leave it at auto"
        )
    if type == "auto":
        return not decoder or bool(config.data.text_columns or config.data.label_columns)
    return type != "language_modeling"


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
    return Head(spec, hf_head.load(folder, architecture, spec, wanted))


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


# What is written


def read(folder: Path) -> "Labels | None":
    """The labels beside an adapter, or in a model's folder; None where there are none."""
    from bidora_jax.data.labels import Labels
    from bidora_jax.models.formats import hf_head

    file = folder / hf_head.LABELS_FILE
    return Labels.from_json(read_json(file, "take the file that the run wrote"), str(file)) if file.is_file() else None


def as_written(trained: "Trained", labelled: Labelled, pad_id: int) -> "Trained":
    """The model as its files hold it, with what its outputs stand for.

    The scale of a regression goes into the head: its outputs are then the values themselves, for whoever loads it. A head without
    a bias, a decoder's, takes the standard deviation alone; labels.json keeps the mean.
    """
    from bidora_jax.models.formats.hf_head import PROBLEM_TYPES, Classes

    labels, direction = labelled.labels, trained.direction
    if labels.type == "regression":
        labels, direction = _folded(labels, labelled.head, direction)
    problem_type = None if labels.type == "tokens" else PROBLEM_TYPES[labels.type]
    classes = Classes(labels.names, problem_type, pad_id, labels.to_json())
    return trained._replace(direction=direction, head=labelled.head, classes=classes)


def _folded(labels: "Labels", spec: "HeadSpec", direction: "PyTree") -> "tuple[Labels, PyTree]":
    import jax.numpy as jnp

    from bidora_jax.models.architectures.heads import HEAD_TREE

    out = direction[HEAD_TREE]["out"]
    std, mean = jnp.asarray(labels.std, jnp.float32), jnp.asarray(labels.mean, jnp.float32)
    scaled = {"weight": out["weight"] * std[:, None]}
    bias = spec.parts[-1].bias
    if bias:
        scaled["bias"] = out["bias"] * std + mean
    left = (0.0,) * labels.count if bias else labels.mean
    direction = {**direction, HEAD_TREE: {**direction[HEAD_TREE], "out": scaled}}
    return replace(labels, mean=left, std=(1.0,) * labels.count), direction


def unnamed(folder: Path, kind: "Kind", outputs: int) -> "Labels":
    """The labels of a head that has no labels.json, as transformers takes them: names of the model's config.json where it has as
    many; one output of a text is a number, several are classes unless problem_type says otherwise."""
    from bidora_jax.data.labels import Labels
    from bidora_jax.models.formats import hf_head

    given = hf_head.names_in(folder)
    names = given if len(given) == outputs else tuple(f"LABEL_{number}" for number in range(outputs))
    if kind == "token":
        return Labels("tokens", names)
    type: TaskType = hf_head.problem_type_in(folder) or ("regression" if outputs == 1 else "classification")
    if type == "regression":
        return Labels(type, names, (0.0,) * outputs, (1.0,) * outputs)
    return Labels(type, names)


def completed(trained: "Trained", labels: "Labels", source: Path) -> "Trained":
    """What was read of a run's adapter folder, with the rest of its head from the base's folder `source`."""
    from bidora_jax.data.tokenizer import load_tokenizer, pad_id
    from bidora_jax.models.architectures.heads import HEAD_TREE
    from bidora_jax.models.formats import hf_head

    assert trained.adapter.head is not None
    spec = trained.config.head(kind_of(labels.type), labels.count)
    brought = {part.name for part in trained.adapter.head.parts}
    held = hf_head.load(source, trained.config, spec, [part.name for part in spec.parts if part.name not in brought])
    trained = trained._replace(base={**trained.base, HEAD_TREE: held})
    plain = (
        labels
        if labels.type != "regression"
        else replace(labels, mean=(0.0,) * labels.count, std=(1.0,) * labels.count)
    )
    written = as_written(trained, Labelled(plain, spec), pad_id(load_tokenizer(source, ends=False)))
    assert written.classes is not None
    return written._replace(classes=written.classes._replace(labels=labels.to_json()))
