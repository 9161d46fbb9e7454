"""A row's columns as one input, by the template `column: value`.

    text alone               the text
    two texts and no more    a pair of texts
    else                     kind: shoe; price: 12.5; title: Red shoe; review: They fit …

Empty cells are left out. Categories and numbers stand first and the longest text is cut first, so that a long text pushes nothing
else beyond the model's length.
"""

from collections.abc import Mapping

from bidora_jax.competitions.columns import Columns
from bidora_jax.competitions.labels import number

EMPTY = "(empty)"
"""The input of a row whose cells are all empty: it needs a prediction too."""
BETWEEN = "; "


def text_of(row: Mapping[str, str], columns: Columns, longest: int) -> tuple[str, ...]:
    """The input of a row: one text, or a pair. `longest` is the number of characters it may have, 0 any."""
    short = [
        *((name, row[name]) for name in columns.categories),
        *((name, _rounded(row[name])) for name in columns.numbers),
    ]
    fields = [(name, " ".join(value.split())) for name, value in short if value.strip()]
    texts = {name: row[name].strip() for name in columns.texts}
    if not short and len(texts) <= 2:
        cut = _cut(texts, longest)
        return tuple(value or EMPTY for value in cut.values())
    texts = {name: value for name, value in texts.items() if value}
    rest = sum(len(name) + len(value) + 4 for name, value in fields) + sum(len(name) + 4 for name in texts)
    cut = _cut(texts, max(longest - rest, 1) if longest else 0)
    written = [f"{name}: {value}" if name else value for name, value in (*fields, *cut.items()) if value]
    return (BETWEEN.join(written) or EMPTY,)


def _rounded(cell: str) -> str:
    """A number of many decimals with three digits that count, or without any from 1000 on; a whole one as it is."""
    value = number(cell)
    if value is None or value.is_integer() or len(cell.strip()) <= 6:
        return cell
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _cut(texts: Mapping[str, str], longest: int) -> dict[str, str]:
    """The texts with at most `longest` characters in all. A text is cut to a length that all share; shorter ones stay whole."""
    if not longest or sum(map(len, texts.values())) <= longest:
        return dict(texts)
    left, share = longest, 0
    lengths = sorted(map(len, texts.values()))
    for at, length in enumerate(lengths):
        share = left // (len(lengths) - at)
        if length > share:
            break
        left -= length
    return {name: value[:share].rstrip() if len(value) > share else value for name, value in texts.items()}
