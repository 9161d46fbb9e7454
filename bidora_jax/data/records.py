"""A row of data -> a record: which shape it has, and whether all of it is there.

    {instruction, input?, output, system?}    one question and its answer; `response` serves for `output`, `context` for `input`
    {instruction, output, history, …}         the same after earlier ones, [[question, answer], …]; read as messages
    {prompt, completion, tools?, system?}     two texts as they stand, or two lists of turns
    {messages, tools?, system?}               a conversation of turns {role, content} (data/turns.py)
    {conversations, tools?, system?}          the same in ShareGPT's words, {from, value}; read as messages
    {code}, {text}                            text without a question

In a table a list of turns may be written as its JSON text. A record keeps the keys of its shape; the others are `unused`, which
a run reports. A conversation begins with a turn of the user, or of the system and then the user, and ends with one of the
assistant. Turns after that would teach nothing, and are refused rather than dropped. The chat template decides which other
orders of roles are possible.

Does not do: images and sound in a turn.
"""

import json
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from bidora_jax.data import turns as of_turns
from bidora_jax.data.turns import BadRecord, Turn, check_opening, check_text, read_turns
from bidora_jax.errors import did_you_mean


class Record(dict[str, Any]):
    """The keys of a shape with their values, and the record's place, for messages."""

    def __init__(self, values: dict[str, Any], place: str = "", unused: dict[str, int] | None = None) -> None:
        super().__init__(values)
        self.place = place
        self.unused = unused or {}
        """Keys of the row, and of the turns in it, that no token depends on, with a checksum of their values."""


class Shape(NamedTuple):
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


SHAPES = {  # by the key that marks the shape; the first one present decides; the last required key is the response
    "messages": Shape(("messages",), ("tools", "system")),
    "conversations": Shape(("conversations",), ("tools", "system")),
    "instruction": Shape(("instruction", "output"), ("input", "system", "history")),
    "prompt": Shape(("prompt", "completion"), ("tools", "system")),
    "code": Shape(("code",)),
    "text": Shape(("text",)),
}
OTHER_WORDS = {"output": "response", "input": "context"}
"""Keys of an {instruction} that some data sets call otherwise (databricks-dolly-15k)."""
ANSWERS = (("question", "answer"), ("input", "output"), ("query", "response"), ("problem", "solution"))
"""Columns that data sets hold a question and its answer in, for the remedy of a message."""
SHAPES_IN_WORDS = (
    "{instruction, input?, output, system?, history?}, {prompt, completion}, {messages}, {conversations}, "
    "{code} or {text}"
)


def record(value: dict[str, Any], place: str = "") -> Record:
    """The record that a row holds. Raises BadRecord, without the place, with all that is wrong with it."""
    value = _decoded(_renamed(value))
    marker, found = _selected(value, place)
    if marker in ("messages", "conversations") or isinstance(found.get("prompt"), list):
        return _conversation(found, marker)
    _check_texts(found, SHAPES[marker])
    if "history" not in found:
        return found
    if not found["output"].strip():
        raise BadRecord("'output' is empty, so 'history' leads to no answer")
    turns = [*asking(found), {"role": "assistant", "content": found["output"]}]
    return Record({"messages": turns}, place, found.unused)


def question(value: dict[str, Any], place: str = "") -> Record:
    """The record of a row that only asks: its answer may be missing, and its conversation may end with any turn.

    If the row has an answer, which is the assistant's last turn, it is left out. Raises BadRecord.
    """
    value = _decoded(_renamed(value))
    key = next((key for key in ("messages", "conversations", "prompt") if isinstance(value.get(key), list)), None)
    if key is None and "prompt" not in value and "instruction" not in value:
        raise BadRecord(f"asks nothing: it has neither 'prompt', 'instruction' nor 'messages'; {_its_keys(value)}")
    if key is None:
        blank = {"completion": ""} if "prompt" in value else {"output": ""}
        marker, found = _selected({**value, **blank}, place)
        _check_texts(found, SHAPES[marker])
        return Record({"messages": asking(found)}, place, found.unused) if "history" in found else found
    turns = read_turns(key, value[key])
    turns = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    turns = _after_system(value, turns)
    check_opening(turns)
    return Record({"messages": turns, **_tools(value)}, place, _unused(value, key, ()))


