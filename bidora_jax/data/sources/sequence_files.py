"""FASTA files of proteins -> rows {id, description, sequence}.

    >P12345 some words       the first word is the id, the others the description
    MKTAYIAKQR               lines of a sequence, put together; a ; begins a comment, a * at the end is left out
    QISFVKSHF

The place of a row is the line of its header.
"""

from collections.abc import Iterator
from pathlib import Path

from bidora_jax.data.sources.rows import Fault, SourceRow
from bidora_jax.data.sources.text_files import LONGEST_LINE, decoded, numbered_lines, too_long

ENDINGS = (".fasta", ".fa", ".faa")


def proteins(path: Path, longest: int = LONGEST_LINE) -> Iterator[SourceRow | Fault]:
    """A row for each header. A header without a sequence, and a sequence without one, become faults."""
    start, header, pieces = 0, "", []
    for number, line in numbered_lines(path, longest):
        text, wrong = ("", too_long(longest)) if line is None else decoded(line)
        text = text.strip()
        if wrong:
            yield Fault(f"{path}:{number}", wrong)
        elif text.startswith(">"):
            if start:
                yield _row(f"{path}:{start}", header, pieces)
            start, header, pieces = number, text[1:].strip(), []
        elif text and not text.startswith(";"):
            if not start:
                yield Fault(f"{path}:{number}", "stands before the first header; a sequence begins with a line >NAME")
                return
            pieces.append("".join(text.split()))
    if start:
        yield _row(f"{path}:{start}", header, pieces)


def _row(place: str, header: str, pieces: list[str]) -> SourceRow | Fault:
    sequence = "".join(pieces).removesuffix("*")
    if not sequence:
        return Fault(place, f"has a header, {header!r}, and no sequence")
    name, _, description = header.partition(" ")
    return SourceRow(place, {"id": name, "description": description.strip(), "sequence": sequence})
