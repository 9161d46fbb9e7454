"""JSON that json would read in silence, or fall over, is a ValueError that says what is wrong."""

import json
import time

import pytest

from bidora_jax import strict_json


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deep"),
        ('{"a": ' * 100_000 + "1" + "}" * 100_000, "nested too deep"),
        ("1" * 5000, "a number of 5,000 digits"),
        ("1" + "0" * 400, "a number of 401 digits"),
        ("-" + "9" * 101, "a number of 102 digits"),
        ("[1, 1e999]", "1e999 is out of range"),
        ('{"a": NaN}', "NaN is no JSON"),
        ("[-Infinity]", "-Infinity is no JSON"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
        ("{", "Expecting"),
        ("{} {}", "Extra data"),
        ("\ufeff{}", "Expecting"),
        (b"\xff\xfe", "invalid start byte"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_read_faithfully_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        strict_json.loads(text)


def test_everything_else_is_what_json_reads():
    text = '{"a": [1, -2.5e-3, true, null, "ü\\u2028"], "length": 1000000000000000019884624838656}'
    assert strict_json.loads(text) == strict_json.loads(text.encode()) == json.loads(text)


def test_a_hundred_thousand_keys_take_no_time():
    pairs = [(f"k{n}", n) for n in range(100_000)]
    begin = time.monotonic()
    with pytest.raises(ValueError, match="'k99999' stands twice"):
        strict_json.unique([*pairs, pairs[-1]])
    assert time.monotonic() - begin < 5
