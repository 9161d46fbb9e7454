"""Runs command lines in children of a process that has imported everything, and says how each ended.

A child is forked before JAX has started a thread, so each one starts as fresh as a process of its own, in milliseconds. An audit
hook in it notes every file that Python opens. What it may take is bounded from outside: seconds by a kill, memory as the system
counts it at the end. (Bytes that libraries read by themselves are not noted; every file here is opened by Python.)
"""

import importlib.util
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

SYSTEM = ("/proc/", "/sys/", "/dev/", "/usr/", "/lib", "/etc/ld.so", "/etc/localtime", "/etc/ssl", "/etc/mime.types")
"""Files of the system, which any program may read."""


class Ended(NamedTuple):
    """How a child ended."""

    status: int
    """Of exit; minus the signal's number; TIMEOUT where it was killed for its time."""
    seconds: float
    peak: int
    """Bytes of resident memory, at most."""
    out: str
    err: str
    opened: frozenset[str]
    """Files outside of the system's and Python's own."""


TIMEOUT = -1000


def run(
    argv: Sequence[str], seconds: float, before: Callable[[], None] = lambda: None, *, alone: bool = False
) -> Ended:
    """`bidora-jax ARGV` in a child. `before` runs in the child, first. `alone`: the child imports everything by itself. Now and
    then a library that has started threads here (BLAS, Arrow) hangs in a forked child; in such a one it can't."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
        files = [Path(scratch) / name for name in ("out", "err", "opened")]
        sys.stdout.flush()
        sys.stderr.flush()
        began = time.monotonic()
        child = os.fork()
        if not child and alone:
            before()
            os.execv(sys.executable, [sys.executable, __file__, *map(str, files), *argv])
        if not child:
            _child(argv, files, before)
        status, usage = _waited(child, began + seconds)
        out, err, opened = (
            file.read_text(encoding="utf-8", errors="replace") if file.exists() else "" for file in files
        )
    return Ended(status, time.monotonic() - began, usage.ru_maxrss * 1024, out, err, frozenset(opened.splitlines()))


def _waited(child: int, until: float) -> tuple[int, resource.struct_rusage]:
    late = False
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            return TIMEOUT if late else os.waitstatus_to_exitcode(status), usage
        if not late and time.monotonic() > until:
            late = True
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


def _child(argv: Sequence[str], files: Sequence[Path], before: Callable[[], None]) -> None:
    """Never returns."""
    status = 70
    try:
        for number, file in enumerate(files[:2], 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        note_opened(files[2])
        before()
        status = _status(argv)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _status(argv: Sequence[str]) -> int:
    from bidora_jax import cli
    from bidora_jax.errors import command

    try:
        command(cli.main, list(argv))
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def note_opened(file: Path) -> None:
    """From here on, what Python opens is noted in the file, a line each."""
    log, seen = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), set()
    package = importlib.util.find_spec("bidora_jax")
    assert package is not None and package.origin is not None
    roots = (
        sys.prefix,
        sys.base_prefix,
        str(Path(__file__).parents[2]),
        os.path.dirname(os.path.dirname(package.origin)),
    )
    own = tuple({os.path.realpath(root) + "/" for root in roots})

    def hook(event: str, arguments: tuple) -> None:
        if event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        try:
            path = os.path.abspath(os.fsdecode(arguments[0]))
        except ValueError:  # a name that no file can have
            return
        if path in seen or path.startswith((*SYSTEM, *own)):
            return
        seen.add(path)
        os.write(log, path.encode("utf-8", "replace").replace(b"\n", b"?") + b"\n")

    sys.addaudithook(hook)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])
    _child(sys.argv[4:], [Path(name) for name in sys.argv[1:4]], lambda: None)
