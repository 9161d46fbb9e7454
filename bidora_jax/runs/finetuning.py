"""finetune(model=…, train=…, …): a training run from Python, by the functions that `python -m bidora_jax.train` stands on.

Rows that the program holds are kept as data/train.jsonl, data/val.jsonl and data/test.jsonl of the run folder, and the run reads
those. So resume, export, evaluate and report work from the command line later, and the run is the one that the command line
would make of the same rows in a file.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from bidora_jax.config import Config, parse_call
from bidora_jax.data.sources import in_memory
from bidora_jax.errors import InputError
from bidora_jax.machine.files import write_whole
from bidora_jax.runs.finetuned_model import FinetunedModel
from bidora_jax.runs.launch import Request, checked, launch
from bidora_jax.runs.sharing import Shared


def finetune(
    config: Any = None,
    *,
    train: Any = None,
    val: Any = None,
    test: Any = None,
    resume: bool = False,
    auto: bool = False,
    shared: Shared | None = None,
    **settings: Any,
) -> FinetunedModel:
    """Trains, and returns the result.

    train, val, test: a path (several in a list), a list of dictionaries, a datasets.Dataset or a pandas frame. val may also be a
    number below 1, the share of train to validate on. settings: the short flags of `train` (model, output, method, rank, lr,
    epochs, batch_size, …) and the dotted names, **{"inner.clip": 0.5}. config: a configuration file, a ConfigDict, a Config or a
    dictionary, which the settings go over. resume goes on with the run in output; auto fits the run to the device. shared: a
    `Shared()` that several calls are given, so that they read their model once and compile equal steps once.

    Without an output the run folder is a fresh runs/DATE_TIME. Raises InputError for what is wrong before anything is written, and
    RunError where a run has to stop, as for a loss that is no number.
    """
    data = {use: given for use, given in (("train", train), ("val", val), ("test", test)) if given is not None}
    chosen, texts = _sources(data, settings)
    found, names = parse_call(config, {**settings, **chosen})
    if texts and resume:
        raise InputError(f"resume goes on with the rows in the run folder: leave {' and '.join(texts)} out")
    if not resume and found.output_dir == Config.output_dir and "output_dir" not in names:
        found = replace(found, output_dir=_fresh())
        print(f"run folder {found.output_dir}")
    folder = Path(found.output_dir)
    files = {use: _file(folder, use) for use in texts}
    found = replace(found, data=replace(found.data, **{f"{use}_file": str(path) for use, path in files.items()}))
    request = Request(names, resume=resume, auto=auto)
    found, request = checked(found, request)
    names_of_rows = {str(path): use for use, path in files.items()}
    with in_memory.in_words_of_the_call(names_of_rows), kept(folder, {files[use]: texts[use] for use in texts}):
        launch(found, request, shared)
    return FinetunedModel.of_run(folder)


def _sources(data: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The settings that name the sources, and the rows of those that are held in memory as JSONL by their use."""
    chosen, texts = {}, {}
    for use, given in data.items():
        name = f"data.{use}_file"
        if both := [other for other in (f"{use}_file", name, *["dataset"] * (use == "train")) if other in settings]:
            raise InputError(f"{use} and {both[0]} both set {name}: give one")
        if use == "val" and isinstance(given, float):
            chosen |= {"data.val_fraction": given, name: ""}
            continue
        path = in_memory.paths(given)
        if path is None:
            texts[use] = in_memory.json_lines(use, given)
        # The run folder is not known yet, and a source that is there has to be known as one.
        chosen[name] = use if path is None else path
        if use == "val" and "data.val_fraction" not in settings:
            chosen["data.val_fraction"] = 0.0
    return chosen, texts


def _file(folder: Path, use: str) -> Path:
    return folder / "data" / f"{use}.jsonl"


def _fresh() -> str:
    """runs/DATE_TIME, which is not there yet."""
    plain = first = f"runs/{datetime.now():%Y-%m-%d_%H-%M-%S}"
    number = 1
    while Path(first).exists():
        number += 1
        first = f"{plain}-{number}"
    return first


@contextmanager
def kept(folder: Path, rows: Mapping[Path, bytes]) -> Iterator[None]:
    """Writes files of rows for the run that the block begins in the folder.

    They and the folders made for them are gone again when the block raises before the run has begun.
    """
    made = [path for path in (folder / "data", folder, *folder.parents) if rows and not path.exists()]
    try:
        for file, text in rows.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, text)
        yield
    except BaseException:
        if not (folder / "config.json").exists():
            for file in rows:
                file.unlink(missing_ok=True)
            for path in made:
                with suppress(OSError):  # not made yet, or another process has put something there
                    path.rmdir()
        raise
