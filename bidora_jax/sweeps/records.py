"""Which records train, which judge, and which test. No run of a sweep reads the records that judge it.

    --judge-file F      F judges; a run trains with the validation records that its configuration names
    data.val_file       judges. A bidora run splits the upper level's records off its own training records: data.val_fraction of
                        them, 0.2 without it. lora and dora train on all of them, and keep their last step
    data.val_fraction   the same, with a share of data.train_file, split off once for all runs and kept in the sweep's folder. With
                        data.duplicates drop, both are kept there: copies of judging and of test records do not train

bidora trains the magnitude on its validation records and the direction too in its retrain; lora and dora choose their step by
theirs. A score on those would be one on training records for the one method, and not for the other.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bidora_jax.config import Config
from bidora_jax.errors import InputError

UPPER = 0.2
"""Share of the training records on the upper level of bidora, as in the paper."""
Source = str | tuple[str, ...]


class Records(NamedTuple):
    train: Source
    judge: Source
    test: Source
    """Empty where there are none."""
    apart: bool
    """Whether the judging records are the configuration's validation records, which runs then have not."""
    divided: bool
    """Whether both are files in the sweep's folder that `divided` makes."""


def chosen(base: Config, judge_file: tuple[str, ...], folder: Path) -> Records:
    """The records of a sweep in this folder. InputError where nothing can judge."""
    data = base.data
    if judge_file:
        return Records(data.train_file, judge_file, data.test_file, False, False)
    if data.val_file and data.duplicates != "drop":
        return Records(data.train_file, data.val_file, data.test_file, True, False)
    if not data.val_file and not data.val_fraction:
        raise InputError(
            "nothing judges the points of the sweep: set data.val_file or data.val_fraction in the configuration, or give "
            "--judge-file"
        )
    if data.weights:
        raise InputError(
            "data.weights weigh sources, and a sweep makes one of them here: give the judging records as --judge-file"
        )
    train, judge = (str(folder / "data" / f"{name}.jsonl") for name in ("train", "judge"))
    return Records(train, judge, data.test_file, True, True)


def of_run(records: Records, config: Config) -> Config:
    """The configuration of a run on these records; all else stays."""
    data = replace(config.data, test_file="")
    if records.apart:
        upper = (data.val_fraction or UPPER) if config.adapter.method == "bidora" else 0.0
        data = replace(data, train_file=records.train, val_file="", val_fraction=upper)
    if data.val_file or data.val_fraction:
        return replace(config, data=data)
    return replace(config, data=replace(data, group_column=""), search=replace(config.search, patience=0))


def divided(base: Config) -> tuple[bytes, bytes]:
    """The rows that train and those that judge, as JSON lines: data.val_fraction of train_file, by the seed, or val_file. With
    data.duplicates drop, copies of those that judge and of test records do not train."""
    from bidora_jax.data import labelled_records
    from bidora_jax.data.sources import in_memory, sources
    from bidora_jax.data.sources.rows import SourceRow
    from bidora_jax.runs import assembly

    data = replace(base.data, buckets=1, padded_lengths=())
    config = replace(base, data=data)
    labelled = assembly.read_labelled_data(config)
    splits = assembly.read_data(config).splits if labelled is None else labelled.splits.splits
    expected = sources.PLAIN if labelled is None else labelled_records.expected_files(data, base.task.type)
    given = filter(None, (data.train_file, data.val_file))
    scanned = [row for one in given for part in sources.scan_each(one, expected).values() for row in part]
    rows = {row.place: row.value for row in scanned if isinstance(row, SourceRow)}
    parts = [[record.place for record in part.records] for part in (splits.train, splits.val)]
    if any(place not in rows for part in parts for place in part):
        raise InputError("the rows of data.train_file can't be told apart: give the judging records as --judge-file")
    train, judge = (in_memory.json_lines("data.train_file", [rows[place] for place in part]) for part in parts)
    return train, judge
