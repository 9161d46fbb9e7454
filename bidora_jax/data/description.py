"""A run's data in words, for people to read before the run: records, lengths, and an epoch of the search."""

from collections.abc import Iterator, Sequence

import numpy as np

from bidora_jax.data import encoding, packing, statistics
from bidora_jax.data.batches import Examples
from bidora_jax.data.encoding import Example
from bidora_jax.data.labelled import PreparedLabels
from bidora_jax.data.preparation import Prepared
from bidora_jax.data.records import Record
from bidora_jax.data.settings import DataConfig
from bidora_jax.data.splits import Splits
from bidora_jax.data.tokenizer import Tokenizer

BAR = 40  # columns of the longest bar


def of_records(
    records: Sequence[Record], tokenizer: Tokenizer, data: DataConfig
) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """A head line for each record, and the pieces of its text with whether they are trained; of a split one, the first chunk."""
    for record in records:
        chunks = encoding.encode_each(
            record, tokenizer, max_length=data.max_length, loss_on=data.loss_on, long=data.long
        )
        pieces = statistics.pieces(chunks[0], tokenizer) if len(chunks[0].tokens) else []
        head = f"── {record.place or 'a record'}: {_became(chunks, data)}"
        yield head, [(visible(piece), trained) for piece, trained in pieces]


def _became(chunks: list[Example], data: DataConfig) -> str:
    """What becomes of a record, in words."""
    tokens, trained = sum(len(one.tokens) for one in chunks), sum(int(one.trained.sum()) for one in chunks)
    counts = f"{tokens} tokens, {trained} of them trained"
    if len(chunks) > 1:
        return f"{counts}, split into {len(chunks)} chunks of up to {data.max_length}, of which this is the first"
    cut = chunks[0].truncated
    left_out = ": it is left out" if not trained or (cut and data.long == "drop") else ""
    return f"{counts}{f', cut at {data.max_length}' * cut}{left_out}"


def of_lengths(splits: Splits, ready: Prepared, data: DataConfig) -> Iterator[str]:
    """Tokens, trained tokens and a histogram of the lengths of each split."""
    for name, part in ready.encoded.items():
        lengths = [len(example.tokens) for example in part.examples]
        trained = sum(int(example.trained.sum()) for example in part.examples)
        half, most = np.percentile(lengths, [50, 95])
        each = "a record or chunk" if part.chunks else "a record"
        yield (f"\n{name}: {sum(lengths):,} tokens, {trained:,} of them trained ({trained / sum(lengths):.1%}); {each} "
               f"has {half:.0f} (median), {most:.0f} (19 of 20 have no more), at most {max(lengths)}")  # fmt: skip
        bins = statistics.histogram(lengths)
        width, top = len(str(bins[-1].last)), max(one.records for one in bins)
        for one in bins:
            bar = "█" * round(BAR * one.records / top) or "▏" * bool(one.records)
            yield f"  {one.first:>{width}} to {one.last:>{width}}  {bar} {one.records}"
    several = statistics.several_answers(splits.train.records)
    if several and data.loss_on == "response":
        yield (f"\n{several} conversations of train have several answers, and only the last one is trained: "
               "--data.loss-on turns trains all of them")  # fmt: skip


def of_labels(ready: PreparedLabels, count: int) -> Iterator[str]:
    """The first records of train with their labels, the labels with their numbers of records, and the lengths."""
    for record in ready.splits.records("train")[:count]:
        yield f"── {record.place}: {record.target!r}"
        texts = record["words"] if "words" in record else [record["text"], *filter(None, [record.get("text_pair")])]
        yield visible(" ".join(texts) if "words" in record else "\n".join(texts))
    if ready.labels.type == "regression":
        scale = zip(ready.labels.names, ready.labels.mean, ready.labels.std, strict=True)
        yield from (f"\n{name}: mean {mean:.4g}, standard deviation {std:.4g}" for name, mean, std in scale)
    else:
        each = "words" if ready.labels.type == "tokens" else "records"
        yield f"\nlabels of train, in {each}:"
        yield from (f"  {name}  {round(n)}" for name, n in zip(ready.labels.names, ready.counts, strict=True))
    for name, part in ready.encoded.items():
        lengths = [len(example.tokens) for example in part.examples]
        half, most = np.percentile(lengths, [50, 95])
        yield (f"\n{name}: {len(lengths)} records, {sum(lengths):,} tokens; a record has {half:.0f} (median), {most:.0f} (19 of 20 "
               f"have no more), at most {max(lengths)}")  # fmt: skip


def of_epoch(
    ready: Prepared, data: DataConfig, two_levels: bool, *, splits: str, lower_steps: int, seed: int
) -> Iterator[str]:
    """Steps, tokens and padding of an epoch of the search, and what packing would change; `two_levels` is a bidora search."""

    def over(rows: dict[str, Examples]) -> statistics.Epoch:
        val = rows["val"] if two_levels else []
        return statistics.epoch(rows["train"], val, data, splits=splits, lower_steps=lower_steps, seed=seed)

    one = over(ready.rows)
    size, micro = data.batch_size * data.accumulation, data.accumulation
    chunked = any(part.chunks for part in ready.encoded.values())
    kind = "rows" if data.packing else "records or chunks" if chunked else "records"
    each = f"{size} {kind}" + (f" ({micro} micro-batches)" if micro > 1 else "")
    yield (f"\nsearch: {one.steps} steps an epoch of {each}{' on each level' * two_levels}, padded to "
           f"{', '.join(map(str, one.lengths))}; {one.tokens:,} tokens an epoch, and {one.padding:.1%} of the "
           f"{one.computed:,} that are computed are padding")  # fmt: skip
    if not data.packing:
        examples = {name: part.examples for name, part in ready.encoded.items()}
        packed, room = packing.pack_all(examples, data.max_length, seed=seed)
        other = over({**packed})
        yield (f"with data.packing: {other.steps} steps an epoch of {size} rows of {room} tokens, {other.padding:.1%} "
               "of them padding")  # fmt: skip


def visible(text: str) -> str:
    """Control characters as their escapes, so that a record can't steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
