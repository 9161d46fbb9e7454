"""Entities in the tags of a text's words, by seqeval's rules (those of conlleval, lenient).

    a span ends before c     after E, S; before B, S, O; where the type differs
    a span starts at c       at B, S; at I, E after O, E, S; where the type differs

BIO in either form, BIOES, and BILOU, whose L and U are the E and S of BIOES.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """An entity, by the numbers of its words; `end` is the first word after it."""

    type: str
    start: int
    end: int


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities of one text, in order."""
    from seqeval.metrics.sequence_labeling import get_entities

    return [Span(kind, first, last + 1) for kind, first, last in get_entities(as_read(tags))]


def as_read(tags: Sequence[str]) -> list[str]:
    """The tags in the letters that seqeval knows."""
    return [{"L-": "E-", "U-": "S-"}.get(tag[:2], tag[:2]) + tag[2:] for tag in tags]
