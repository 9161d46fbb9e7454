"""python -m bidora_jax.data --config configs/NAME.py [--SECTION.FIELD VALUE …] [--records N]

What a run will train on, before it is paid for: the first records with their trained tokens marked, lengths, what is split,
cut, dropped or there twice, tokens and steps of an epoch, and how much of it is padding. Takes the flags of train, refuses what
train would refuse, and reads no weights.
"""

import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from bidora_jax.config import Config, parse_data
from bidora_jax.errors import InputError, command

if TYPE_CHECKING:
    from rich.console import Console

    from bidora_jax.data.encoding import Example
    from bidora_jax.data.preparation import Prepared
    from bidora_jax.data.settings import DataConfig
    from bidora_jax.data.splits import Splits


BAR = 40  # columns of the longest bar
TRAINED, MASKED = "bold green", "dim"


class Shown(NamedTuple):
    """All that there is to show."""

    splits: "Splits"
    ready: "Prepared"
    tokenizer: object


def main(argv: list[str]) -> None:
    from rich.console import Console

    from bidora_jax.runs.checks import check

    config, count = parse_data(argv)
    check(config)
    if count < 0:
        raise InputError(f"--records must be at least 0, found {count}")
    shown = read(config)
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    for line in shown.ready.said:
        console.print(line, markup=False)
    show_records(console, config, shown, count)
    show_lengths(console, config, shown)
    show_epoch(console, config, shown)


def read(config: Config) -> Shown:
    """The data as train would take it, with the tokenizer and config.json of the model and nothing else of it."""
    from bidora_jax.data import preparation, splits
    from bidora_jax.data.tokenizer import load_tokenizer
    from bidora_jax.models.formats import hf_config

    found = splits.load(config.data, config.seed)
    folder = hf_config.resolve_folder(config.model.path, weights=False)
    positions, tokenizer = hf_config.read_config(folder).max_position_embeddings, load_tokenizer(folder)
    return Shown(found, preparation.prepare(config.data, found, tokenizer, positions, config.seed), tokenizer)


def show_records(console: "Console", config: Config, shown: Shown, count: int) -> None:
    """The first records of train, their trained tokens in another colour or between ⟦ and ⟧; of one that is split, a chunk."""
    from rich.text import Text

    from bidora_jax.data import encoding, statistics

    coloured = console.is_terminal and not os.environ.get("NO_COLOR")
    data = config.data
    for record in shown.splits.train.records[:count]:
        chunks = encoding.encode_each(
            record, shown.tokenizer, max_length=data.max_length, loss_on=data.loss_on, long=data.long
        )
        console.print(f"── {record.place or 'a record'}: {_became(chunks, data)}", markup=False)
        text, example = Text(), chunks[0]
        for piece, is_trained in statistics.pieces(example, shown.tokenizer) if len(example.tokens) else ():
            if coloured:
                text.append(_visible(piece), TRAINED if is_trained else MASKED)
            else:
                text.append(f"⟦{_visible(piece)}⟧" if is_trained else _visible(piece))
        console.print(text)
    if count and not coloured:
        console.print("(trained text stands between ⟦ and ⟧)")


def _became(chunks: "list[Example]", data: "DataConfig") -> str:
    """What becomes of a record, in words."""
    tokens, trained = sum(len(one.tokens) for one in chunks), sum(int(one.trained.sum()) for one in chunks)
    said = f"{tokens} tokens, {trained} of them trained"
    if len(chunks) > 1:
        return f"{said}, split into {len(chunks)} chunks of up to {data.max_length}, of which this is the first"
    cut = chunks[0].truncated
    left_out = ": it is left out" if not trained or (cut and data.long == "drop") else ""
    return f"{said}{f', cut at {data.max_length}' * cut}{left_out}"


def show_lengths(console: "Console", config: Config, shown: Shown) -> None:
    """Tokens, trained tokens and lengths of each split."""
    import numpy as np

    from bidora_jax.data import statistics

    for name, part in shown.ready.encoded.items():
        lengths = [len(example.tokens) for example in part.examples]
        trained = sum(int(example.trained.sum()) for example in part.examples)
        half, most = np.percentile(lengths, [50, 95])
        each = "a record or chunk" if part.chunks else "a record"
        console.print(f"\n{name}: {sum(lengths):,} tokens, {trained:,} of them trained ({trained / sum(lengths):.1%}); {each} "
                      f"has {half:.0f} (median), {most:.0f} (19 of 20 have no more), at most {max(lengths)}")  # fmt: skip
        bins = statistics.histogram(lengths)
        width, top = len(str(bins[-1].last)), max(one.records for one in bins)
        for one in bins:
            bar = "█" * round(BAR * one.records / top) or "▏" * bool(one.records)
            console.print(f"  {one.first:>{width}} to {one.last:>{width}}  {bar} {one.records}")
    several = statistics.several_answers(shown.splits.train.records)
    if several and config.data.loss_on == "response":
        console.print(f"\n{several} conversations of train have several answers, and only the last one is trained: "
                      "--data.loss-on turns trains all of them")  # fmt: skip


def show_epoch(console: "Console", config: Config, shown: Shown) -> None:
    """Steps, tokens and padding of an epoch, and what packing changes or would."""
    from bidora_jax.data import packing, statistics

    bidora = config.adapter.method == "bidora"
    rows = shown.ready.rows

    def over(rows):
        val, lower_steps = rows["val"] if bidora else [], config.search.lower_steps
        return statistics.epoch(rows["train"], val, config.data, lower_steps=lower_steps, seed=config.seed)

    one = over(rows)
    size, micro = config.data.batch_size * config.data.accumulation, config.data.accumulation
    chunked = any(part.chunks for part in shown.ready.encoded.values())
    kind = "rows" if config.data.packing else "records or chunks" if chunked else "records"
    each = f"{size} {kind}" + (f" ({micro} micro-batches)" if micro > 1 else "")
    console.print(f"\nsearch: {one.steps} steps an epoch of {each}{' on each level' * bidora}, padded to "
                  f"{', '.join(map(str, one.lengths))}; {one.tokens:,} tokens an epoch, and {one.padding:.1%} of the "
                  f"{one.computed:,} that are computed are padding")  # fmt: skip
    if not config.data.packing:
        examples = {name: part.examples for name, part in shown.ready.encoded.items()}
        packed, room = packing.pack_all(examples, config.data.max_length, seed=config.seed)
        other = over(packed)
        console.print(f"with data.packing: {other.steps} steps an epoch of {size} rows of {room} tokens, {other.padding:.1%} "
                      "of them padding")  # fmt: skip


def _visible(text: str) -> str:
    """Control characters as their escapes, so that a record can't steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


if __name__ == "__main__":
    command(main)
