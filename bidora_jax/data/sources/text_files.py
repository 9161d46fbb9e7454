"""Text files, compressed or not -> numbered lines; plain text -> rows.

Everything is UTF-8; a byte-order mark is skipped. A file of another kind (UTF-16, Parquet, a zip) is refused with a message
that names the kind. A line of more than LONGEST_LINE bytes is skipped in pieces and never held whole.
"""

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from bidora_jax.data.sources.rows import Fault, SourceRow
from bidora_jax.errors import InputError

LONGEST_LINE = 64 * 2**20  # bytes: the text of 40 novels, and beyond any model's positions
PIECE = 2**20  # bytes
BARE = re.compile(r"([\w-]+)(?::[\w.-]+)?(?:@.+)?")
"""A name alone, perhaps with a configuration and a split of a data set."""
BOM = b"\xef\xbb\xbf"
DOCUMENT_END = "<|endoftext|>"  # what corpora in one text file put between their documents
PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
TIMES, SMALL = 100, 2**28
"""How many times its size a packed file may unpack to, and bytes that any one may."""
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
OTHER_KINDS = {  # by their first bytes; UTF-32 opens like UTF-16
    b"\xff\xfe": "UTF-16 text; write it anew: iconv -f UTF-16 -t UTF-8 {path} > utf8{suffix}",
    b"\xfe\xff": "UTF-16 text; write it anew: iconv -f UTF-16 -t UTF-8 {path} > utf8{suffix}",
    b"PAR1": "a Parquet file; give it the ending .parquet",
    b"ARROW1": "an Arrow file; save it as Parquet",
    b"\x1f\x8b": "packed by gzip; give it the ending {suffix}.gz",
    b"BZh": "packed by bzip2; give it the ending {suffix}.bz2",
    b"\xfd7zXZ": "packed by xz; give it the ending {suffix}.xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it: zstd -d {path}",
    b"PK\x03\x04": "a zip file, or a spreadsheet; unpack it, or save the sheet as CSV",
    b"%PDF": "a PDF; extract its text",
    b"SQLite format 3": "an SQLite database; write a table of it out as CSV",
}


# Lines


def numbered_lines(path: Path, longest: int = LONGEST_LINE) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a file, blank ones too, counted from 1; None stands for a line of more than `longest` bytes.

    Raises InputError for a file that is missing, damaged, unreadable, or no text.
    """
    check_file(path)
    number = 0
    with translated(path, lambda: f" after line {number}"):
        _refuse_other_kinds(path)
        with opened(path) as file:
            while line := file.readline(longest + 1):
                number += 1
                whole = len(line) <= longest or line.endswith(b"\n")
                yield number, (line.removeprefix(BOM) if number == 1 else line) if whole else None
                while not whole:
                    piece = file.readline(PIECE)
                    whole = not piece or piece.endswith(b"\n")


def check_file(path: Path) -> None:
    """InputError unless there is a file at `path`."""
    if path.is_symlink() and not path.exists():
        raise InputError(f"no data file at {path}: it is a link to {path.readlink()}, which does not exist")
    if not path.is_file():
        what = " (it is a folder)" if path.is_dir() else ""
        bare = not what and is_bare(path)
        raise InputError(
            f"no data file at {path}{what}; check the path: a relative one starts from {Path.cwd()}{full_name(path) * bare}"
        )


def is_bare(path: Path) -> bool:
    """Whether it is a name alone, without folder and ending, of no file here: such as data sets of the hub once had."""
    found = BARE.fullmatch(str(path))
    return bool(found) and not path.exists() and not Path(found[1]).is_dir()


def full_name(path: Path) -> str:
    """Where a bare name is told its full form, as the end of a message."""
    name = re.split("[:@]", str(path))[0]
    return f"; a data set on the hub is named ORG/NAME@SPLIT: huggingface.co/datasets/{name} leads to the full name"


def opened(path: Path) -> BinaryIO:
    """A file for reading, decompressed on the way."""
    unpack = PACKED.get(path.suffix.lower())
    if unpack is None:
        return path.open("rb")
    return io.BufferedReader(_Unpacked(unpack(path, "rb"), path))


class _Unpacked(io.RawIOBase):
    """What a packed file holds, up to TIMES its size: a few megabytes can unpack to gigabytes of one letter."""

    def __init__(self, inner: BinaryIO, path: Path) -> None:
        self.inner, self.path, self.left = inner, path, max(SMALL, TIMES * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self.inner.read(len(buffer))
        self.left -= len(piece)
        if self.left < 0:
            raise InputError(
                f"{self.path} unpacks to more than {TIMES} times its size of {self.path.stat().st_size:,} bytes, which text does "
                "not; unpack it and look what it holds"
            )
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self.inner.close()
        super().close()


@contextmanager
def translated(path: Path, where: Callable[[], str]) -> Iterator[None]:
    """Turns an error of the system or of decompression into an InputError that says `where` it was."""
    try:
        yield
    except DAMAGE as error:
        raise InputError(f"{path} is damaged or cut short{where()} ({error}); make or fetch it anew") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _refuse_other_kinds(path: Path) -> None:
    with opened(path) as file:
        head = file.read(512)
    suffix = path.suffixes[-2] if path.suffix.lower() in PACKED and len(path.suffixes) > 1 else path.suffix
    for magic, what in OTHER_KINDS.items():
        if head.startswith(magic):
            raise InputError(f"{path} is {what.format(path=path, suffix=suffix)}")
    if b"\0" in head.partition(b"\n")[0]:
        raise InputError(f"{path} is no text: its first line holds NUL bytes; expected UTF-8")


def too_long(longest: int) -> str:
    """What is wrong with a line that was skipped."""
    return f"longer than {longest:,} bytes, more than a record can be; is the file one record a line?"


def decoded(line: bytes) -> tuple[str, str]:
    """(text, ""), or ("", what is wrong)."""
    try:
        return line.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x} in column {error.start + 1}"
        return "", f"not UTF-8 ({byte}); save it as UTF-8: iconv -f LATIN1 -t UTF-8 if that is what it is in"


# Plain text


def documents(path: Path, longest: int = LONGEST_LINE) -> Iterator[SourceRow | Fault]:
    """{text} for each document of a text file. A document ends at <|endoftext|> or at the end of the file."""
    held: list[str] = []
    start = 1
    for number, line in numbered_lines(path, longest):
        text, wrong = ("", too_long(longest)) if line is None else decoded(line)
        if wrong:
            yield Fault(f"{path}:{number}", wrong)
        ended = text.split(DOCUMENT_END)
        for part in ended[:-1]:
            yield from _document(f"{path}:{start}", [*held, part])
            held, start = [], number
        if held or ended[-1].strip():
            held.append(ended[-1])
        else:
            start = number + 1
    yield from _document(f"{path}:{start}", held)


def _document(place: str, lines: list[str]) -> Iterator[SourceRow]:
    text = "".join(lines)
    if text.strip():
        yield SourceRow(place, {"text": text.replace("\r\n", "\n").strip("\n")})
