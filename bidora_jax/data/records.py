"""A row of data -> a record: which shape it has, and whether all of it is there.

    {instruction, input?, output, system?}    one question and its answer; `response` serves for `output`
    {instruction, output, history, …}         the same after earlier ones, [[question, answer], …]; read as messages
    {prompt, completion}                      two texts as they stand, or two lists of turns
    {messages, tools?}                        a conversation of turns {role, content}
    {conversations, tools?}                   the same in ShareGPT's words, {from, value}; read as messages
    {code}, {text}                            text without a question

A record keeps the keys of its shape and no others. A conversation begins with a turn of the user, or of the system and then the
user, and ends with one of the assistant. Turns after that would teach nothing, and are refused rather than dropped. The chat
template decides which other orders of roles are possible.

Does not do: images and sound in a turn.
"""

import json
from typing import Any, NamedTuple

from bidora_jax.data.sources.rows import kind
from bidora_jax.errors import did_you_mean, listing

Turn = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")
SHAREGPT = {"human": "user", "gpt": "assistant", "observation": "tool"}
"""Roles that ShareGPT calls otherwise."""
OF_A_TURN = ("tool_calls", "tool_call_id", "name", "reasoning_content")
"""What a chat template may read of a turn, besides role and content."""


class Record(dict[str, Any]):
    """The keys of a shape with their values, and the record's place, for messages."""

    def __init__(self, values: dict[str, Any], place: str = "") -> None:
        super().__init__(values)
        self.place = place


class BadRecord(Exception):
    """What is wrong with one record."""


class Shape(NamedTuple):
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


SHAPES = {  # by the key that marks the shape; the first one present decides; the last required key is the response
    "messages": Shape(("messages",), ("tools",)),
    "conversations": Shape(("conversations",), ("tools",)),
    "instruction": Shape(("instruction", "output"), ("input", "system", "history")),
    "prompt": Shape(("prompt", "completion"), ("tools",)),
    "code": Shape(("code",)),
    "text": Shape(("text",)),
}
SHAPES_IN_WORDS = (
    "{instruction, input?, output, system?, history?}, {prompt, completion}, {messages}, {conversations}, "
    "{code} or {text}"
)


def record(value: dict[str, Any], place: str = "") -> Record:
    """The record that a row holds. Raises BadRecord, without the place, with all that is wrong with it."""
    marker, found = _selected(_renamed(value), place)
    if marker in ("messages", "conversations") or isinstance(found.get("prompt"), list):
        return _conversation(found, marker)
    _check_texts(found, SHAPES[marker])
    if "history" not in found:
        return found
    if not found["output"].strip():
        raise BadRecord("'output' is empty, so 'history' leads to no answer")
    return Record({"messages": [*asking(found), {"role": "assistant", "content": found["output"]}]}, place)


def question(value: dict[str, Any], place: str = "") -> Record:
    """The record of a row that only asks: its answer may be missing, and its conversation may end with any turn.

    If the row has an answer, which is the assistant's last turn, it is left out. Raises BadRecord.
    """
    value = _renamed(value)
    key = next((key for key in ("messages", "conversations", "prompt") if isinstance(value.get(key), list)), None)
    if key is None and "prompt" not in value and "instruction" not in value:
        raise BadRecord(f"asks nothing: it has neither 'prompt', 'instruction' nor 'messages'; {_its_keys(value)}")
    if key is None:
        blank = {"completion": ""} if "prompt" in value else {"output": ""}
        marker, found = _selected({**value, **blank}, place)
        _check_texts(found, SHAPES[marker])
        return Record({"messages": asking(found)}, place) if "history" in found else found
    turns = _turns(key, value[key])
    turns = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    _check_opening(turns)
    return Record({"messages": turns, **_tools(value)}, place)


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


# Keys


