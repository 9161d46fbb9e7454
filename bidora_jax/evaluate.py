"""python -m bidora_jax.evaluate --run DIR [--data-file F] [--json OUT]
python -m bidora_jax.evaluate --model DIR [--adapter DIR] [--quantization nf4] --data-file F [--json OUT]

The loss of a model, with or without an adapter, on a file: the token-weighted mean over all trained tokens. Several adapters
are evaluated in turn, with one compiled program, or as one: --ensemble, --average. A run is evaluated on its own test records,
or else on its validation records, and records are cut and counted as in its training.
"""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bidora_jax.errors import InputError, command, program, unusable
from bidora_jax.generation.served_model import Served, load_weights, open_folder
from bidora_jax.machine.files import write_whole
from bidora_jax.runs import classifying
from bidora_jax.runs.serving import as_trained, named, records_to_evaluate, settled


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a model is measured on."""

    data_file: tuple[str, ...] = ()
    """Records, in any kind of file or folder and in any shape that training takes; repeat it for several. With --run: the run's
    test records, or else its validation records."""
    columns: tuple[tuple[str, str], ...] = ()
    """A record's key and the column that holds it, where it has another name; repeat it for several."""
    text_columns: tuple[str, ...] = ()
    """Of a classifier: columns of the text, or of a pair of texts; repeat it for two. With --run: those of the run."""
    label_columns: tuple[str, ...] = ()
    """Of a classifier: columns of the label; repeat it for several. With --run: those of the run."""


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(Served, Measured):
    """How well a model predicts the answers in a file of records: its loss and perplexity. For example: --run runs/mine"""

    json: str = ""
    """Also write the result to this file."""
    max_length: int = 1024
    """Tokens that a record, or a chunk of one, may have."""
    long: Literal["split", "truncate", "drop", "refuse"] = "split"
    """What becomes of longer records, as in training: text and code are split into chunks, and what asks is cut at the end;
    all are cut; left out; refused. Each is counted."""
    batch_size: int = 4
    """Records evaluated at a time."""
    loss_on: Literal["response", "turns", "all"] = "response"
    """Trained tokens, those that count, of records that ask: of the last answer, of every answer of the assistant, or all."""
    token_cache: str = "auto"
    """Folder where encoded records are kept for the next time; auto: the user's cache folder, empty: nowhere."""


LIKE_TRAINING = ("max_length", "long", "loss_on", "token_cache")
"""What a run's settings say of records."""


def main(argv: list[str]) -> None:
    import tyro

    arguments = tyro.cli(EvaluateArguments, args=argv, prog=program("evaluate"), config=(tyro.conf.UseAppendAction,))
    arguments, remark = _settled(arguments, named(argv))
    labelled = classifying.is_classifier(arguments)
    if not labelled and (arguments.text_columns or arguments.label_columns):
        raise InputError("--text-columns and --label-columns are of classifiers, and this model is none: use --columns")
    results = evaluate_labels(arguments) if labelled else evaluate(arguments)
    if remark:
        print(remark)
    if wrong := [str(result["loss"]) for result in results if not math.isfinite(float(result["loss"]))]:
        raise unusable(f"the loss is {', '.join(wrong)}", arguments.model or arguments.run)
    if arguments.json:
        written = results[0] if len(results) == 1 else results
        write_whole(Path(arguments.json), json.dumps(written, indent=2) + "\n")
    if labelled:
        print("\n".join(_of_labels(results)))
        return
    for result in results:
        print(f"adapter     {result['adapter']}\n" * (len(results) > 1) + f"loss        {result['loss']:.6f}\n"
              f"perplexity  {result['perplexity']:.4f}\naccuracy    {result['accuracy']:.1%} of the tokens are the most "
              f"probable ones\ntokens      {result['tokens']:,} trained tokens of {result['records']:,} "
              f"record{'s' * (result['records'] != 1)}")  # fmt: skip
    first = results[0]
    became = "left out for more than" if arguments.long == "drop" else "cut at"
    counts = {
        f"{first['records_split']} records split into {first['chunks']} chunks": first["records_split"],
        f"{first['records_cut']} records {became} {arguments.max_length} tokens": first["records_cut"],
        f"{first['records_dropped']} dropped for want of a trained token": first["records_dropped"],
    }
    if any(counts.values()):
        print(", ".join(said for said, count in counts.items() if count))


