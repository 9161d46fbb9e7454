"""The head of classification in a model folder: which of its parts are there, and their weights in float32.

A folder of transformers' …ForSequenceClassification has all parts, one of a masked language model has those that pretraining used
(BERT's pooler, ModernBERT's head), a bare model has few or none.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bidora_jax.errors import InputError, listing
from bidora_jax.machine.files import read_json, write_json, write_whole
from bidora_jax.models.architectures.architecture import Architecture, Place
from bidora_jax.models.architectures.families import DECODERS, FAMILIES
from bidora_jax.models.architectures.heads import HEAD_TREE, HeadPart, HeadSpec, Kind, PartName
from bidora_jax.models.formats import hf_tensors, safetensors_file
from bidora_jax.models.formats.hf_config import NOT_A_MODEL
from bidora_jax.models.formats.safetensors_file import Entry


class Classes(NamedTuple):
    """What the outputs of a head stand for, as a model's config.json says it."""

    names: tuple[str, ...]
    problem_type: str | None
    """regression, single_label_classification, multi_label_classification; None of tokens."""
    pad_id: int
    """The token that fills rows up: transformers takes the last token before it for the end of a text."""
    labels: dict[str, Any]
    """For labels.json."""


PROBLEM_TYPES: dict[Literal["classification", "multilabel", "regression"], str] = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}
"""transformers' names of the tasks; tokens have none."""
LABELS_FILE = "labels.json"
"""Beside an adapter and in a merged model: names of the labels, and what of a regression's scale its head does not hold."""


def write_labels(folder: Path, classes: Classes | None) -> None:
    if classes is not None:
        write_json(folder / LABELS_FILE, classes.labels)


def write_readme(folder: Path, named: Path, kind: Kind, classes: Classes | None) -> None:
    """How PEFT loads the adapter: a file of its format holds neither the labels nor their number. `named` is where the folder will
    be."""
    if classes is None:
        return
    auto = {"sequence": "AutoPeftModelForSequenceClassification", "token": "AutoPeftModelForTokenClassification"}[kind]
    numbered = dict(enumerate(classes.names))
    given = {
        "num_labels": len(numbered), "id2label": numbered, "label2id": {name: n for n, name in numbered.items()},
        "pad_token_id": classes.pad_id,
    }  # fmt: skip
    lines = "".join(f"    {name}={value!r},\n" for name, value in given.items())
    mean = classes.labels.get("mean") or ()
    left = f"\nThe head has no bias: add the mean {', '.join(f'{m:.9g}' for m in mean)} to what it gives.\n" * any(mean)
    code = f"from peft import {auto}\n\nmodel = {auto}.from_pretrained(\n    {str(named)!r},\n{lines})\n"
    write_whole(folder / "README.md", f"# A classifier's adapter\n\nPEFT loads it so:\n\n```python\n{code}```\n{left}")


def places(head: HeadSpec) -> dict[str, Place]:
    """The tensors of a head that stands whole in a base tree, by name."""
    return {
        f"{part.module}.{leaf}": Place((HEAD_TREE, part.name, leaf), None)
        for part in head.parts
        for leaf in part.tensors
    }


def settings(source: Mapping[str, Any], head: HeadSpec, classes: Classes | None) -> dict[str, Any]:
    """What config.json says of a classifier; `source` is that of the model it was made from."""
    suffix = {"sequence": "ForSequenceClassification", "token": "ForTokenClassification"}[head.kind]
    names = source.get("architectures") or [FAMILIES[source["model_type"]].class_prefix]
    found: dict[str, Any] = {"architectures": [re.sub(r"(Model|For[A-Z]\w+|PreTrained\w*)$", "", names[0]) + suffix]}
    if classes is None:
        return found
    found["id2label"] = {str(number): name for number, name in enumerate(classes.names)}
    found["label2id"] = {name: number for number, name in enumerate(classes.names)}
    found |= {} if classes.problem_type is None else {"problem_type": classes.problem_type}
    decoder = source["model_type"] in DECODERS  # whose head reads the last token that is no padding
    return found | ({"pad_token_id": classes.pad_id} if decoder else {})


