"""What a chat template leaves out of a conversation.

    of a trained answer: words, thoughts, calls of tools     refused: another answer would be learned
    of an earlier answer: its thoughts                       said: many templates leave them out by design
    of other turns: words, names, ids of calls; tools        said

A part is there if its text is, blanks and backslashes aside: templates trim the ones and escape with the others.
"""

import json
from collections.abc import Sequence
from typing import Any

from bidora_jax.data.turns import BadRecord, Turn

ANSWER = ("words", "thoughts", "calls of tools")
"""Parts of an answer that is trained."""


def check(turns: Sequence[Turn], trained: dict[int, str], text: str, tools: list[Any] | None) -> tuple[str, ...]:
    """What the template leaves out, in words. `text` is what it writes, and `trained` holds each trained answer's part of it.

    Raises BadRecord where it leaves out a part of one of these.
    """
    whole, found = _plain(text), []
    for number, turn in enumerate(turns):
        absent = _absent(turn, _plain(trained[number]) if number in trained else whole)
        by_design = {"thoughts"} if number < len(turns) - 1 else set()
        lost = [part for part in absent if part in ANSWER and part not in by_design]
        if number in trained and lost:
            raise BadRecord(
                f"turn {number + 1}: the chat template does not write the {' and the '.join(lost)} of the answer, so that "
                "another answer would be learned; take another template (chat_template.jinja), or write "
                "{prompt, completion} records, whose texts are taken as they stand"
            )
        found += [f"the {part} of a turn of the {turn['role']}" for part in absent]
    if any(_plain(name) not in whole for name in _names(tools or [])):
        found.append("tools")
    return tuple(dict.fromkeys(found))


def _absent(turn: Turn, text: str) -> list[str]:
    """The parts of a turn that are not in the text."""
    thoughts, words = _parted(turn["content"])
    parts = {
        "words": [words],
        "thoughts": [thoughts, turn.get("reasoning_content", "")],
        "calls of tools": [item for call in turn.get("tool_calls", []) for item in _said_in(call)],
        "name": [turn.get("name", "")],
        "tool_call_id": [turn.get("tool_call_id", "")],
    }
    return [part for part, said in parts.items() if not all(_stands(one, text) for one in said)]


def _stands(said: str, text: str) -> bool:
    """Whether it is in the text, as it is or as JSON writes it."""
    return any(_plain(form) in text for form in (said, json.dumps(said, ensure_ascii=False)[1:-1]))


def _plain(text: str) -> str:
    """The text without blanks and backslashes."""
    return "".join(text.split()).replace("\\", "")


def _parted(content: str) -> tuple[str, str]:
    """The thoughts of an answer, and its words."""
    before, mark, after = content.partition("</think>")
    return (before.replace("<think>", "", 1), after) if mark else ("", content)


def _said_in(call: dict[str, Any]) -> list[str]:
    """The name of a tool call, and what its arguments hold."""
    named = call["function"] if isinstance(call.get("function"), dict) else call
    return [str(named.get("name", "")), *_leaves(named.get("arguments"))]


def _leaves(value: Any) -> list[str]:
    """The keys, texts and numbers in a JSON value."""
    if isinstance(value, dict):
        return [*map(str, value), *(leaf for item in value.values() for leaf in _leaves(item))]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return []  # templates write these in their own words: true, True, null, None
    return [str(value)]


def _names(tools: list[Any]) -> list[str]:
    named = [tool["function"] if isinstance(tool.get("function"), dict) else tool for tool in tools]
    return [str(tool.get("name", "")) for tool in named]
