"""What a run with labels has that a language model's has not: a head, the labels that its outputs stand for, a task, a criterion.

    model folder ─ head parts that are there ─┐
    records ─ labels of train, or task.labels ┴→ head of C outputs → adapter with the parts that are trained → task

The head's frozen parts stand in the base, its trained ones in the direction. Labels are kept as labels.json beside the adapter.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bidora_jax.config import Config
from bidora_jax.errors import InputError, listing
from bidora_jax.machine.files import read_json

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from bidora_jax.data.batches import Examples
    from bidora_jax.data.labels import Labels, TaskType
    from bidora_jax.models.architectures.architecture import Architecture
    from bidora_jax.models.architectures.heads import HeadSpec, Kind
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


def names_of_folder(config: Config, folder: Path, architecture: "Architecture", type: "TaskType") -> tuple[str, ...]:
    """The labels in the order of the outputs: the run's own, or those of the head that the model's folder has and the run keeps."""
    from bidora_jax.models.formats import hf_head

    if config.task.labels or config.task.head == "new" or type == "regression":
        return config.task.labels
    names = hf_head.names_in(folder)
    return names if hf_head.outputs_in(folder, architecture, kind_of(type)) == len(names) else ()


def head_for(config: Config, folder: Path, architecture: "Architecture", labels: "Labels") -> Head:
    """InputError where the folder's head is for another number of labels."""
    from bidora_jax.models.formats import hf_head

    spec = architecture.head(kind_of(labels.type), labels.count)
    held = hf_head.load(folder, architecture, spec)
    if config.task.head == "new":
        named = spec.trained([part.name for part in spec.parts]).parts
        held = {name: part for name, part in held.items() if name not in {one.name for one in named}}
    return Head(spec, held)


def task_of(config: Config, labels: "Labels", head: "HeadSpec", train: "Examples") -> "Classification":
    from bidora_jax.tasks.classification import Classification

    weights = _balanced(labels, train) if config.task.class_weights == "balanced" else None
    smoothing = config.task.label_smoothing if labels.type in ("classification", "tokens") else 0.0
    return Classification(labels.type, head, weights, smoothing)


def _balanced(labels: "Labels", train: "Examples") -> tuple[float, ...]:
    """n/(C·n_c) by class; of several labels n₋/n₊. InputError for a label that no training record has."""
    import numpy as np

    rows: Any = train
    if labels.type == "tokens":
        tags = np.concatenate([row.labels[row.labels >= 0] for row in rows])
        found, total = np.bincount(tags, minlength=labels.count).astype(float), float(len(tags))
    else:
        each = np.concatenate([row.labels.reshape(-1, labels.count) for row in rows])
        found, total = each.sum(axis=0).astype(float), float(len(each))
    if absent := [name for name, count in zip(labels.names, found, strict=True) if not count]:
        raise InputError(
            f"task.class_weights balanced: no training record has the label\n{listing(absent)}\nleave it at none, or give "
            "records of every label"
        )
    weights = (total - found) / found if labels.type == "multilabel" else total / (labels.count * found)
    return tuple(map(float, weights))


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


def say(head: Head, trained: Sequence[str]) -> str:
    """One line on where the parts of the head come from, and which are trained."""
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
    classes = Classes(labels.names, PROBLEM_TYPES.get(labels.type), pad_id, labels.to_json())
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
    type = hf_head.problem_type_in(folder) or ("regression" if outputs == 1 else "classification")
    scale = ((0.0,) * outputs, (1.0,) * outputs) if type == "regression" else ()
    return Labels(type, names, *scale)
