"""JSON from outside, of which nothing is taken for granted: one reader for every file that somebody else may have written.

json alone keeps the last of two values of one key, reads NaN and Infinity, which are no JSON, makes an integer of any number of
digits and infinity of 1e999, and raises RecursionError for a text of thousands of brackets. Here each of these is a ValueError.
"""

import json
import math
from typing import Any

DIGITS = 100
"""Of an integer; transformers writes 31 for a length without a limit."""


def loads(text: str | bytes) -> Any:
    """The value of a JSON text. ValueError, saying what is wrong, for what is none, and for what can't be read faithfully."""
    try:
        return DECODER.decode(text.decode("utf-8") if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. ValueError for a repeated key, of which json alone would keep the last value."""
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        again = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {again!r} stands twice in one object")
    return value


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is out of range")
    return number


def _refused(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


DECODER = json.JSONDecoder(object_pairs_hook=unique, parse_int=_integer, parse_float=_finite, parse_constant=_refused)
