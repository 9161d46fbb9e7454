"""Files of one word a line with its tag, as CoNLL's shared tasks have them -> rows {tokens, tags}, a sentence each.

    -DOCSTART- -X- O O          begins a document; left out
                                a blank line ends a sentence
    EU NNP I-NP I-ORG           the first field is the word and the last one its tag; those between them are not read
    rejects VBZ I-VP O

Fields are divided by tabs where the line has one, else by blanks. The place of a sentence is the line of its first word.
"""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from bidora_jax.data.sources.rows import Fault, SourceRow
from bidora_jax.data.sources.text_files import LONGEST_LINE, decoded, numbered_lines, too_long

ENDINGS = (".conll", ".bio", ".iob", ".iob2")
DOCUMENT = "-DOCSTART-"
LOOKED_AT = 400
"""Lines by which a file of another ending is known for one of tagged words."""
TAG = re.compile(r"O|[BIESLU]-\S+")


def sentences(path: Path, longest: int = LONGEST_LINE) -> Iterator[SourceRow | Fault]:
    """A row for each sentence. A line without a tag becomes a fault, and its sentence is not read."""
    start, words, tags, spoilt = 0, [], [], False
    for number, line in numbered_lines(path, longest):
        text, wrong = ("", too_long(longest)) if line is None else decoded(line)
        fields = _fields(text)
        if not fields and not wrong:
            if words and not spoilt:
                yield SourceRow(f"{path}:{start}", {"tokens": words, "tags": tags})
            words, tags, spoilt = [], [], False
            continue
        if fields[:1] == [DOCUMENT]:
            continue
        if not wrong and len(fields) < 2:
            wrong = (
                f"has one field, {fields[0]!r}; a line should hold a word and its tag, and a blank line end a sentence"
            )
        if wrong:
            spoilt = True
            yield Fault(f"{path}:{number}", wrong)
            continue
        start = start if words else number
        words.append(fields[0])
        tags.append(fields[-1])
    if words and not spoilt:
        yield SourceRow(f"{path}:{start}", {"tokens": words, "tags": tags})


def looks_tagged(path: Path, longest: int = LONGEST_LINE) -> bool:
    """Whether the first lines are words with tags such as O and B-PER, in sentences that blank lines end."""
    lines = [line for _, line in islice(numbered_lines(path, longest), LOOKED_AT)]
    fields = [_fields("" if line is None else line.decode("utf-8", "replace")) for line in lines]
    words = [one for one in fields if one and one[0] != DOCUMENT]
    tagged = all(len(one) > 1 and TAG.fullmatch(one[-1]) for one in words)
    ended = len(words) < len(lines) or len(lines) < LOOKED_AT
    return bool(words) and tagged and ended and any(len(one) > 1 for one in words)


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.strip().split("\t")] if "\t" in line.strip() else line.split()
