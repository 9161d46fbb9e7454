"""What a classifier predicts for a file or for rows: for `predict` and for Python.

    rows -> tokens, in their order -> outputs of each adapter -> probabilities or values -> answers (tasks/outputs.py)

Adapters answer in turn, or as one by the mean of their probabilities or values.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from bidora_jax.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from bidora_jax.data.labelled_records import LabelledRecord
    from bidora_jax.data.labels import Labels
    from bidora_jax.data.settings import DataConfig
    from bidora_jax.runs.classifying import Classifier
    from bidora_jax.tasks.outputs import Answer

AN_ID = re.compile(r"(?i:(?:.*[_ ])?(?:id|guid|idx|index))|.*[a-z](?:Id|ID)")


class Predictions(NamedTuple):
    labels: "Labels"
    """In the order in which the first adapter has them."""
    records: "list[LabelledRecord]"
    answers: "dict[str, list[Answer]]"
    """By adapter, '' for the model itself; one a record."""
    notes: list[str]
    """What a user should know of the records, in lines."""


def predict(
    classifier: "Classifier", source: Any, data: "DataConfig", *, threshold: float, batch_size: int, together: bool
) -> Predictions:
    """The answers to the rows of a source, or to rows. `data` says columns and max_length; what is longer is cut and counted.

    With `together` the adapters answer as one. InputError for rows that hold no text.
    """
    from bidora_jax.runs import labelling
    from bidora_jax.tasks import outputs

    positions = labelling.room_of(classifier.config).positions
    data = replace(data, max_length=min(data.max_length, positions), long="truncate")
    rows = classifier.read(source, data)
    members = {}
    for name, found in classifier.outputs(rows.examples, batch_size).items():
        said = found.outputs
        if classifier.labels.type == "tokens":
            said = [outputs.by_word(text, one.starts) for text, one in zip(said, rows.examples, strict=True)]
        members[name] = outputs.Member(classifier.members[name].labels, said)
    if together:
        first = next(iter(members.values())).labels
        shares = {f"ensemble of {', '.join(members)}": (first, outputs.mean_shares([*members.values()]))}
    else:
        shares = {name: (one.labels, outputs.shares(*one)) for name, one in members.items()}
    words = [record["words"] for record in rows.records] if classifier.labels.type == "tokens" else None
    answers = {
        name: outputs.answers(labels, found, threshold=threshold, words=words)
        for name, (labels, found) in shares.items()
    }
    return Predictions(classifier.labels, rows.records, answers, rows.notes)


def id_column(rows: Sequence[Mapping[str, Any]], given: str, taken: Sequence[str] = ()) -> str:
    """The name of the column that says which row is which: the one that is given, else `id`, else the only one whose name ends so
    and whose values differ; empty where there is none. InputError where the one that is given is not there."""
    there = list(dict.fromkeys(name for row in rows for name in row))
    if given:
        if given not in there:
            named = ", ".join(map(repr, there))
            raise InputError(
                f"--id-column {given} is no column of the rows{did_you_mean(given, there)}; they have {named}"
            )
        return given
    found = [name for name in there if name not in taken and AN_ID.fullmatch(name)]
    plain = [name for name in found if name.casefold() == "id"]
    telling = [name for name in found if len({str(row.get(name)) for row in rows}) == len(rows)]
    return next((names[0] for names in (plain, telling) if len(names) == 1), "")
