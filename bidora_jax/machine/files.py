"""Files and folders appear whole or not at all; a missing file is refused with a remedy; where the user's cache folder is.

Files and folders are written under a temporary name beside their place and renamed when they are complete. A full disk, an
error or Ctrl-C leaves nothing behind; a killed process leaves only a hidden `.NAME.tmp-PID`, which goes when NAME is written again.
"""

import ctypes
import glob
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bidora_jax import strict_json
from bidora_jax.errors import InputError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError of the block this path, where it has none: a full disk is met by a write, which knows no name."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def staged(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A fresh folder to write into; it becomes `folder` when the block ends, and is removed when the block raises.

    Missing parents are made at the end only. InputError when `folder` is a file, or is not empty and `replace` is off.
    """
    folder = Path(folder).absolute()
    _refuse_occupied(folder, replace)
    parent = next(parent for parent in folder.parents if parent.exists())
    if not parent.is_dir():
        raise InputError(f"cannot write {folder}: {parent} is a file, not a folder; choose another output folder")
    fresh = parent / f".{folder.name}.tmp-{os.getpid()}"
    for left in _left_by_the_dead(fresh):
        shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        with naming(folder):
            yield fresh
        folder.parent.mkdir(parents=True, exist_ok=True)
        _move_into_place(fresh, folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _left_by_the_dead(fresh: Path) -> list[Path]:
    """Temporaries of the same name that processes of this machine left when they were killed, a minute ago or longer: a process of
    another machine may be writing to the same folder now."""
    stem, found = fresh.name.rpartition("-")[0], []
    for path in fresh.parent.glob(f"{glob.escape(stem)}-*"):
        number = path.name.rpartition("-")[2]
        with suppress(FileNotFoundError):  # another one took it away
            if number.isdecimal() and not _lives(int(number)) and time.time() - path.stat().st_mtime > 60:
                found.append(path)
    return found


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _refuse_occupied(folder: Path, replace: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"cannot write the folder {folder}: a file has that name; choose another output folder")
    if folder.is_dir() and not replace and any(folder.iterdir()):
        raise InputError(f"the output folder {folder} is not empty; empty it or choose another output folder")


def _move_into_place(fresh: Path, folder: Path) -> None:
    """Renames. A folder can't be renamed onto a full one: where the system can, the two change places, and else the old one steps
    aside first."""
    if not folder.exists():
        fresh.rename(folder)
        return
    if _exchanged(fresh, folder):
        shutil.rmtree(fresh)
        return
    old = fresh.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)  # of a process that was killed between the two lines that follow
    folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the two names have changed places, in one call of Linux; some of its file systems can't."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to; the file becomes `path` when the block ends, and is removed when the block raises."""
    fresh = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    for left in _left_by_the_dead(fresh):
        left.unlink(missing_ok=True)
    try:
        with naming(path):
            yield fresh
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file, text as UTF-8, that is there whole or not at all. Its folder must exist."""
    with whole_file(path) as fresh:
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)


def user_cache() -> Path:
    """This package's folder in the user's cache folder; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bidora_jax"


def chosen_folder(setting: str, default: Callable[[], Path]) -> Path:
    """The folder that a setting names; "auto" stands for the default."""
    return default() if setting == "auto" else Path(setting).expanduser()


def read_json(path: Path, remedy: str) -> dict:
    """The object in a JSON file. InputError, ending in `remedy`, when the file is missing or holds anything else."""
    if not path.parent.is_dir():
        found = f"{path.parent} is a file" if path.parent.exists() else f"there is no folder {path.parent}"
        raise InputError(f"{found}; {remedy}")
    if not path.is_file():
        raise InputError(f"{path.parent} has no {path.name}; {remedy}")
    try:
        value = strict_json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}, expected an object; {remedy}")
    return value


def write_json(path: Path, value: dict, *, sort_keys: bool = False) -> None:
    with naming(path):
        path.write_text(json.dumps(value, indent=2, sort_keys=sort_keys, ensure_ascii=False) + "\n", encoding="utf-8")