def _selected(value: dict[str, Any], place: str) -> tuple[str, Record]:
    """The key that marks the shape, and the record with the keys of that shape."""
    marker = _shape_of(value)
    shape = SHAPES[marker]
    optional = [key for key in shape.optional if value.get(key) not in (None, "", [])]
    found = Record({key: value[key] for key in (*shape.required, *optional)}, place)
    if "history" in found:
        found["history"] = _history(found["history"])
        if not found["history"]:
            del found["history"]
    return marker, found


def _renamed(value: dict[str, Any]) -> dict[str, Any]:
    """The same row with `response` renamed to `output`."""
    if "instruction" not in value or "response" not in value:
        return value
    if "output" in value:
        raise BadRecord("has both 'output' and 'response'; keep the one that is to be learned")
    return {("output" if key == "response" else key): each for key, each in value.items()}


def _shape_of(value: dict[str, Any]) -> str:
    marker = next((key for key in SHAPES if key in value), None)
    if marker is None:
        raise BadRecord(f"has none of the keys {', '.join(map(repr, SHAPES))}; {_its_keys(value)}")
    missing = [key for key in SHAPES[marker].required if key not in value]
    if missing:
        raise BadRecord(f"has {marker!r} but lacks {', '.join(map(repr, missing))}; {_its_keys(value)}")
    return marker


def _its_keys(value: dict[str, Any], limit: int = 6) -> str:
    known = dict.fromkeys(key for shape in SHAPES.values() for key in shape.required + shape.optional)
    found = [repr(key) + ("" if key in known else did_you_mean(key, known)) for key in value]
    return "its keys: " + (", ".join(found[:limit]) + (", …" if len(found) > limit else "") or "none")


def _check_texts(found: Record, shape: Shape) -> None:
    found.pop("tools", None)  # there is no template to write them
    for key, text in found.items():
        if key != "history":
            _check_text(key, text)
    if len(shape.required) > 1 and not found[shape.required[0]].strip():
        raise BadRecord(f"{shape.required[0]!r} is empty; records without a prompt are written {{text}} or {{code}}")


