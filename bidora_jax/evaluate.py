"""python -m bidora_jax.evaluate --model DIR [--adapter DIR] [--quantization nf4] --data-file F [--json OUT]

The loss of a model, with or without an adapter, on a file: the token-weighted mean over all trained tokens. Several adapters
are evaluated in turn, with one compiled program, or as one: --ensemble, --average.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bidora_jax.errors import InputError, command, program
from bidora_jax.models.settings import ModelConfig


@dataclass(frozen=True)
class EvaluateArguments:
    """Loss and perplexity of a model on a file of records."""

    model: str
    """Model folder, or the name of a model on the Hugging Face hub."""
    data_file: str
    """Records, in any kind of file or folder and in any shape that training takes."""
    columns: tuple[tuple[str, str], ...] = ()
    """A record's key and the column that holds it, where it has another name; repeat it for several."""
    adapter: tuple[str, ...] = ()
    """PEFT adapter folder, such as the adapter/ of a run, or NAME=DIR; repeat it for several, which are evaluated in turn."""
    ensemble: Literal["none", "logits", "probabilities"] = "none"
    """Evaluate several adapters as one, by the mean of their logits or of their probabilities."""
    average: bool = False
    """Put the mean of the merged weights in the place of several adapters."""
    weight: tuple[float, ...] = ()
    """Share of an adapter in --average; repeat it, one for each adapter. Equal shares without it."""
    json: str = ""
    """Also write the result to this file."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype of the weights and of the products; auto keeps that of the files."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """Quantise the model's linear layers first; a folder that bitsandbytes quantised is read as it is."""
    double_quant: bool = True
    """nf4: keep the block scales in 8 bits too."""
    max_length: int = 1024
    """Tokens that a record, or a chunk of one, may have."""
    long: Literal["split", "truncate", "drop", "refuse"] = "split"
    """What becomes of longer records, as in training: text and code are split into chunks, and what asks is cut at the end;
    all are cut; left out; refused. Each is counted."""
    batch_size: int = 4
    """Records evaluated at a time."""
    loss_on: Literal["response", "turns", "all"] = "response"
    """Tokens that count in records that ask: the last answer, every answer of the assistant, or all."""
    token_cache: str = "auto"
    """Folder where encoded records are kept for the next time; auto: the user's cache folder, empty: nowhere."""


def main(argv: list[str]) -> None:
    import tyro

    arguments = tyro.cli(EvaluateArguments, args=argv, prog=program("evaluate"), config=(tyro.conf.UseAppendAction,))
    results = evaluate(arguments)
    for result in results:
        print(f"adapter     {result['adapter']}\n" * (len(results) > 1) + f"loss        {result['loss']:.6f}\n"
              f"perplexity  {result['perplexity']:.4f}\ntokens      {result['tokens']:,}")  # fmt: skip
    first = results[0]
    became = "left out for more than" if arguments.long == "drop" else "cut at"
    counts = {
        f"{first['records_split']} records split into {first['chunks']} chunks": first["records_split"],
        f"{first['records_cut']} records {became} {arguments.max_length} tokens": first["records_cut"],
        f"{first['records_dropped']} dropped for want of a trained token": first["records_dropped"],
    }
    if any(counts.values()):
        print(", ".join(said for said, count in counts.items() if count))
    if arguments.json:
        temporary = Path(arguments.json + ".tmp")
        written = results[0] if len(results) == 1 else results
        temporary.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        temporary.replace(arguments.json)


def evaluate(arguments: EvaluateArguments) -> list[dict[str, float | int | str]]:
    """What the command prints, as a dictionary for each adapter, or for what stands in the place of all."""
    from bidora_jax.models import ensembles, hf
    from bidora_jax.training import data, evaluation, records, tokencache

    if arguments.batch_size < 1 or arguments.max_length < 2:
        raise InputError("--batch-size must be at least 1 and --max-length at least 2")
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        raise InputError(f"there is no folder for --json {arguments.json}; make it, or name another file")
    given = records.read_records(arguments.data_file, arguments.columns)
    folder = hf.resolve_folder(arguments.model)
    config, tokenizer = hf.read_config(folder), records.load_tokenizer(folder)
    combine = None if arguments.ensemble == "none" else arguments.ensemble
    members = ensembles.load(arguments.adapter, config)
    ensembles.check(members, combine, arguments.average, arguments.weight)
    how = {"max_length": arguments.max_length, "loss_on": arguments.loss_on, "long": arguments.long}
    split, kept = tokencache.encode_all(given, tokenizer, arguments.token_cache, **how)
    if kept:
        print(kept, file=sys.stderr, flush=True)
    settings = ModelConfig(
        dtype=arguments.dtype, quantization=arguments.quantization, double_quant=arguments.double_quant
    )
    base = hf.load(settings, folder, config)
    base, chosen = ensembles.choose(base, members, combine, arguments.average, arguments.weight)
    buckets = data.bucket_lengths([len(example.tokens) for example in split.examples], 4)
    batches = list(data.full_pass(split.examples, buckets, arguments.batch_size, records.pad_id(tokenizer)))
    adapter = next(iter(chosen.values())).adapter if chosen else None
    measure = evaluation.evaluator(config, adapter, settings, combine)
    results = []
    for name, (_, direction, magnitude) in (dict(chosen) or {"": (None, {}, {})}).items():
        result = measure(base, direction, magnitude, batches)
        results.append({
            "model": arguments.model, "adapter": name, "quantization": arguments.quantization,
            "data_file": arguments.data_file,
            "loss": result.loss, "perplexity": result.perplexity, "tokens": result.tokens,
            "records": len(given), "records_split": len(split.chunks), "chunks": sum(split.chunks),
            "records_cut": split.n_truncated, "records_dropped": split.n_untrained,
        })  # fmt: skip
    return results


if __name__ == "__main__":
    command(main)
