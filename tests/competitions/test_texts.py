"""competitions/texts.py: a row as one input, or as a pair."""

import pytest

from bidora_jax.competitions.columns import Columns
from bidora_jax.competitions.texts import EMPTY, text_of

ALONE = Columns("id", ("y",), ("text",))
PAIR = Columns("id", ("y",), ("one", "two"))
MIXED = Columns("id", ("y",), ("title", "body"), ("kind",), ("price",))
ROW = {
    "kind": "shoe",
    "price": "12.34567",
    "title": "Red",
    "body": "They fit",
    "text": " Good \n",
    "one": "a",
    "two": "b",
}


@pytest.mark.parametrize(
    ("row", "columns", "longest", "found"),
    [
        (ROW, ALONE, 0, ("Good",)),
        ({"text": "  "}, ALONE, 0, (EMPTY,)),
        (ROW, PAIR, 0, ("a", "b")),
        (ROW | {"two": ""}, PAIR, 0, ("a", EMPTY)),
        (ROW, MIXED, 0, ("kind: shoe; price: 12.3; title: Red; body: They fit",)),
        (ROW | {"kind": "", "title": " "}, MIXED, 0, ("price: 12.3; body: They fit",)),
        (dict.fromkeys(ROW, ""), MIXED, 0, (EMPTY,)),
        (ROW | {"price": "1234567.5", "kind": "a\nb"}, MIXED, 0, ("kind: a b; price: 1234568; title: Red; body: They fit",)),
        (ROW | {"price": "1234567"}, MIXED, 0, ("kind: shoe; price: 1234567; title: Red; body: They fit",)),
        ({"one": "abc", "two": "d" * 20}, PAIR, 10, ("abc", "ddddddd")),
        ({"one": "c" * 20, "two": "d" * 21}, PAIR, 10, ("ccccc", "ddddd")),
    ],
)  # fmt: skip
def test_the_template(row, columns, longest, found):
    assert text_of(row, columns, longest) == found


def test_the_longest_text_is_cut_first_and_all_else_stays():
    (text,) = text_of(ROW | {"body": "long " * 100}, MIXED, 80)
    assert text.startswith("kind: shoe; price: 12.3; title: Red; body: long long") and len(text) <= 80
    assert len(text) > 70
