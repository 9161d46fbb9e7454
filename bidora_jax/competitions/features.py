"""Which columns are texts, categories and numbers, and which are left out: AutoGluon's rules, on at most 5,000 rows.

    number      every value is one, in train and in test
    text        more than 1 % different values, which have 3 words or more on average (of scripts without blanks, signs count)
    left out    the same in every row; what test lacks or has empty; row numbers; nearly another word in every row, as ids have;
                what is named as an id and has more values than a category
    category    the rest

Where no column is a text by that, the one with the longest values is, if they have more than a word or two.
"""

import re
from collections.abc import Sequence

from bidora_jax.competitions.columns import Chosen, Columns, Guess, check, named
from bidora_jax.competitions.files import Files
from bidora_jax.competitions.headers import ID_NAME, INDEX, Roles
from bidora_jax.competitions.labels import number
from bidora_jax.errors import InputError

LOOKED_AT = 5000
DIFFERENT = 0.01
WORDS = 3
LIKE_AN_ID = 0.99
MOST_CATEGORIES = 20
LONG = 20
"""Characters that the values of a text without blanks have on average, at the least: sequences of letters."""
FLAG = "--text-columns"
SIGNS = re.compile(r"[぀-ヿ㐀-鿿가-힯฀-๿]")
"""Japanese, Chinese, Korean and Thai, which put few blanks or none between words."""


def find(files: Files, roles: Roles, chosen: Chosen) -> tuple[Columns, tuple[Guess, ...]]:
    """The columns with their reasons. InputError where no column is left to predict from."""
    train, test = files.train, files.test
    check(FLAG, chosen.texts, train.path, train.columns)
    check(FLAG, chosen.texts, test.path, test.columns)
    check("--group-column", (chosen.group,) if chosen.group else (), train.path, train.columns)
    if both := set(chosen.texts) & {*roles.targets, roles.id}:
        raise InputError(f"{FLAG} names {named(sorted(both))}, the id or a target; a column is one of them")
    found: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for name in train.columns:
        if name in (roles.id, *roles.targets, *chosen.texts):
            continue
        kind, reason = (
            _kind(files, name) if not name or name != chosen.group else ("", "its groups stay together in the folds")
        )
        if kind == "text" and chosen.texts:
            kind, reason = "", f"not among {FLAG}"
        if kind:
            found[name] = kind
        else:
            dropped[name] = reason
    dropped |= {
        name: f"{train.path.name} lacks it" for name in test.columns if name not in train.columns and name != roles.id
    }
    if not chosen.texts and "text" not in found.values():
        _promote(files, found, dropped)
    texts = chosen.texts or tuple(name for name, kind in found.items() if kind == "text")
    categories = tuple(name for name, kind in found.items() if kind == "category")
    numbers = tuple(name for name, kind in found.items() if kind == "number")
    if not (texts or categories or numbers):
        left = "; ".join(f"{name!r}: {why}" for name, why in dropped.items()) or "there is no other"
        raise InputError(
            f"{train.path} has no column to predict from beside id and target; expected a text at least ({left}); "
            f"name it with {FLAG}"
        )
    columns = Columns(roles.id, roles.targets, texts, categories, numbers, chosen.group or None, dropped)
    return columns, tuple(_guesses(files, columns, chosen))


def _guesses(files: Files, columns: Columns, chosen: Chosen) -> list[Guess]:
    def words(name: str) -> str:
        return f"{_words(_sampled(files.train.cells(name))):.0f}"

    why = "named" if chosen.texts else ", ".join(f"{words(name)} words on average" for name in columns.texts)
    guesses = [Guess("text", ", ".join(columns.texts) or "none", why or "no column has 3 words or more", FLAG)]
    if columns.categories:
        guesses.append(Guess("category", ", ".join(columns.categories), "few words; written into the text", FLAG))
    if columns.numbers:
        guesses.append(Guess("number", ", ".join(columns.numbers), "every value is one; written into the text", FLAG))
    if columns.group:
        guesses.append(Guess("groups", columns.group, "named", "--group-column"))
    return guesses + [Guess("left out", name, reason, FLAG) for name, reason in columns.dropped.items()]


def _kind(files: Files, name: str) -> tuple[str, str]:
    """(text, category, number, or "" for a column that is left out, the reason)."""
    train, test = files.train, files.test
    if name not in test.columns:
        return "", f"{test.path.name} lacks it"
    cells = train.cells(name)
    if len(set(cells)) <= 1 and len(cells) in (0, len(train.rows)):
        return "", "the same in every row"
    if not test.cells(name):
        return "", f"empty in {test.path.name}"
    if ID_NAME.fullmatch(name) and len(set(cells)) > MOST_CATEGORIES:
        return "", "named as an id; if its rows belong together: --group-column"
    seen = _sampled(cells)
    different = len(set(seen)) / len(seen)
    if all(number(cell) is not None for cell in (*cells, *test.cells(name))):
        if len(set(cells)) == len(train.rows) and _counts(cells):
            return "", "row numbers"
        return "number", ""
    if different > DIFFERENT and _words(seen) >= WORDS:
        return "text", ""
    if different > LIKE_AN_ID and len(seen) > 1:
        return "", "nearly another word in each row, as ids have"
    return "category", ""


def _counts(cells: Sequence[str]) -> bool:
    """Whether cells are whole numbers one after the other, in any order."""
    values = [number(cell) or 0.0 for cell in cells]
    return max(values) - min(values) == len(values) - 1 and all(value.is_integer() for value in values)


def _promote(files: Files, found: dict[str, str], dropped: dict[str, str]) -> None:
    """Takes the column with the longest values for the text, where it is more than codes: a sequence, a title."""

    def length(name: str) -> float:
        cells = _sampled(files.train.cells(name))
        return sum(map(len, cells)) / len(cells)

    left = [name for name, reason in dropped.items() if reason.startswith("nearly") and not INDEX.fullmatch(name)]
    options = [name for name in (*found, *left) if found.get(name) != "number" and _is_prose(files, name)]
    if options:
        best = max(options, key=length)
        found[best] = "text"
        dropped.pop(best, None)


def _is_prose(files: Files, name: str) -> bool:
    """Whether values vary and have letters to read: two words, or long words without the digits of a code."""
    cells = _sampled(files.train.cells(name))
    digits = sum(any(sign.isdigit() for sign in cell) for cell in cells) / len(cells)
    long = sum(map(len, cells)) / len(cells) >= LONG
    different = len(set(cells)) / len(cells)
    return different > 0.1 and (_words(cells) >= 1.5 or (digits < 0.5 and (long or different > LIKE_AN_ID)))


def _sampled(cells: Sequence[str]) -> Sequence[str]:
    return cells[:: -(-len(cells) // LOOKED_AT)] if cells else cells


def _words(cells: Sequence[str]) -> float:
    """Words of the different values on average."""
    values = set(cells)
    return sum(len(value.split()) + len(SIGNS.findall(value)) // 2 for value in values) / max(len(values), 1)
