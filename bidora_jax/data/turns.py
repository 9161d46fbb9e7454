"""The turns of a conversation: from what a row holds to {role, content, …}, or the reason why they are none.

    {role, content}      or {from, value} in ShareGPT's words; content is a text, or a list of {type: text, text}
    tool_calls           of the assistant: [{function: {name, arguments}}]; arguments are an object, or its JSON text
    tool_call_id, name   of a tool's result;      reasoning_content   the thoughts before an answer
    weight               0 or 1, of the assistant: an answer of weight 0 is read and not trained (OpenAI's format)

Keys of a turn that are none of these are named by `unused`, so that a run can say which they are.

Does not do: images and sound.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from bidora_jax.data.sources.rows import kind
from bidora_jax.errors import did_you_mean, listing

Turn = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")
SHAREGPT = {"human": "user", "gpt": "assistant", "observation": "tool"}
"""Roles that ShareGPT calls otherwise."""
OF_A_TURN = ("tool_calls", "tool_call_id", "name", "reasoning_content")
"""What a chat template may read of a turn, besides role and content."""
OF_A_CALL = ("id", "type", "index", "function", "name", "arguments")
"""What a chat template may read of a tool call; `name` and `arguments` also stand in its `function`."""
WEIGHT = "weight"


class BadRecord(Exception):
    """What is wrong with one record."""


def read_turns(key: str, turns: Any) -> list[Turn]:
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


def read_history(history: Any) -> list[Turn]:
    """The turns of [[question, answer], …], or of the JSON text of such a list in a table; LLaMA-Factory's format."""
    pairs = array("history", history)
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
    return read_turns("history", said) if said else []


def read_tools(tools: Any) -> list[Any]:
    """The JSON schemas of tools, from an array or from its JSON text."""
    if tools in (None, "", []):
        return []
    tools = array("tools", tools)
    if not all(isinstance(tool, dict) for tool in tools):
        raise BadRecord(f"'tools' should be an array of objects, found {kind(tools)}")
    _check_strings("tools", tools)
    return tools


def check_opening(turns: Sequence[Turn]) -> None:
    """BadRecord unless the first turn after those of the system is the user's."""
    first = next((turn["role"] for turn in turns if turn["role"] != "system"), None)
    if first == "assistant":
        raise BadRecord(
            "begins with a turn of the assistant, which answers nothing; take it off, or put a user's before it"
        )
    if first == "tool":
        raise BadRecord("begins with a turn of a tool, which nobody called")
    if first is None:
        raise BadRecord("has no turn of a user")


def trained(turn: Turn) -> bool:
    """Whether the turn is an answer that may be trained."""
    return turn["role"] == "assistant" and turn.get(WEIGHT) != 0


def unused(turn: Any) -> Iterator[tuple[str, Any]]:
    """The keys of a turn, as a row holds it, that no token will depend on, with their values; those without one are left out."""
    if not isinstance(turn, dict):
        return
    said_by, says = _words(turn)
    used = {said_by, says, *OF_A_TURN, *([WEIGHT] if _role(turn) == "assistant" else [])}
    yield from ((key, value) for key, value in turn.items() if key not in used and value not in (None, "", [], {}))
    for part in _objects(turn.get(says)):
        yield from ((f"{says}[].{key}", value) for key, value in part.items() if key not in ("type", "text"))
    for call in _objects(turn.get("tool_calls")):
        yield from ((f"tool_calls[].{key}", value) for key, value in call.items() if key not in OF_A_CALL)
        named = call.get("function")
        if isinstance(named, dict):
            inner = ((key, value) for key, value in named.items() if key not in ("name", "arguments"))
            yield from ((f"tool_calls[].function.{key}", value) for key, value in inner)


