"""model/ of a competition: the folds' adapters, and what a row and a prediction are, so that other rows can be predicted.

    competition.json     the plan, the cuts between labels, the names of the members
    config.json          of the first fold's run: how the base is held, and how rows are read
    fold-1, fold-2, …    PEFT adapters of the base that the plan names

Predictions are the mean of the members' probabilities or values, over one base. The blend's other parts are not in it.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bidora_jax.competitions import inputs, training
from bidora_jax.competitions import plan as plans
from bidora_jax.competitions.cuts import Cuts, decided
from bidora_jax.competitions.files import Table
from bidora_jax.competitions.plan import Plan
from bidora_jax.competitions.recipe import TASKS
from bidora_jax.errors import InputError
from bidora_jax.machine.files import write_whole

if TYPE_CHECKING:
    from bidora_jax.data.labels import Labels
    from bidora_jax.tasks.outputs import Answer

NAME, FILE = "model", "competition.json"


class Model(NamedTuple):
    folder: Path
    plan: Plan
    cuts: Cuts
    members: tuple[str, ...]


def write(plan: Plan, cuts: Cuts) -> None:
    """Copies the adapters of the folds; competition.json comes last, so that a folder with it is whole."""
    folder = plan.output / NAME
    shutil.rmtree(folder, ignore_errors=True)
    members = [f"fold-{fold + 1}" for fold in range(plan.folds)]
    for fold, member in enumerate(members):
        shutil.copytree(training.folder_of(plan, fold) / "adapter", folder / member)
    shutil.copyfile(training.folder_of(plan, 0) / "config.json", folder / "config.json")
    held = {"plan": json.loads(plans.to_json(plan)), "cuts": cuts.values, "members": members}
    write_whole(folder / FILE, json.dumps(held, indent=2, ensure_ascii=False) + "\n")


def read(folder: Path) -> Model:
    """InputError for a competition.json that `write` has not written."""
    path = folder / FILE
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return Model(
            folder,
            plans.from_json(json.dumps(held["plan"])),
            Cuts(tuple(map(float, held["cuts"]))),
            tuple(held["members"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no model of a competition that this version wrote ({error}); train anew") from None


def predict(model: Model, table: Table) -> np.ndarray:
    """Probabilities or values (N, C) of a table's rows. InputError for a column that the model reads and the table lacks."""
    plan, wanted = model.plan, model.plan.columns
    lost = [name for name in (*wanted.texts, *wanted.categories, *wanted.numbers) if name not in table.columns]
    if lost:
        raise InputError(
            f"{table.path} lacks {', '.join(map(repr, lost))}, which the model reads; it has {', '.join(map(repr, table.columns))}"
        )
    rows = inputs.unlabelled(inputs.texts(plan, table.rows))
    made = training.outputs_of(plan, model.folder, {name: model.folder / name for name in model.members}, rows)
    return np.mean(list(made.values()), axis=0)


def labels_of(plan: Plan) -> "Labels":
    """What the columns of predictions stand for, as `predict` writes them."""
    from bidora_jax.data.labels import Labels

    return Labels(TASKS[plan.target.kind], inputs.outputs(plan.target))


def answers(model: Model, predictions: np.ndarray) -> "Sequence[Answer]":
    """Predictions as `predict` writes them: decided by the cuts that were fitted out of fold."""
    from bidora_jax.tasks import outputs

    target = model.plan.target
    made = outputs.answers(labels_of(model.plan), predictions)
    found = decided(target, predictions, model.cuts)
    if target.kind in ("binary", "multiclass"):
        return [one | {"label": target.names[number]} for one, number in zip(made, found, strict=True)]
    if target.kind == "multilabel":
        return [
            one | {"labels": [name for name, here in zip(target.names, row, strict=True) if here]}
            for one, row in zip(made, found, strict=True)
        ]
    return made
