"""What a user did wrong, said once: the thing, what was expected, what was found, the remedy."""

import difflib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType


class InputError(Exception):
    """A wrong call or bad input. The command line prints the message and exits with 2, without a traceback."""

    status = 2


class RunError(Exception):
    """A run that had to stop though its input was good. The command line prints the message and exits with 1."""

    status = 1


LINE = 1_500
"""Characters of a line of a message that are shown at most."""


def unusable(what: str, whose: str = "the model") -> InputError:
    """The error of `what` (say, "the loss is nan") where a finished model computes what is no number."""
    return InputError(
        f"{what}: the weights of {whose} or of an adapter hold NaN or infinity, or values that the dtype can't compute with; get "
        "the files anew, or compute in float32 (dtype)"
    )


class NotFinite(RunError):
    """A loss, a gradient or a state that became NaN or infinite; a checkpoint of this step or a later one is ruined."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop, and saved where it stands. The command line prints the message and exits with `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """The nearest of `options` as a suffix for a message, or nothing when none is near."""
    close = difflib.get_close_matches(word, list(options), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def listing(items: Iterable[str], limit: int = 10) -> str:
    """Items one a line, indented, cut after `limit` with the number left out."""
    items = list(items)
    lines = [f"  {item}" for item in items[:limit]]
    if len(items) > limit:
        lines.append(f"  … and {len(items) - limit} more")
    return "\n".join(lines)


def program(name: str) -> str:
    """A command as it was called, for its usage line: `bidora-jax NAME` or `python -m bidora_jax.NAME`."""
    called = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    return f"bidora-jax {name}" if called == "bidora-jax" else f"python -m bidora_jax.{name}"


def command(main: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Runs a command line; an InputError or a full disk becomes one message on stderr and exit status 2.

    A path of the home folder may stand right after a flag's "=", where some shells leave it as it is. What the terminal's encoding
    can't show is printed as "?".
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with _ctrl_c():
            main([_at_home(arg) for arg in (sys.argv[1:] if argv is None else argv)])
    except InputError as error:
        sys.exit(_refuse(str(error)))
    except RunError as error:
        print(f"stopped: {_shown(str(error))}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # who reads the output has seen enough; the interpreter would say so once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)  # as a shell says of a program that SIGPIPE ended
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
            raise
        where = f" at {os.fspath(error.filename)}" if error.filename else ""
        sys.exit(_refuse(f"cannot write{where}: {error.strerror}; free some space or choose another output folder"))
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


@contextmanager
def _ctrl_c() -> Iterator[None]:
    """Lets `interrupted` handle Ctrl-C. Python lets the main thread alone set a handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt for Ctrl-C. In JAX's callback of the garbage collector an exception is printed and lost: from there
    the signal is sent once more, a moment later."""
    while frame is not None:
        if frame.f_code.co_name == "_xla_gc_callback":
            threading.Timer(0.02, os.kill, (os.getpid(), number)).start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _at_home(arg: str) -> str:
    """The argument with the home folder written out in --flag=~/path; a prompt stays as it is."""
    flag, equals, value = arg.partition("=")
    path = flag.startswith("--") and value.startswith("~/") and flag.rpartition(".")[2].lstrip("-") not in TEXTS
    return flag + equals + (os.path.expanduser(value) if path else value)


TEXTS = ("prompt", "prompts", "system")
"""Last parts of flags whose values are no paths."""


def _refuse(message: str) -> int:
    print(f"error: {_shown(message)}", file=sys.stderr)
    return 2


def _shown(message: str) -> str:
    """A message with its long lines cut in the middle: one may quote a value of a file, of any length."""
    return "\n".join(map(_cut, message.split("\n")))


def _cut(line: str) -> str:
    left_out = len(line) - LINE
    return f"{line[: LINE // 2]} … {left_out:,} characters … {line[-LINE // 2 :]}" if left_out > 100 else line