def array(key: str, value: Any) -> list[Any]:
    """An array, or the array that a JSON text holds."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRecord(f"{key!r} is a text that is not JSON ({error})") from error
    if not isinstance(value, list):
        raise BadRecord(f"{key!r} should be an array, found {kind(value)}")
    return value


def check_text(key: str, text: Any) -> None:
    """BadRecord for what is no text, and for a text with half a character."""
    if not isinstance(text, str):
        raise BadRecord(f"{key!r} should be text, found {kind(text)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise BadRecord(f"{key!r} holds {half}, one half of a surrogate pair, which is no character") from error


# One turn


def _turn(turn: Any) -> Turn:
    if not isinstance(turn, dict):
        raise BadRecord(f"expected an object with a role and its content, found {kind(turn)}")
    said_by, says = _words(turn)
    called = turn.get("tool_calls")
    missing = [key for key in (said_by, says) if key not in turn and not (key == says and called)]
    if missing:
        raise BadRecord(f"lacks {' and '.join(map(repr, missing))}; it has {', '.join(map(repr, turn)) or 'nothing'}")
    role = _role(turn)
    if role not in ROLES:
        names = (*ROLES, *SHAREGPT) if said_by == "from" else ROLES
        suggestion = did_you_mean(role, names) if isinstance(role, str) else ""
        raise BadRecord(f"{said_by} {json.dumps(turn[said_by])} is none of {', '.join(names)}{suggestion}")
    content = _text_of(turn.get(says), says)
    if not content.strip() and role != "tool" and not (role == "assistant" and called):
        raise BadRecord(f"the {role} says nothing")
    return {"role": role, "content": content, **_extras(turn), **_weight(turn, role)}


def _words(turn: dict[str, Any]) -> tuple[str, str]:
    """The keys that say who speaks and what is said."""
    return ("from", "value") if "from" in turn else ("role", "content")


def _role(turn: dict[str, Any]) -> Any:
    role = turn.get(_words(turn)[0])
    return SHAREGPT.get(role, role) if isinstance(role, str) else role


def _text_of(content: Any, key: str) -> str:
    """The text of a turn; a list of text parts is joined."""
    if content is None:
        return ""
    if isinstance(content, list):
        kinds = {str(part.get("type")) if isinstance(part, dict) else kind(part) for part in content} - {"text"}
        if kinds:
            raise BadRecord(f"{key!r} holds parts of other kinds than text: {', '.join(sorted(kinds))}")
        texts = [part.get("text") for part in content]
        wrong = [f"part {number} has {kind(text)}" for number, text in enumerate(texts, 1) if not isinstance(text, str)]
        if wrong:
            raise BadRecord(f"{key!r} holds text parts whose 'text' should be text: {', '.join(wrong[:4])}")
        content = "".join(texts)
    check_text(key, content)
    return content


def _extras(turn: dict[str, Any]) -> Turn:
    """The other keys of a turn that a template may read."""
    found = {key: turn[key] for key in OF_A_TURN if turn.get(key) not in (None, "", [])}
    for key, value in found.items():
        if key == "tool_calls":
            if not isinstance(value, list) or not all(isinstance(call, dict) for call in value):
                raise BadRecord("'tool_calls' should be an array of objects")
            found[key] = [_call(call) for call in value]
            _check_strings(key, found[key])
        else:
            check_text(key, value)
    return found


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call whose arguments are an object wherever they can be: OpenAI's files hold its JSON text."""
    named = call.get("function")
    if isinstance(named, dict):
        return call | {"function": _call(named)}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        decoded = json.loads(arguments)
    except ValueError:
        return call
    return call | {"arguments": decoded} if isinstance(decoded, dict) else call


def _weight(turn: dict[str, Any], role: str) -> Turn:
    weight = turn.get(WEIGHT)
    if weight is None or role != "assistant":
        return {}
    if weight not in (0, 1):
        raise BadRecord(f"'weight' of an answer should be 0 (it is read) or 1 (it is trained), found {kind(weight)}")
    return {} if weight == 1 else {WEIGHT: 0}


def _check_strings(key: str, value: Any) -> None:
    """BadRecord for half a character in a text at any depth."""
    if isinstance(value, str):
        check_text(key, value)
    elif isinstance(value, list):
        for item in value:
            _check_strings(key, item)
    elif isinstance(value, dict):
        for name, item in value.items():
            check_text(key, name)
            _check_strings(f"{key}.{name}", item)


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