def is_conversation(record: Record) -> bool:
    """Whether the record has turns, which need a chat template."""
    return "messages" in record or isinstance(record.get("prompt"), list)


def is_text(record: Record) -> bool:
    """Whether the record is {code} or {text}, which may be cut anywhere and is still text."""
    return "code" in record or "text" in record


def asked(record: Record) -> str:
    """What an {instruction} asks: with its input, if it has one."""
    return "\n\n".join(filter(None, [record["instruction"], record.get("input")]))


def asking(record: Record) -> list[Turn]:
    """The turns of an {instruction} up to its question."""
    system = [{"role": "system", "content": record["system"]}] if "system" in record else []
    return [*system, *record.get("history", []), {"role": "user", "content": asked(record)}]


def turns(record: Record) -> tuple[list[Turn], int]:
    """All turns of a conversation, and the number of the first one that may be trained."""
    if "messages" in record:
        return record["messages"], 0
    return [*record["prompt"], *record["completion"]], len(record["prompt"])


def unused_keys(records: Sequence[Record]) -> list[str]:
    """A line for each key of the rows that no token depends on: in how many records it is, and where."""
    places: dict[str, list[str]] = {}
    for record in records:
        for key in record.unused:
            places.setdefault(key, []).append(record.place)
    return [f"{key!r} is not used: {in_records(found)}" for key, found in places.items()]


def in_records(places: Sequence[str], shown: int = 3) -> str:
    """How many records, and where the first of them are."""
    named = ", ".join(filter(None, places[:shown])) + ", …" * (len(places) > shown)
    return f"{len(places)} record{'s' * (len(places) > 1)} ({named})"


# Keys


def _selected(value: dict[str, Any], place: str) -> tuple[str, Record]:
    """The key that marks the shape, and the record with the keys of that shape."""
    marker = _shape_of(value)
    shape = SHAPES[marker]
    optional = [key for key in shape.optional if value.get(key) not in (None, "", [])]
    if marker == "prompt" and not isinstance(value["prompt"], list):
        optional = []  # two texts as they stand: there is no template that would write tools or a system's turn
    found = Record({key: value[key] for key in (*shape.required, *optional)}, place, _unused(value, marker, optional))
    if "history" in found:
        found["history"] = of_turns.read_history(found["history"])
        if not found["history"]:
            del found["history"]
    return marker, found


def _unused(value: dict[str, Any], marker: str, optional: Sequence[str]) -> dict[str, int]:
    """The keys of a row, and of the turns in it, that no token will depend on; those without a value are not named."""
    used = {*SHAPES[marker].required, *optional, *(("tools", "system") if isinstance(value.get(marker), list) else ())}
    found: dict[str, list[Any]] = {
        key: [item] for key, item in value.items() if key not in used and item not in (None, "", [], {})
    }
    for key in ("messages", "conversations", "prompt", "completion"):
        if key in used and isinstance(value.get(key), list):
            for turn in value[key]:
                for name, item in of_turns.unused(turn):
                    found.setdefault(f"{key}[].{name}", []).append(item)
    return {key: checksum(items) for key, items in found.items()}


def checksum(items: list[Any]) -> int:
    """Of values that no token depends on: it tells whether copies differ in them."""
    return zlib.crc32(repr(items).encode("utf-8", "surrogatepass"))


def _renamed(value: dict[str, Any]) -> dict[str, Any]:
    """The same row with the keys of an {instruction} by our names."""
    if "instruction" not in value:
        return value
    for ours, other in OTHER_WORDS.items():
        if value.get(ours) not in (None, "") and value.get(other) not in (None, ""):
            which = "that is to be learned" if ours == "output" else "that belongs to the question"
            raise BadRecord(f"has both {ours!r} and {other!r}; keep the one {which}")
    ours_of = {other: ours for ours, other in OTHER_WORDS.items() if other in value and value.get(ours) in (None, "")}
    kept = {key: item for key, item in value.items() if key not in ours_of.values()}
    return {ours_of.get(key, key): item for key, item in kept.items()}


