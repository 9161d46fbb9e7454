"""What `data.*` means in a configuration."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """Where records come from and how they become batches. A source is a file (.jsonl, .json, .csv, .tsv, .parquet, .txt, text
    files also packed), a folder (of .txt files, or saved by datasets) or ORG/NAME:CONFIGURATION@SPLIT on the hub."""

    train_file: str | tuple[str, ...] = ""
    """Source of the records that the direction is trained on, or several that are mixed."""
    weights: tuple[float, ...] = ()
    """One for each source of train_file: how often its records are seen in an epoch. Of 2.5, the half is a fixed draw by the
    seed. Once each without it."""
    val_file: str | tuple[str, ...] = ""
    """Records the magnitude is trained on (bidora), or that choose the best step (lora, dora)."""
    val_fraction: float = 0.0
    """Without a val_file: the share of train_file that is split off as validation (0.2 in the BiDoRA paper), copies of a
    record together. With labels, every class is in both parts where its rows allow, in the same shares."""
    test_file: str | tuple[str, ...] = ""
    """Records to write answers to before and after training; their exact matches are counted."""
    columns: tuple[tuple[str, str], ...] = ()
    """Pairs of a record's key and the column that holds it, where it has another name: instruction question output answer."""
    text_columns: tuple[str, ...] = ()
    """Of a task with labels: the column of the text, or the two of a pair. By number in a table without a header, 1 the first.
    Without it: those whose names say so, such as text, sentence1 and sentence2, tokens."""
    label_columns: tuple[str, ...] = ()
    """Of a task with labels: the column of the label, or several of 0 and 1, of shares, or of numbers. Without it: label, tags,
    target, …"""
    group_column: str = ""
    """Of a task with labels: rows that have the same value here go to the same side of a val_fraction."""
    duplicates: Literal["report", "drop", "refuse"] = "report"
    """Records that are in two splits, or twice in one: said; left out of train; or no reason to start at all."""
    max_samples: int = 0
    """At most this many records of train_file, the first ones; 0 takes all. A val_fraction is split off them."""
    test_limit: int = 0
    """At most this many test records; 0 takes all."""
    max_length: int = 1024
    """Tokens that a record, or a chunk of one, may have."""
    long: Literal["split", "truncate", "drop", "refuse"] = "split"
    """What becomes of longer records. split: text and code become chunks, and nothing is lost; records that ask can't be
    split and are cut at the end. truncate: all are cut; drop: left out; refuse: no reason to start. Each is counted."""
    token_cache: str = "auto"
    """Folder where encoded records are kept for later runs on them; auto: the user's cache folder, empty: nowhere."""
    batch_size: int = 4
    """Records in a micro-batch, on each level; a chunk counts as one."""
    accumulation: int = 1
    """Micro-batches in an optimiser step, on each level; the loss is the mean over all their trained tokens."""
    loss_on: Literal["response", "turns", "all"] = "response"
    """Trained tokens of records that ask: response, of a conversation the last answer; turns, every answer of the
    assistant; all, the questions too."""
    packing: bool = False
    """Put several records into one row of up to max_length tokens, where they don't see each other; batch_size counts rows."""
    buckets: int | Literal["auto"] = "auto"
    """At most this many padded lengths, shared by train and val: every program is compiled once for each. auto: as many as make
    compiling plus training shortest."""
    padded_lengths: tuple[int, ...] = ()
    """The padded lengths themselves, ascending, in place of buckets: so runs on different records share their programs."""