def _of_labels(results: list[dict[str, Any]]) -> Iterator[str]:
    for result in results:
        yield from [f"adapter     {result['adapter']}"] * (len(results) > 1)
        found = {name: value for name, value in result.items() if isinstance(value, float)}
        width = max(11, *map(len, found))
        yield from (f"{name:<{width}} {value:.6f}" for name, value in found.items())
        yield f"{'records':<{width}} {result['records']:,}"


def _settled(arguments: EvaluateArguments, given: frozenset[str]) -> tuple[EvaluateArguments, str]:
    """The arguments with all that a run says of itself, and a line on the records that it chose."""
    arguments = settled(arguments, given)
    if not arguments.run:
        if not arguments.data_file:
            raise InputError(
                "evaluate needs records: give them with --data-file, or a run that has test records with --run"
            )
        return arguments, ""
    if arguments.data_file:
        return as_trained(arguments.run, arguments, given, LIKE_TRAINING), ""
    chosen = records_to_evaluate(arguments.run)
    arguments = as_trained(
        arguments.run, replace(arguments, data_file=chosen.sources), given, (*LIKE_TRAINING, "columns")
    )
    return arguments, f"records     {' and '.join(chosen.sources)}: {chosen.what}"


def evaluate_labels(arguments: EvaluateArguments) -> list[dict[str, Any]]:
    """The results of a classifier: loss and metrics of its task, a dictionary for each adapter."""
    _refuse_sizes(arguments)
    if arguments.combine or arguments.average:
        raise InputError(
            "evaluate scores classifiers one by one; predict --ensemble probabilities writes what several say as one"
        )
    classifier = classifying.open_classifier(arguments)
    data = classifying.reading(arguments, max_length=arguments.max_length, long=arguments.long)
    rows = classifier.read(arguments.data_file, data, labelled=True)
    print("\n".join(rows.notes), file=sys.stderr)
    scores = classifier.scores(rows.examples, arguments.batch_size)
    for note in dict.fromkeys(note for found in scores.values() for note in found.notes):
        print(note, file=sys.stderr)
    source = " and ".join(arguments.data_file)
    return [
        {
            "model": arguments.model,
            "adapter": name,
            "quantization": arguments.quantization,
            "data_file": source,
            **found.facts,
        }
        for name, found in scores.items()
    ]


def _refuse_sizes(arguments: EvaluateArguments) -> None:
    if arguments.batch_size < 1 or arguments.max_length < 2:
        raise InputError("--batch-size must be at least 1 and --max-length at least 2")
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        raise InputError(f"there is no folder for --json {arguments.json}; make it, or name another file")


def evaluate(arguments: EvaluateArguments) -> list[dict[str, float | int | str]]:
    """The results that the command prints: a dictionary for each adapter, or one for all of them as an ensemble or average."""
    from bidora_jax.data import file_batches
    from bidora_jax.tasks import evaluation

    _refuse_sizes(arguments)
    source = " and ".join(arguments.data_file)
    opened = open_folder(arguments)
    how = file_batches.Reading(*(getattr(arguments, name) for name in file_batches.Reading._fields))
    given, split, batches = file_batches.read(arguments.data_file, how, opened.tokenizer, opened.config.vocab_size)
    base, members = load_weights(arguments, opened)
    adapter = next((member.adapter for member in members.values() if member is not None), None)
    measure = evaluation.evaluator(opened.config, adapter, arguments.settings, arguments.combine)
    results = []
    for name, member in members.items():
        direction, magnitude = ({}, {}) if member is None else (member.direction, member.magnitude)
        result = measure(base, direction, magnitude, batches)
        results.append({
            "model": arguments.model, "adapter": name, "quantization": arguments.quantization,
            "data_file": source,
            "loss": result.loss, "perplexity": result.perplexity, "accuracy": result.accuracy,
            "tokens": result.tokens,
            "records": len(given), "records_split": len(split.chunks), "chunks": sum(split.chunks),
            "records_cut": split.n_truncated, "records_dropped": split.n_untrained,
        })  # fmt: skip
    return results


if __name__ == "__main__":
    command(main)
