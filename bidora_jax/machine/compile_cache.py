"""Compiled programs kept between runs: a second run of the same shapes starts without compiling.

JAX's persistent cache, on by default for `train`. XLA compiles for the processor it finds, so the folder for a CPU has the
CPU's features in its name. Machines that share a home would otherwise run each other's instructions. JAX never writes over an
entry, so a damaged one is removed when JAX warns of it: without that, every later run would warn and compile anew. It writes an
entry in place, so a young one that cannot be read may be half of what another run is writing, and is left alone.
"""

import functools
import glob
import hashlib
import math
import os
import platform
import re
import sys
import time
import warnings
from pathlib import Path
from typing import TextIO

import jax

from bidora_jax.machine import facts
from bidora_jax.machine.files import chosen_folder, user_cache

YOUNG = 60.0
"""Seconds after its last write. If its writer died, a run after that removes the entry."""


def keep_compiled(setting: str) -> Path | None:
    """Switches the cache on as `compilation_cache` says: a folder, "auto" for the user's cache folder, "" for none.

    Returns the folder. One that the environment names for JAX already (JAX_COMPILATION_CACHE_DIR) is kept instead.
    """
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if named:
        _remove_damaged(Path(named))
        return Path(named)
    if not setting:
        return None
    folder = chosen_folder(setting, default_folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # such as a machine without a home
        _say(
            f"compiled programs are not kept, as {folder} cannot be made ({error.strerror}): every run compiles anew; "
            "--compilation-cache names another folder"
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # the many small programs of a start add up
    _remove_damaged(folder)
    return folder


@functools.cache
def _remove_damaged(folder: Path) -> None:
    """From here on, JAX's warning of an unreadable entry removes the entries of that program, and is one line. The warning comes
    before the program is compiled and written again, and names the program but not the entry."""
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        found = re.match(r"Error reading persistent compilation cache entry for '([^']+)': ", str(message))
        if found is None:
            shown(message, category, filename, lineno, file, line)
            return
        entries = list(folder.glob(f"{glob.escape(found[1])}-*"))
        if any(_age(entry) < YOUNG for entry in entries):
            return
        for entry in entries:
            entry.unlink(missing_ok=True)
        _say(f"a compiled program in {folder} is damaged; it is removed, and compiled anew")

    warnings.showwarning = show


def _say(line: str) -> None:
    """To stderr: stdout may be a file of answers."""
    print(line, file=sys.stderr)


def _age(entry: Path) -> float:
    """Seconds since it was written; of one that is gone, which another run has removed, as if it were old."""
    try:
        return time.time() - entry.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def default_folder() -> Path:
    """bidora_jax/ in the user's cache folder, by JAX version and, on a CPU, by its features."""
    backend = jax.default_backend()
    kind = f"cpu-{_features()}" if backend == "cpu" else backend
    return user_cache() / f"jax-{jax.__version__}-{kind}"


def _features() -> str:
    """A short name for the instructions this processor has."""
    flags = facts.cpu_line(*facts.FLAGS) or platform.processor()
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]