def names_in(folder: Path | str) -> tuple[str, ...]:
    """The labels that config.json names, in the order of the outputs; none where it has only LABEL_0, LABEL_1, …"""
    given = read_json(Path(folder) / "config.json", NOT_A_MODEL).get("id2label") or {}
    names = tuple(str(name) for _, name in sorted(given.items(), key=lambda one: int(one[0])))
    return () if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def problem_type_in(folder: Path | str) -> Literal["classification", "multilabel", "regression"] | None:
    """task.type by the problem_type of config.json; None where it says none."""
    given = read_json(Path(folder) / "config.json", NOT_A_MODEL).get("problem_type")
    return next((type for type, name in PROBLEM_TYPES.items() if name == given), None)


def is_classifier(folder: Path | str) -> bool:
    """Whether a folder holds a model of a class with a head of classification."""
    file = Path(folder) / "config.json"
    names = (read_json(file, NOT_A_MODEL).get("architectures") if file.is_file() else None) or [""]
    return str(names[0]).endswith(("ForSequenceClassification", "ForTokenClassification"))


def kind_in(folder: Path | str) -> Kind:
    """The kind of head that a model folder has, by the name of its class."""
    names = read_json(Path(folder) / "config.json", NOT_A_MODEL).get("architectures") or [""]
    return "token" if str(names[0]).endswith("ForTokenClassification") else "sequence"


def load(
    folder: Path | str, architecture: Architecture, head: HeadSpec, wanted: Collection[PartName] | None = None
) -> PyTree:
    """{part: {'weight', 'bias'}} of the parts that the folder has whole; without `wanted`, of all of them.

    InputError for a part of another shape: a head that was made for another number of labels, above all.
    """
    entries = {name: e for name, e in hf_tensors.read_entries(Path(folder)).items() if isinstance(e, Entry)}
    found, wrong = {}, []
    for part in head.parts if wanted is None else (part for part in head.parts if part.name in wanted):
        there = {leaf: _entry(entries, architecture, part, leaf) for leaf in part.tensors}
        if any(entry is None for entry in there.values()):
            continue
        shapes = {leaf: entry.shape for leaf, entry in there.items() if entry is not None}
        wrong += [f"{part.module}.{leaf}: expected {part.tensors[leaf]}, found {shape}"
                  for leaf, shape in shapes.items() if shape != part.tensors[leaf]]  # fmt: skip
        if shapes == part.tensors:
            found[part.name] = {leaf: _read(entry) for leaf, entry in there.items() if entry is not None}
    if wrong:
        raise InputError(
            f"{folder} has a head that was made for other labels than these {head.outputs}:\n{listing(wrong)}\n"
            "set task.head new to put a new one in its place, or name the labels that it was made for in task.labels"
        )
    return found


def outputs_in(folder: Path | str, architecture: Architecture, kind: Kind) -> int | None:
    """The number of outputs of the head that a folder has; None where it has none."""
    entries = hf_tensors.read_entries(Path(folder))
    *_, out = architecture.head(kind, 1).parts
    entry = _entry(entries, architecture, out, "weight")
    return None if entry is None else entry.shape[0]


def of_folder(folder: Path | str, architecture: Architecture) -> HeadSpec:
    """The head of a classifier's folder. InputError where it has none, or a part of one."""
    kind = kind_in(folder)
    head = architecture.head(kind, outputs_in(folder, architecture, kind) or 1)
    entries = {name: one for name, one in hf_tensors.read_entries(Path(folder)).items() if isinstance(one, Entry)}
    tensors = [(part, leaf) for part in head.parts for leaf in part.tensors]
    absent = [f"{part.module}.{leaf}" for part, leaf in tensors if _entry(entries, architecture, part, leaf) is None]
    if absent:
        raise InputError(
            f"{folder} says that it is a classifier, and its weights lack the head's\n{listing(absent)}\nfetch the folder again, "
            "or take the model that has them"
        )
    return head


def copy_labels(source: Path, folder: Path) -> None:
    """labels.json of a model, beside it as it is written once more."""
    if (source / LABELS_FILE).is_file():
        write_json(folder / LABELS_FILE, read_json(source / LABELS_FILE, NOT_A_MODEL))


def _entry(entries: Mapping[str, Entry], architecture: Architecture, part: HeadPart, leaf: str) -> Entry | None:
    """The tensor under its name in a classifier, or in a folder that was saved from the model inside it."""
    inside = part.module.removeprefix(f"{architecture.prefix}.")
    return entries.get(f"{part.module}.{leaf}") or entries.get(f"{inside}.{leaf}")


def _read(entry: Entry):
    whole = np.empty(entry.shape, np.float32)
    safetensors_file.read_into(entry, whole)
    return jnp.asarray(whole)
