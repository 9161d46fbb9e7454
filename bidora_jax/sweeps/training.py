"""A run of a sweep, by the ordinary run code, with what it prints in a file beside its folder."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bidora_jax.config import Config
from bidora_jax.runs.folder import read_facts

if TYPE_CHECKING:
    from bidora_jax.runs.sharing import Shared


def train(config: Config, folder: Path, shared: "Shared") -> None:
    """A whole run in the folder, or the rest of one that was begun there."""
    from bidora_jax.runs.finetuning import finetune

    begun = folder / "config.json"
    if not begun.is_file():
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed before it wrote the first file
        finetune(config, output=folder, shared=shared)
    elif "finished" not in read_facts(folder):
        finetune(begun, output=folder, resume=True, shared=shared)


@contextlib.contextmanager
def logged(folder: Path) -> Iterator[None]:
    """What the block prints goes to the file beside the run folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        (folder.parent / f"{folder.name}.log").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield
