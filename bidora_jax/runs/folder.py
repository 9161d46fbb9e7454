"""A run folder: its configuration, and run.json, which holds the facts that belong to no step.

config.json                                           written before anything else
run.json   started, device, versions, parameters, records        at the start
           stands_on: checksums of data and base (runs/foundation.py)
           validation_before: loss, accuracy, tokens of the model before its first step; of a classifier loss, metrics, records
           criterion: name, higher_is_better of what the best step is chosen by, where it is not the loss
           last_step_kept: where the best one is not chosen
           peak_memory, result_loss, result_accuracy, test, exact_matches, finished     at the end
outcomes.json   what a classifier makes of validation and test (tasks/outcomes.py)     at the end
.lock      held by the process that trains; the system lets go of it however that process ends
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from bidora_jax.config import Config, read, resolve, to_json
from bidora_jax.errors import InputError
from bidora_jax.machine.files import naming, read_json, write_whole
from bidora_jax.runs import lengthening


def run_config(run: str) -> Config:
    """The configuration that a run folder was made with."""
    saved = Path(run) / "config.json"
    if not saved.is_file():
        raise InputError(f"{run} is not a run folder: {saved} does not exist; name the output_dir of a training run")
    return resolve(read(str(saved)))


def start_folder(config: Config) -> None:
    """Makes the run folder with its config.json; in one that is there, a run that goes on may have become longer."""
    folder = Path(config.output_dir)
    target = folder / "config.json"
    if target.exists():
        begun = run_config(str(folder))
        if lengthening.changed(begun, config):
            write_whole(target, to_json(replace(begun, search=config.search, retrain=config.retrain)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_whole(target, to_json(config))
    except OSError:  # a folder that is not empty would be refused by the next try
        with suppress(OSError):  # it holds the rows of a call (runs/finetuning.py), which takes them out itself
            folder.rmdir()
        raise


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in the folder. InputError, naming it, when one does already."""
    import fcntl

    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder} is in use: {_holder(file)} trains in it; wait until it has ended, stop it, or choose another "
                "--output-dir"
            ) from None
        except OSError as error:  # some network file systems
            print(f"{folder} cannot be locked ({error.strerror}): let one process train in it at a time")
        said = f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}\n"
        with naming(folder / LOCK):
            file.truncate(0)
            os.write(file.fileno(), said.encode())  # a buffer would meet the full disk once more when it is closed
        yield


def _holder(file: TextIO) -> str:
    """Who holds the lock. The name is written when the lock is held: one that is just begun has none yet, or a dead process's."""
    said = ""
    for _ in range(10):
        time.sleep(0.2)
        file.seek(0)
        said = file.read().strip()
        if said:
            break
    return said or "another process"


LOCK = ".lock"
FACTS_FILE = "run.json"


def write_facts(folder: Path, **facts: Any) -> None:
    """Sets these facts and keeps the others."""
    write_whole(folder / FACTS_FILE, json.dumps(read_facts(folder) | facts, indent=2) + "\n")


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts that were written so far."""
    file = folder / FACTS_FILE
    return read_json(file, "remove it, and the facts of the run are written anew") if file.is_file() else {}