def _check_text(key: str, text: Any) -> None:
    if not isinstance(text, str):
        raise BadRecord(f"{key!r} should be text, found {kind(text)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise BadRecord(f"{key!r} holds {half}, one half of a surrogate pair, which is no character") from error


# Turns


def _conversation(found: Record, marker: str) -> Record:
    """The record with its turns checked; ShareGPT's `conversations` become `messages`."""
    tools = _tools(found)
    if marker != "prompt":
        turns = _turns(marker, found[marker])
        checked = {"messages": turns}
    else:
        checked = {key: _turns(key, found[key]) for key in ("prompt", "completion")}
        turns = [*checked["prompt"], *checked["completion"]]
        if checked["completion"][0]["role"] != "assistant":
            raise BadRecord(
                f"'completion' begins with a turn of the {checked['completion'][0]['role']}; it should be what the "
                "assistant says to 'prompt'"
            )
    _check_opening(turns)
    if not any(turn["role"] == "assistant" for turn in turns):
        raise BadRecord("has no turn of the assistant, so there is nothing to learn")
    if turns[-1]["role"] != "assistant":
        raise BadRecord(
            f"ends with a turn of the {turns[-1]['role']}, which nothing answers; take it off, or add the assistant's"
        )
    return Record({**checked, **tools}, found.place)


def _turns(key: str, turns: Any) -> list[Turn]:
    """A list of turns as {role, content, …}. One BadRecord names all that is wrong with them."""
    if not isinstance(turns, list):
        raise BadRecord(f"{key!r} should be an array of turns, found {kind(turns)}")
    if not turns:
        raise BadRecord(f"{key!r} has no turns")
    found, wrong = [], []
    for number, turn in enumerate(turns, 1):
        try:
            found.append(_turn(turn))
        except BadRecord as problem:
            wrong.append(f"{key}, turn {number}: {problem}")
    if wrong:
        raise BadRecord(wrong[0] if len(wrong) == 1 else f"{len(wrong)} turns are wrong:\n{listing(wrong, limit=4)}")
    return found


def _history(history: Any) -> list[Turn]:
    """The turns of [[question, answer], …], or of the JSON text of such a list in a table; LLaMA-Factory's format."""
    pairs = _array("history", history)
    wrong = [
        f"pair {number} is {kind(pair)}" + (f" of {len(pair)}" if isinstance(pair, list) else "")
        for number, pair in enumerate(pairs, 1)
        if not isinstance(pair, list) or len(pair) != 2
    ]
    if wrong:
        some = ", ".join(wrong[:4]) + ", …" * (len(wrong) > 4)
        raise BadRecord(f"'history' should be an array of pairs [question, answer]: {some}")
    roles = ("user", "assistant")
    said = [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]
    return _turns("history", said) if said else []


def _turn(turn: Any) -> Turn:
    if not isinstance(turn, dict):
        raise BadRecord(f"expected an object with a role and its content, found {kind(turn)}")
    said_by, says = ("from", "value") if "from" in turn else ("role", "content")
    called = turn.get("tool_calls")
    missing = [key for key in (said_by, says) if key not in turn and not (key == says and called)]
    if missing:
        raise BadRecord(f"lacks {' and '.join(map(repr, missing))}; it has {', '.join(map(repr, turn)) or 'nothing'}")
    role = SHAREGPT.get(str(turn[said_by]), turn[said_by])
    if role not in ROLES:
        names = (*ROLES, *SHAREGPT) if said_by == "from" else ROLES
        suggestion = did_you_mean(role, names) if isinstance(role, str) else ""
        raise BadRecord(f"{said_by} {json.dumps(turn[said_by])} is none of {', '.join(names)}{suggestion}")
    content = _text_of(turn.get(says), says)
    if not content.strip() and role != "tool" and not (role == "assistant" and called):
        raise BadRecord(f"the {role} says nothing")
    return {"role": role, "content": content, **_extras(turn)}


def _text_of(content: Any, key: str) -> str:
    """The text of a turn; a list of text parts is joined."""
    if content is None:
        return ""
    if isinstance(content, list):
        kinds = {str(part.get("type")) if isinstance(part, dict) else kind(part) for part in content} - {"text"}
        if kinds:
            raise BadRecord(f"{key!r} holds parts of other kinds than text: {', '.join(sorted(kinds))}")
        content = "".join(str(part.get("text", "")) for part in content)
    _check_text(key, content)
    return content


def _extras(turn: dict[str, Any]) -> Turn:
    """The other keys of a turn that a template may read. A tool call is an object; its arguments may be JSON text."""
    found = {key: turn[key] for key in OF_A_TURN if turn.get(key) not in (None, "", [])}
    for key, value in found.items():
        if key == "tool_calls":
            if not isinstance(value, list) or not all(isinstance(call, dict) for call in value):
                raise BadRecord("'tool_calls' should be an array of objects")
        else:
            _check_text(key, value)
    return found


def _check_opening(turns: list[Turn]) -> None:
    first = next((turn["role"] for turn in turns if turn["role"] != "system"), None)
    if first == "assistant":
        raise BadRecord(
            "begins with a turn of the assistant, which answers nothing; take it off, or put a user's before it"
        )
    if first == "tool":
        raise BadRecord("begins with a turn of a tool, which nobody called")
    if first is None:
        raise BadRecord("has no turn of a user")


def _tools(value: dict[str, Any]) -> dict[str, Any]:
    """{"tools": [JSON schemas]} of a row that has some, as an array or as its JSON text; else {}."""
    tools = value.get("tools")
    if tools in (None, "", []):
        return {}
    tools = _array("tools", tools)
    if not all(isinstance(tool, dict) for tool in tools):
        raise BadRecord(f"'tools' should be an array of objects, found {kind(tools)}")
    return {"tools": tools} if tools else {}


def _array(key: str, value: Any) -> list[Any]:
    """An array, or the array that a JSON text holds."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRecord(f"{key!r} is a text that is not JSON ({error})") from error
    if not isinstance(value, list):
        raise BadRecord(f"{key!r} should be an array, found {kind(value)}")
    return value
