"""python -m bidora_jax.predict --run DIR --data-file F --output OUT.csv
python -m bidora_jax.predict --model DIR [--adapter DIR …] --data-file F --output OUT.csv [--ensemble probabilities]

What a classifier says of each row of a file, in its order: the label as it was written in training with the probability of every
label, the labels of a multilabel task, values on the scale of the training's file, or tags and spans. OUT.csv or .tsv has the
rows' id and a column for each of these, OUT.jsonl an object a row. Several adapters answer in turn, or as one by the mean of
their probabilities.
"""

import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bidora_jax.errors import InputError, command, program
from bidora_jax.generation.served_model import Served
from bidora_jax.runs.serving import as_trained, named, settled

if TYPE_CHECKING:
    from bidora_jax.data.settings import DataConfig
    from bidora_jax.runs.predicting import Predictions


@dataclass(frozen=True, kw_only=True)
class PredictArguments(Served):
    """What a classifier says of each row of a file. For example: --run runs/mine --data-file test.csv --output predicted.csv"""

    data_file: tuple[str, ...] = ()
    """Rows with a text, in any kind of file or folder that training takes; repeat it for several. Labels that are there are left
    out."""
    output: str = ""
    """File to write: .csv, .tsv or .jsonl."""
    text_columns: tuple[str, ...] = ()
    """Columns of the text, or of a pair of texts; repeat it for two. With --run: those of the run."""
    id_column: str = ""
    """Column to write before each prediction. Without it: id, or the only column whose name ends so and whose values differ."""
    threshold: float = 0.5
    """Of a multilabel task: the probability from which on a row has a label."""
    max_length: int = 1024
    """Tokens that a text may have, at most as many as the model has positions for; longer ones are cut at the end and counted.
    With --run: those of the run."""
    batch_size: int = 8
    """Rows that are read at a time."""


COMPETITION = "competition.json"
"""In the model/ that `kaggle` leaves."""
LIKE_TRAINING = ("max_length", "text_columns")
"""What a run's settings say of rows."""


def main(argv: list[str]) -> None:
    import tyro

    arguments = tyro.cli(PredictArguments, args=argv, prog=program("predict"), config=(tyro.conf.UseAppendAction,))
    _check(arguments)
    if arguments.run and (Path(arguments.run) / COMPETITION).is_file():
        print("\n".join(_of_competition(arguments, named(argv))))
        return
    arguments = settled(arguments, named(argv))
    if arguments.run:
        arguments = as_trained(arguments.run, arguments, named(argv), LIKE_TRAINING)
    print("\n".join(predict(arguments)))


def _check(arguments: PredictArguments) -> None:
    """Refuses flags that contradict each other and values out of bounds, all in one message."""
    a = arguments
    checks = {
        "predict needs rows: name a file with --data-file": not a.data_file,
        "name the file to write with --output": not a.output,
        f"--threshold must be between 0 and 1, found {a.threshold:g}": not 0 < a.threshold < 1,
        "--batch-size must be at least 1 and --max-length at least 2": a.batch_size < 1 or a.max_length < 2,
        "classifiers are averaged by what they predict: --ensemble probabilities in place of --average and --weight": a.average
        or bool(a.weight),
        "--ensemble logits is for answers in words; of classifiers probabilities are averaged: --ensemble probabilities": a.ensemble
        == "logits",
        f"--ensemble needs two adapters or more, found {len(a.adapter)}; repeat --adapter": a.ensemble != "none"
        and len(a.adapter) < 2,
    }
    if wrong := [message for message, found in checks.items() if found]:
        raise InputError("\n".join(wrong))


def predict(arguments: PredictArguments) -> Iterator[str]:
    """Writes the predictions; yields lines on what was written."""
    from bidora_jax.runs import classifying, predicting
    from bidora_jax.tasks import prediction_files
    from bidora_jax.tasks.prediction_files import Column

    output = Path(arguments.output)
    prediction_files.check(output)
    began = time.perf_counter()
    classifier = classifying.open_classifier(arguments)
    found = predicting.predict(
        classifier, arguments.data_file, _reading(arguments), threshold=arguments.threshold,
        batch_size=arguments.batch_size, together=arguments.ensemble != "none",
    )  # fmt: skip
    print("\n".join(found.notes), file=sys.stderr, flush=True)
    rows = [record.row for record in found.records]
    before, several = [], len(found.answers) > 1
    if name := predicting.id_column(rows, arguments.id_column, arguments.text_columns):
        before.append(Column(name, [row.get(name) for row in rows] * len(found.answers)))
    if several:
        before.append(Column("adapter", [adapter for adapter, answers in found.answers.items() for _ in answers]))
    prediction_files.write(output, found.labels, [one for answers in found.answers.values() for one in answers], before)
    seconds = time.perf_counter() - began
    yield from _said(found, several)
    yield f"written to {output}" + (f", with the column {name!r} of the rows" if name else "")
    print(f"{len(rows)} rows in {seconds:.1f} s, loading and compiling included", file=sys.stderr)


def _of_competition(arguments: PredictArguments, given: Collection[str]) -> Iterator[str]:
    """The mean of the folds of a competition, of a table with the columns of its test.csv."""
    from bidora_jax.competitions import files, model_folder
    from bidora_jax.tasks import prediction_files
    from bidora_jax.tasks.prediction_files import Column

    output = Path(arguments.output)
    prediction_files.check(output)
    if idle := sorted({*given} - {"run", "data_file", "output", "id_column"}):
        flags = ", ".join("--" + name.replace("_", "-") for name in idle)
        raise InputError(
            f"{arguments.run} is the model of a competition, whose plan says how rows are read: leave {flags} out"
        )
    source, *others = arguments.data_file
    if others:
        raise InputError(f"the model of a competition predicts one table, found {', '.join(arguments.data_file)}")
    model = model_folder.read(Path(arguments.run))
    table = files.table(Path(source))
    answers = model_folder.answers(model, model_folder.predict(model, table))
    name = arguments.id_column or model.plan.columns.id
    before = [Column(name, [row[name] for row in table.rows])] if name in table.columns else []
    prediction_files.write(output, model_folder.labels_of(model.plan), answers, before)
    yield f"{len(answers):,} rows by the mean of {len(model.members)} folds, written to {output}"


def _reading(arguments: PredictArguments) -> "DataConfig":
    from bidora_jax.data.settings import DataConfig

    return replace(DataConfig(), max_length=arguments.max_length, text_columns=arguments.text_columns)


def _said(found: "Predictions", several: bool) -> Iterator[str]:
    """How often each label, tag or type of span is predicted, a line for each adapter."""
    for adapter, answers in found.answers.items():
        counts = Counter(
            name for one in answers for name in one.get("labels", [one["label"]] if "label" in one else
                                                        [span["type"] for span in one.get("spans", [])])
        )  # fmt: skip
        shown = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(10))
        rest = f", … and {len(counts) - 10} more" if len(counts) > 10 else ""
        by = f" by {adapter}" if several or adapter.startswith("ensemble") else ""
        yield f"{len(answers):,} rows{by}" + (f": {shown}{rest}" if shown else "")


if __name__ == "__main__":
    command(main)
