"""Which columns of labelled rows hold the text, and which the label: those that are named, else those whose names say so.

    text     text_columns; else tokens or words beside tags; a pair such as sentence1, sentence2; text, sentence, sequence, …
    label    label_columns; else tags, label or labels; one of target, category, class, score, …

Without such a name, the only column that reads like text is the text, and the only one beside it the label; both are said. Where
several could be meant, none is taken. Letters' case does not count.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from bidora_jax.data.label_values import decoded
from bidora_jax.data.settings import DataConfig
from bidora_jax.errors import InputError, did_you_mean

WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "labels", "label")
PAIRS = (
    ("text_a", "text_b"), ("sentence1", "sentence2"), ("sentence_a", "sentence_b"), ("text1", "text2"),
    ("text", "text_pair"), ("question1", "question2"), ("premise", "hypothesis"), ("question", "sentence"),
    ("#1 string", "#2 string"), ("sequence_a", "sequence_b"),
)  # fmt: skip
TEXTS = ("text", "sentence", "sequence", "full_text", "comment_text", "content", "review", "seq")
SEQUENCES = ("sequence", "seq")
LONG_WORD = 20
"""Letters that texts without a blank have on average, at the least, to be no words but sequences of letters."""
LABELS = ("label", "labels")
OTHER_LABELS = (
    "target", "targets", "category", "class", "score", "gold_label", "quality", "is_duplicate", "sentiment", "intent",
    "rating", "stars", "y",
)  # fmt: skip
LOOKED_AT = 1000
"""Rows by which an unnamed column is taken for text."""
WORDS_OF_TEXT = 3
"""Words that the values of a text column have on average, at the least."""


class Columns(NamedTuple):
    texts: tuple[str, ...]
    """One, or the two of a pair."""
    labels: tuple[str, ...]
    """None of rows that are to be labelled."""
    words: bool
    """The text is a list of words, with a tag for each."""
    notes: tuple[str, ...] = ()
    letters: bool = False
    """Each letter of a text is a word for tags: the residues of a protein."""


def choose(rows: Sequence[dict[str, Any]], data: DataConfig, task: str, *, labelled: bool = True) -> Columns:
    """The columns of text and label. `task` is a task's type, or auto; of rows that need not be `labelled` labels may be missing.

    Raises InputError where a named column is in no row, and where the text or the label cannot be told.
    """
    there = list(dict.fromkeys(key for row in rows for key in row))
    for name, given in (("text", data.text_columns), ("label", data.label_columns), ("group", (data.group_column,))):
        _check_named(f"data.{name}_column{'s' * (name != 'group')}", given, there, labelled or name == "text")
    by_name = {key.casefold(): key for key in reversed(there)}
    words = next((by_name[name] for name in WORDS if name in by_name), None)
    tags = data.label_columns or [by_name[name] for name in TAGS if name in by_name]
    tagged = [name for name in tags if any(isinstance(decoded(row.get(name)), list) for row in rows[:LOOKED_AT])]
    is_tags = task == "tokens" or (task == "auto" and bool(words) and bool(tagged))
    notes: list[str] = []
    texts = data.text_columns or _texts(rows, there, data, words if is_tags else None, notes)
    labels = tuple(name for name in data.label_columns if name in there)
    if not data.label_columns:
        labels = _labels(
            rows, [key for key in there if key not in (*texts, data.group_column)], is_tags, labelled, notes
        )
    if both := set(texts) & set(labels):
        raise InputError(f"column {', '.join(map(repr, both))} is named as text and as label; a column is one of them")
    return Columns(tuple(texts), labels, is_tags, tuple(notes), is_tags and _of_letters(rows, texts[0]))


def _check_named(setting: str, given: Sequence[str], there: Sequence[str], needed: bool) -> None:
    lost = [f"{name!r}{did_you_mean(name, there)}" for name in given if name and name not in there]
    if lost and needed:
        raise InputError(
            f"{setting} names {', '.join(lost)}, which no row has; the rows have {_named(there)}"
            f"{'; a table without a header has its columns named by number: 1, 2, …' * _headerless(there)}"
        )
    if setting == "data.text_columns" and len(given) > 2:
        raise InputError(f"data.text_columns names {len(given)} columns; a text is one, or the two of a pair")


def _texts(
    rows: Sequence[dict[str, Any]], there: list[str], data: DataConfig, words: str | None, notes: list[str]
) -> tuple[str, ...]:
    if words:
        return (words,)
    free = [key for key in there if key not in (*data.label_columns, data.group_column)]
    by_name = {key.casefold(): key for key in reversed(free)}
    pairs = [(by_name[one], by_name[other]) for one, other in PAIRS if one in by_name and other in by_name]
    if len(pairs) == 1:
        return pairs[0]
    named = [by_name[name] for name in TEXTS if name in by_name]
    if len(named) == 1:
        return (named[0],)
    found = named or [
        key for key in free if key.casefold() not in (*LABELS, *OTHER_LABELS) and _reads_like_text(rows, key)
    ]
    if len(found) == 1 and not pairs:
        notes.append(f"the text is column {found[0]!r}, the only one that reads like text (data.text_columns)")
        return (found[0],)
    several = list(dict.fromkeys([*(name for pair in pairs for name in pair), *found]))
    if several:
        raise InputError(
            f"{len(several)} columns could be the text: {_named(several)}; name the one that is, or the two of a pair: "
            f"--data.text-columns {several[0]}"
        )
    raise InputError(
        f"no column reads like text; the rows have {_named(there)}; name the one that does: --data.text-columns COLUMN"
        f"{_by_number(there)}"
    )


def _labels(
    rows: Sequence[dict[str, Any]], free: list[str], tags: bool, labelled: bool, notes: list[str]
) -> tuple[str, ...]:
    by_name = {key.casefold(): key for key in reversed(free)}
    groups = ((TAGS[:2], TAGS[2:]) if tags else ()) + (LABELS, OTHER_LABELS)
    for names in groups:
        found = [by_name[name] for name in names if name in by_name]
        if len(found) == 1:
            return (found[0],)
        if found and labelled:
            raise InputError(
                f"{len(found)} columns could be the label: {_named(found)}; name the one that is, or all of several: "
                f"--data.label-columns {found[0]}"
            )
        if found:
            return ()
    if not labelled:
        return ()
    if len(free) == 1:
        notes.append(f"the label is column {free[0]!r}, the only one beside the text (data.label_columns)")
        return (free[0],)
    flags = [
        key for key in free if {str(row[key]) for row in rows[:LOOKED_AT] if key in row} <= {"0", "1", "0.0", "1.0"}
    ]
    many = f"; of several labels, name all: --data.label-columns {' '.join(flags)}" if len(flags) > 1 else ""
    rest = f"beside the text the rows have {_named(free)}" if free else "the rows have a text and nothing else"
    raise InputError(
        f"no column is named as a label; {rest}; name the one that is: --data.label-columns COLUMN{many}{_by_number(free)}"
    )


def _reads_like_text(rows: Sequence[dict[str, Any]], key: str) -> bool:
    values = {value for row in rows[:LOOKED_AT] if isinstance(value := row.get(key), str) and value.strip()}
    return bool(values) and sum(len(value.split()) for value in values) / len(values) >= WORDS_OF_TEXT


def _of_letters(rows: Sequence[dict[str, Any]], key: str) -> bool:
    """Whether a column says by its name that it holds sequences, or holds long texts without a blank."""
    values = [value.strip() for row in rows[:LOOKED_AT] if isinstance(value := row.get(key), str) and value[:1] != "["]
    long = sum(map(len, values)) >= LONG_WORD * len(values) and not any(len(value.split()) > 1 for value in values)
    return bool(values) and (key.casefold() in SEQUENCES or long)


def _headerless(there: Sequence[str]) -> bool:
    """Whether the names of the columns look like a record: none is a plain name."""
    return any(not name or re.fullmatch(r"[\d.]+", name) or len(name.split()) > WORDS_OF_TEXT for name in there)


def _by_number(there: Sequence[str]) -> str:
    if not _headerless(there):
        return ""
    return "; if the first row is a record and no header, name columns by number: --data.text-columns 4 --data.label-columns 2"


def _named(names: Sequence[str], limit: int = 20) -> str:
    return ", ".join(map(repr, names[:limit])) + ", …" * (len(names) > limit)
