"""The labels and the head of a classifier in its files: what is written of a run, and what is read of a folder, ours or another's.

The scale of a regression is inside the head of every file, so that whoever loads it has values as they are in the data:

    z = W·h + c  of standardised targets     file  W' = std·W,  c' = std·c + mean

Where training goes on from such a head, it is turned back for the targets of the run.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bidora_jax.machine.files import read_json

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from bidora_jax.data.labels import Labels, TaskType
    from bidora_jax.models.architectures.heads import HeadSpec, Kind
    from bidora_jax.models.formats.export import Trained


class Labelled(NamedTuple):
    """What a run with labels knows beside its problem."""

    labels: "Labels"
    head: "HeadSpec"


def kind_of(type: "TaskType") -> "Kind":
    return "token" if type == "tokens" else "sequence"


def standardised_start(labels: "Labels", start: "tuple[PyTree, PyTree]") -> "tuple[PyTree, PyTree]":
    """The factors of an adapter's folder, with its head for the targets of this run."""
    from bidora_jax.models.architectures.heads import HEAD_TREE

    direction, magnitude = start
    head = {**direction[HEAD_TREE], "out": standardised(labels, direction[HEAD_TREE]["out"])}
    return {**direction, HEAD_TREE: head}, magnitude


def standardised(labels: "Labels", out: "PyTree") -> "PyTree":
    """The last part of a head that gives values as they are in the data, for standardised targets: the inverse of `_folded`."""
    if labels.type != "regression":
        return out
    import jax.numpy as jnp

    std, mean = jnp.asarray(labels.std, jnp.float32), jnp.asarray(labels.mean, jnp.float32)
    bias = {"bias": (out["bias"] - mean) / std} if "bias" in out else {}
    return {"weight": out["weight"] / std[:, None], **bias}


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