def _decoded(value: dict[str, Any]) -> dict[str, Any]:
    """The same row with lists of turns where it holds their JSON text, as the cell of a table does."""
    found = {
        key: _turns_in(value[key]) for key in ("messages", "conversations", "prompt", "completion") if key in value
    }
    return value | {key: turns for key, turns in found.items() if turns is not None}


def _turns_in(text: Any) -> list[Any] | None:
    """The turns that a JSON text holds; None of any other text."""
    if not isinstance(text, str) or not text.lstrip().startswith("["):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    says = isinstance(found, list) and found and all(
        isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in found
    )  # fmt: skip
    return found if says else None


def _shape_of(value: dict[str, Any]) -> str:
    marker = next((key for key in SHAPES if key in value), None)
    if marker is None:
        raise BadRecord(f"has none of the keys {', '.join(map(repr, SHAPES))}; {_its_keys(value)}{_remedy(value)}")
    missing = [key for key in SHAPES[marker].required if key not in value]
    if missing:
        raise BadRecord(f"has {marker!r} but lacks {', '.join(map(repr, missing))}; {_its_keys(value)}")
    return marker


def _its_keys(value: dict[str, Any], limit: int = 6) -> str:
    known = dict.fromkeys(key for shape in SHAPES.values() for key in shape.required + shape.optional)
    found = [repr(key) + ("" if key in known else did_you_mean(key, known)) for key in value]
    return "its keys: " + (", ".join(found[:limit]) + (", …" if len(found) > limit else "") or "none")


def _remedy(value: dict[str, Any]) -> str:
    """How a row of a question and its answer under other names is read."""
    pair = next(((asks, answers) for asks, answers in ANSWERS if asks in value and answers in value), None)
    return f"; read them with --data.columns instruction {pair[0]} output {pair[1]}" if pair else ""


def _check_texts(found: Record, shape: Shape) -> None:
    for key, text in found.items():
        if key != "history":
            check_text(key, text)
    if len(shape.required) > 1 and not found[shape.required[0]].strip():
        raise BadRecord(f"{shape.required[0]!r} is empty; records without a prompt are written {{text}} or {{code}}")


# Turns


def _conversation(found: Record, marker: str) -> Record:
    """The record with its turns checked; ShareGPT's `conversations` become `messages`."""
    tools = _tools(found)
    if marker != "prompt":
        turns = _after_system(found, read_turns(marker, found[marker]))
        checked = {"messages": turns}
    else:
        checked = {key: read_turns(key, found[key]) for key in ("prompt", "completion")}
        checked["prompt"] = _after_system(found, checked["prompt"])
        turns = [*checked["prompt"], *checked["completion"]]
        if checked["completion"][0]["role"] != "assistant":
            raise BadRecord(
                f"'completion' begins with a turn of the {checked['completion'][0]['role']}; it should be what the "
                "assistant says to 'prompt'"
            )
    check_opening(turns)
    if not any(turn["role"] == "assistant" for turn in turns):
        raise BadRecord("has no turn of the assistant, so there is nothing to learn")
    if turns[-1]["role"] != "assistant":
        raise BadRecord(
            f"ends with a turn of the {turns[-1]['role']}, which nothing answers; take it off, or add the assistant's"
        )
    return Record({**checked, **tools}, found.place, found.unused)


def _after_system(value: dict[str, Any], turns: list[Turn]) -> list[Turn]:
    """The turns after the system's, which a row may hold beside them."""
    system = value.get("system")
    if system in (None, ""):
        return turns
    check_text("system", system)
    if turns and turns[0]["role"] == "system":
        raise BadRecord("has 'system', and turns that begin with one of the system; keep one of them")
    return [{"role": "system", "content": system}, *turns]


def _tools(value: dict[str, Any]) -> dict[str, Any]:
    """{"tools": [JSON schemas]} of a row that has some; else {}."""
    tools = of_turns.read_tools(value.get("tools"))
    return {"tools": tools} if tools else {}
