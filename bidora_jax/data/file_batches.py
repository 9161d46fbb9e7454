"""A file of records -> the batches of one pass over it, on which a model is scored: by `evaluate`, and from Python."""

import sys
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from bidora_jax.data.batches import Batch
    from bidora_jax.data.encoding import Split
    from bidora_jax.data.records import Record

LossOn = Literal["response", "turns", "all"]
Long = Literal["split", "truncate", "drop", "refuse"]
LENGTHS = 4
"""Padded lengths, at most."""


class Reading(NamedTuple):
    """How the records are read; the defaults are those of `evaluate`."""

    columns: Any = ()
    max_length: int = 1024
    loss_on: LossOn = "response"
    long: Long = "split"
    batch_size: int = 4
    token_cache: str = ""
    """Folder where encoded records are kept; empty: nowhere."""


class FileBatches(NamedTuple):
    records: "list[Record]"
    split: "Split"
    """The same as tokens, with what became of long records."""
    batches: "list[Batch]"


def read(source: str | tuple[str, ...], how: Reading, tokenizer: Any, vocab_size: int) -> FileBatches:
    """Every record once. What a user should know of them is printed on stderr.

    InputError for records that can't be used, and for a token that is none of the model's `vocab_size`.
    """
    from bidora_jax.data import encoding, token_cache
    from bidora_jax.data.batches import BatchForm, bucket_lengths, full_pass
    from bidora_jax.data.records import unused_keys
    from bidora_jax.data.tokenizer import check_known, pad_id

    columns = tuple(how.columns.items()) if isinstance(how.columns, dict) else tuple(how.columns)
    given = encoding.read_records(source, columns)
    settings = {"max_length": how.max_length, "loss_on": how.loss_on, "long": how.long}
    split, kept = token_cache.encode_all(given, tokenizer, how.token_cache, **settings)
    for line in (*unused_keys(given), *encoding.remarks_of(split, given), *([kept] if kept else [])):
        print(line, file=sys.stderr, flush=True)
    name = source if isinstance(source, str) else " and ".join(source)
    check_known((example.tokens for example in split.examples), tokenizer, vocab_size, name)
    buckets = bucket_lengths([len(example.tokens) for example in split.examples], LENGTHS)
    form = BatchForm(1, how.batch_size, pad_id(tokenizer))
    return FileBatches(given, split, list(full_pass(split.examples, buckets, form)))
