"""data/records.py: a row is a record of one shape, or says why it is none."""

import numpy as np
import pytest
from turns import EARLIER, said, turn

from bidora_jax.data.records import BadRecord, Record, question, record

# What came before an instruction


@pytest.mark.parametrize("history", [None, "", [], "[]"])
def test_an_empty_history_is_none(history):
    assert record({"instruction": "q", "output": "a", "history": history}) == {"instruction": "q", "output": "a"}


@pytest.mark.parametrize(
    ("history", "says"),
    [
        ("q: a", "'history' is a text that is not JSON"),
        ({"q": "a"}, "'history' should be an array, found an object"),
        (5, "'history' should be an array, found the number 5"),
        (["q", "a"], "'history' should be an array of pairs [question, answer]: pair 1 is a text, pair 2 is a text"),
        ([["q", "a"], ["r"], ["s", "b", "c"]], "[question, answer]: pair 2 is an array of 1, pair 3 is an array of 3"),
        ([["q"]] * 5, "pair 4 is an array of 1, …"),
        ([["q", "a"], ["r", 5]], "history, turn 4: 'content' should be text, found the number 5"),
        ([["", "a"]], "history, turn 1: the user says nothing"),
        ([["q", " "], ["r", None]], "2 turns are wrong:\n  history, turn 2: the assistant says nothing\n  history, turn 4"),
    ],
)  # fmt: skip
def test_a_history_that_is_none_says_why(history, says):
    with pytest.raises(BadRecord) as problem:
        record({"instruction": "q", "output": "a", "history": history})
    assert says in str(problem.value)


def test_a_history_that_leads_to_no_answer_is_refused():
    with pytest.raises(BadRecord, match="'output' is empty, so 'history' leads to no answer"):
        record({"instruction": "q", "output": " ", "history": EARLIER})


# Rows that are no records


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"messages": "hello"}, "'messages' should be an array of turns, found a text"),
        ({"messages": []}, "'messages' has no turns"),
        ({"messages": [turn("user")]}, "has no turn of the assistant"),
        ({"messages": said("q", "a", "r")}, "ends with a turn of the user, which nothing answers; take it off"),
        ({"messages": [turn("assistant")]}, "begins with a turn of the assistant, which answers nothing"),
        ({"messages": [turn("system"), turn("assistant")]}, "begins with a turn of the assistant"),
        ({"messages": [turn("system")]}, "has no turn of a user"),
        ({"messages": [turn("user"), turn("bot")]}, 'turn 2: role "bot" is none of system, user, assistant, tool'),
        ({"messages": [turn("usr"), turn("assistant")]}, "turn 1: role \"usr\" is none of system, user, assistant, tool (did"),
        ({"messages": [turn(None), turn("assistant")]}, "turn 1: role null is none of"),
        ({"messages": [turn("user", " \n"), turn("assistant")]}, "turn 1: the user says nothing"),
        ({"messages": [turn("user"), turn("assistant", "")]}, "turn 2: the assistant says nothing"),
        ({"messages": [turn("user"), turn("assistant", None)]}, "turn 2: the assistant says nothing"),
        ({"messages": [turn("user", 5), turn("assistant")]}, "turn 1: 'content' should be text, found the number 5"),
        ({"messages": [turn("user"), {"role": "assistant", "text": "x"}]}, "turn 2: lacks 'content'; it has 'role', 'text'"),
        ({"messages": ["x", turn("assistant")]}, "turn 1: expected an object with a role and its content, found a text"),
        ({"messages": [turn("x"), turn("y")]}, "2 turns are wrong"),
        ({"messages": [turn("user", [{"type": "image"}]), turn("assistant")]}, "holds parts of other kinds than text: image"),
        ({"messages": said("q", "a"), "tools": "["}, "'tools' is a text that is not JSON"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gtp", "value": "a"}]}, "(did you mean 'gpt'?)"),
        ({"conversations": [{"from": "gpt", "value": "hello"}, {"from": "human", "value": "q"}]}, "begins with a turn of the"),
        ({"prompt": said("q"), "completion": "a"}, "'completion' should be an array of turns, found a text"),
        ({"prompt": said("q"), "completion": [turn("user")]}, "'completion' begins with a turn of the user"),
        ({"instruction": "q", "output": "a", "response": "b"}, "has both 'output' and 'response'"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_record_says_why(value, says):
    with pytest.raises(BadRecord) as problem:
        record(value)
    assert says in str(problem.value)


def test_text_parts_are_joined_and_foreign_keys_left_out():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    found = record({"messages": [turn("user", parts, id=1), turn("assistant", "c", name="n")], "id": 3}, "f:7")
    assert found == {"messages": [turn("user", "ab"), turn("assistant", "c", name="n")]}
    assert found.place == "f:7"


def test_a_question_needs_no_answer():
    assert question({"prompt": "q"}) == {"prompt": "q", "completion": ""}
    assert question({"instruction": "q", "output": "a"}) == {"instruction": "q", "output": ""}
    assert question({"messages": said("q", "a")}) == {"messages": said("q")}
    assert question({"prompt": said("q"), "completion": said("q", "a")[1:]}) == {"messages": said("q")}
    for value in ({"text": "x"}, {"prompt": ""}, {"messages": [turn("assistant")]}):
        with pytest.raises(BadRecord):
            question(value)


def test_a_record_is_a_dictionary_with_a_place():
    assert Record({"text": "x"}, "f:1") == {"text": "x"}
    np.testing.assert_equal(Record({"text": "x"}).place, "")
