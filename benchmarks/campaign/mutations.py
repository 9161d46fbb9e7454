"""Damages a file as an accident or a malicious author would, by a seed: the same seed makes the same bytes."""

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 10**7, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", "x", "0", "nan", "../../../etc/passwd", "/etc/passwd", "a" * 100_000, "\u2028", "\ud800", "%999999999d", "{{ 1 // 0 }}",
    "([a-z_.0-9]+)+!", "a{1,4294967295}", "<script>fetch('//x')</script>",
    [], {}, [[]], [None], ["x"] * 1000, {"x": None}, [1, "1", None],
]  # fmt: skip
"""Values that a reader may not expect in the place of another."""
TEMPLATES = [
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", "{{ '%999999999d' % 1 }}",
    "{{ 'x' * 10**9 }}", "{{ cycler.__init__.__globals__ }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for m in messages %}", "{{ messages[99] }}", "{% include '/etc/passwd' %}", "{{ raise_exception('no') }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
]  # fmt: skip
"""Chat templates that escape, eat time or memory, or fail."""


def of_bytes(data: bytes, chance: random.Random) -> bytes:
    """A few flipped bits, a part that is missing, doubled or foreign, or less than half of it."""
    at, long = chance.randrange(len(data) + 1), chance.randrange(1, 65)
    how = chance.randrange(6)
    if how == 0:
        flipped = bytearray(data)
        for _ in range(chance.randrange(1, 5)):
            if flipped:
                flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        return bytes(flipped)
    if how == 1:
        return data[: at // 2]
    if how == 2:
        return data[:at] + data[at + long :]
    if how == 3:
        return data[:at] + data[at : at + long] * chance.randrange(2, 40) + data[at + long :]
    if how == 4:
        return data[:at] + chance.randbytes(long) + data[at:]
    return (
        data[:at]
        + chance.choice([b"\x00", b"\xff\xfe", b"\n", b"{", b"]" * 9, b"[" * 100_000, b"9" * 5000, b"\xef\xbb\xbf"])
        + data[at:]
    )


def of_json(data: bytes, chance: random.Random) -> bytes:
    """One to three of its values replaced, removed, moved or given twice; now and then only its bytes are damaged."""
    if chance.random() < 0.2:
        return of_bytes(data, chance)
    value = json.loads(data)
    for _ in range(chance.randrange(1, 4)):
        value = _changed(value, chance)
    text = json.dumps(value)
    if chance.random() < 0.1:  # a key that stands twice
        text = text.replace("{", '{"' + chance.choice(_keys(value) or ["x"]) + '": 1, ', 1)
    if chance.random() < 0.05:
        text = "[" * 100_000 + text + "]" * 100_000
    return text.encode("utf-8", "surrogatepass" if chance.random() < 0.5 else "replace")


def of_lines(data: bytes, chance: random.Random) -> bytes:
    """JSON lines: one of them is damaged, as JSON or as bytes."""
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    if lines[at].strip():
        lines[at] = of_json(lines[at], chance) if _is_json(lines[at]) else of_bytes(lines[at], chance)
    return b"\n".join(lines) if chance.random() < 0.7 else of_bytes(b"\n".join(lines), chance)


def of_safetensors(data: bytes, chance: random.Random) -> bytes:
    """The header's JSON, its length, or the bytes of the tensors."""
    long = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + long], data[8 + long :]
    how = chance.random()
    if how < 0.6:
        header = of_json(header, chance)
        return struct.pack("<Q", len(header)) + header + rest
    if how < 0.7:
        return struct.pack("<Q", chance.choice([0, 1, long - 1, long + 1, 2**32, 2**63 - 1, 2**64 - 1])) + data[8:]
    if how < 0.8:
        at = chance.randrange(max(len(rest) - 4, 1))
        poison = struct.pack("<f", chance.choice([float("nan"), float("inf"), 1e38]))
        return data[: 8 + long] + rest[:at] + poison + rest[at + 4 :]
    return of_bytes(data, chance)


def of_template(data: bytes, chance: random.Random) -> bytes:
    """tokenizer_config.json with a hostile chat template, or damaged as other JSON."""
    if chance.random() < 0.5:
        return of_json(data, chance)
    return json.dumps({**json.loads(data), "chat_template": chance.choice(TEMPLATES)}).encode()


def _changed(value: Any, chance: random.Random) -> Any:
    places = list(_places(value))
    if not places:
        return chance.choice(HOSTILE)
    value = copy.deepcopy(value)
    *way, last = chance.choice(places)
    inside = value
    for key in way:
        inside = inside[key]
    how = chance.randrange(5)
    if how == 0:
        del inside[last]
    elif how == 1:
        _, other = chance.choice([(place, _at(value, place)) for place in list(_places(value))[:2000]])
        inside[last] = copy.deepcopy(other)
    elif how == 2 and isinstance(inside, dict):
        inside[chance.choice(["", "x", str(last).upper(), "é"])] = inside.pop(last)
    elif how == 3 and isinstance(inside[last], int | float) and not isinstance(inside[last], bool):
        inside[last] = inside[last] * chance.choice([-1, 0, 2, 3, 10**6]) + chance.choice([0, 1, -1])
    else:
        inside[last] = chance.choice(HOSTILE)
    return value


def _places(value: Any, way: tuple = ()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*way, key)
        yield from _places(inner, (*way, key))


def _at(value: Any, place: tuple) -> Any:
    for key in place:
        value = value[key]
    return value


def _keys(value: Any) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


Mutation = Callable[[bytes, random.Random], bytes]
