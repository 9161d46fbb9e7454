"""Nothing that a row says vanishes in silence: it is in the tokens, or its key is named, or the row is refused.

data/turns.py and data/records.py read rows, data/left_out.py compares them with what the template writes.
"""

import json
import random

import pytest
from chat_templates import CHATML, LLAMA3, MISTRAL, QWEN3, chat_tokenizer, marked
from turns import said, turn

from bidora_jax.data import splits
from bidora_jax.data.encoding import DOUBLED, encode_all, read_records, remarks_of
from bidora_jax.data.records import BadRecord, question, record, unused_keys
from bidora_jax.data.settings import DataConfig
from bidora_jax.errors import InputError

U, A, S, E = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_start|>system\n", "<|im_end|>"
R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content }}{% elif m.role == 'assistant' %}"
    "{{ '[/INST]' + m.content.split('</think>')[-1] + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[/INST]' }}{% endif %}"
)
"""The form of DeepSeek-R1's distilled models: thoughts are left out of every answer."""
CALL = {"type": "function", "function": {"name": "cut", "arguments": {"part": 'the "lid"\n', "depth": 3, "wet": True}}}
CALLS = [turn("user", "q"), turn("assistant", "", tool_calls=[CALL])]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return chat_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def why_not(value) -> str:
    with pytest.raises(BadRecord) as refused:
        record(value)
    return str(refused.value)


# What a row says beside its turns


@pytest.mark.parametrize(
    "value",
    [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, {"messages": said("q", "a")},
     {"prompt": said("q"), "completion": said("q", "a")[1:]}],
    ids=lambda value: next(iter(value)),
)  # fmt: skip
def test_a_system_beside_turns_is_the_first_turn(tokenizer, value):
    assert marked(tokenizer, CHATML, {"system": "s", **value}) == f"{S}s{E}\n{U}q{E}\n{A}⟦a{E}⟧\n"
    assert question({"system": "s", **value})["messages"] == said("s", "q", first="system")
    key = next(iter(value))
    twice = {"system": "s", **value, key: [{"role": "system", "content": "t"}, *value[key]]}
    assert "has 'system', and turns that begin with one of the system; keep one of them" in why_not(twice)


def test_the_context_of_dolly_is_the_input():
    value = {"instruction": "Where?", "context": "In Oslo.", "response": "Oslo", "category": "closed_qa"}
    found = record(value, "d:1")
    assert found == {"instruction": "Where?", "input": "In Oslo.", "output": "Oslo"}
    assert unused_keys([found]) == ["'category' is not used: 1 record (d:1)"]
    assert record({**value, "input": "", "category": ""}).unused == {}
    assert "has both 'input' and 'context'; keep the one that belongs to the question" in why_not(
        {**value, "input": "x"}
    )


@pytest.mark.parametrize("loss_on", ["turns", "all", "response"])
def test_an_answer_of_weight_0_is_read_and_not_trained(tokenizer, loss_on):
    first, last = turn("assistant", "wrong", weight=0), turn("assistant", "right", weight=1)
    value = {"messages": [turn("user", "q"), first, turn("user", "r"), last]}
    expected = {
        "all": f"<|im_start|>⟦user\nq{E}\n{A}⟧wrong{E}⟦\n{U}r{E}\n{A}right{E}\n⟧",
        "turns": f"{U}q{E}\n{A}wrong{E}\n{U}r{E}\n{A}⟦right{E}⟧\n",
    }
    expected["response"] = expected["turns"]
    assert marked(tokenizer, CHATML, value, loss_on) == expected[loss_on]
    assert record(value).unused == {}


def test_a_weight_that_is_no_share_is_refused():
    said = why_not({"messages": [turn("user"), turn("assistant", weight=0.5)]})
    assert (
        "messages, turn 2: 'weight' of an answer should be 0 (it is read) or 1 (it is trained), found the number 0.5"
        in said
    )


# What the template leaves out


def test_thoughts_that_the_template_leaves_out_of_the_last_answer_are_refused(tokenizer):
    with pytest.raises(InputError, match="does not write the thoughts of the answer"):
        marked(tokenizer, R1, {"messages": said("q", "<think>2+2</think>4")})
    with pytest.raises(InputError, match="does not write the thoughts of the answer"):
        marked(tokenizer, CHATML, {"messages": [turn("user"), turn("assistant", "4", reasoning_content="2+2")]})
    assert marked(tokenizer, R1, {"messages": said("q", "4")}) == "[INST]q[/INST]⟦4</s>⟧"


def test_an_answer_that_does_not_follow_what_a_model_is_asked_with_is_refused(tokenizer):
    opens = R1.replace("{{ '[/INST]' }}", "{{ '[/INST]<think>\n' }}")
    with pytest.raises(
        InputError, match="opens the thinking where it asks for an answer, and writes this answer without"
    ):
        marked(tokenizer, opens, {"messages": said("q", "4")})


def test_thoughts_left_out_of_earlier_answers_are_said(tokenizer):
    tokenizer.chat_template = QWEN3
    talk = record({"messages": said("q", "<think>hm</think>a", "r", "b")}, "f:3")
    found = encode_all([talk], tokenizer, max_length=99, loss_on="turns")
    what = "the thoughts of a turn of the assistant: not in the text that the chat template writes"
    assert remarks_of(found, [talk]) == [f"{what}: 1 record (f:3)"]


@pytest.mark.parametrize("template", [LLAMA3, CHATML])
def test_calls_of_tools_that_the_template_does_not_write_are_refused(tokenizer, template):
    with pytest.raises(InputError, match="does not write the calls of tools of the answer"):
        marked(tokenizer, template, {"messages": CALLS})
    assert "cut" in marked(tokenizer, QWEN3, {"messages": CALLS})


def test_tools_names_and_ids_that_the_template_does_not_write_are_said(tokenizer):
    tokenizer.chat_template = CHATML
    turns = [
        turn("user", name="Ann"),
        turn("assistant", "a"),
        turn("tool", "2", tool_call_id="call_7"),
        turn("assistant", "b"),
    ]
    row = record({"messages": turns, "tools": [{"function": {"name": "f"}}]}, "f:1")
    found = encode_all([row], tokenizer, max_length=99, loss_on="response").remarks
    assert [remark.partition(":")[0] for remark in found] == [
        "the name of a turn of the user", "the tool_call_id of a turn of the tool", "tools",
    ]  # fmt: skip


# Keys that nothing reads

PLACES = {
    "the row": lambda row, key: row.__setitem__(key, "v"),
    "a turn": lambda row, key: row["messages"][0].__setitem__(key, "v"),
    "an answer": lambda row, key: row["messages"][1].__setitem__(key, [1]),
    "a part": lambda row, key: row["messages"][2]["content"][0].__setitem__(key, "v"),
    "a call": lambda row, key: row["messages"][3]["tool_calls"][0].__setitem__(key, "v"),
    "a function": lambda row, key: row["messages"][3]["tool_calls"][0]["function"].__setitem__(key, {"a": 1}),
}
NAMED = {"the row": "", "a turn": "messages[].", "an answer": "messages[].", "a part": "messages[].content[].",
         "a call": "messages[].tool_calls[].", "a function": "messages[].tool_calls[].function."}  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("place", PLACES)
def test_a_key_that_nothing_reads_is_named_wherever_it_stands(tmp_path, place, seed):
    key = "".join(random.Random(seed).choices("abcdefghij", k=7))
    talk = [
        turn("user"),
        turn("assistant"),
        turn("user", [{"type": "text", "text": "x"}]),
        turn("assistant", "", tool_calls=[CALL]),
    ]
    row = json.loads(json.dumps({"messages": talk}))
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert unused_keys(read_records(tmp_path / "a.jsonl")) == []
    PLACES[place](row, key)
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    name = NAMED[place] + key
    assert unused_keys(read_records(tmp_path / "a.jsonl")) == [f"{name!r} is not used: 1 record ({tmp_path}/a.jsonl:1)"]


def test_a_run_says_which_keys_it_does_not_use_and_in_what_copies_differ(tmp_path):
    rows = [{"text": "a", "id": 1}, {"text": "b", "id": 2}, {"text": "a", "id": 3}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    notes = splits.load(DataConfig(train_file=str(tmp_path / "a.jsonl")), seed=0).notes
    assert notes[0].startswith("train: 'id' is not used: 3 records (")
    assert notes[1].endswith("; 1 of them differ in 'id', which no token depends on")


# Tools, nulls, cells


@pytest.mark.parametrize("wants_text", [False, True])
def test_arguments_are_an_object_or_text_as_the_template_wants_them(tokenizer, wants_text):
    shown = "call.function.arguments" + ("" if wants_text else " | tojson")
    template = CHATML.replace("{{ m.content }}", (
        "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function.name + ' ' + ARGUMENTS }}{% endfor %}"
    ).replace("ARGUMENTS", shown if wants_text else f"({shown})"))  # fmt: skip
    for arguments in ({"part": "lid"}, '{"part": "lid"}'):
        call = {"function": {"name": "cut", "arguments": arguments}}
        value = {"messages": [turn("user", "q"), turn("assistant", "", tool_calls=[call])]}
        assert marked(tokenizer, template, value) == f'{U}q{E}\n{A}⟦cut {{"part": "lid"}}{E}⟧\n'


def test_nulls_that_arrow_fills_in_are_not_read(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    tools = [[{"name": "f", "kg": None}], [{"name": "g", "kg": 2}]]
    messages = [said("q", "a"), [turn("user"), turn("assistant", "b", reasoning_content="hm")]]
    parquet.write_table(pa.table({"messages": messages, "tools": tools}), tmp_path / "a.parquet")
    found = read_records(tmp_path / "a.parquet")
    assert [one["tools"] for one in found] == [[{"name": "f"}], [{"name": "g", "kg": 2}]]
    assert [one["messages"] for one in found] == messages


@pytest.mark.parametrize(
    ("value", "says"),
    [({"messages": [turn("user", [{"type": "text", "text": 3}]), turn("assistant")]},
      "'content' holds text parts whose 'text' should be text: part 1 has the number 3"),
     ({"messages": [turn("user", [{"type": "text"}]), turn("assistant")]}, "part 1 has null"),
     ({"messages": said("q", "a"), "tools": [{"name": "f", "description": "how big \ud83d"}]},
      "'tools.description' holds U+D83D"),
     ({"messages": [turn("user"), turn("assistant", "", tool_calls=[{"function": {"arguments": '{"a": "\\ud83d"}'}}])]},
      "'tool_calls.function.arguments.a' holds U+D83D"),
     ({"question": "q", "answer": "a"}, "read them with --data.columns instruction question output answer"),
     ({"input": "q", "output": "a"}, "read them with --data.columns instruction input output output")],
    ids=["part", "part without text", "tool", "call", "question", "input"],
)  # fmt: skip
def test_what_would_be_misread_is_refused(value, says):
    assert says in why_not(value)


def test_turns_in_the_cells_of_a_table_are_turns(tmp_path):
    talk, tail = said("q", "a"), said("q", "a")[1:]
    assert record({"messages": json.dumps(talk)}) == {"messages": talk}
    assert record({"prompt": json.dumps(talk[:1]), "completion": json.dumps(tail)}) == {
        "prompt": talk[:1],
        "completion": tail,
    }
    assert "'completion' should be an array of turns, found a text" in why_not(
        {"prompt": json.dumps(talk[:1]), "completion": "a"}
    )
    assert record({"prompt": "[1, 2]", "completion": "[3]"}) == {"prompt": "[1, 2]", "completion": "[3]"}


# Tokens that are there already


def test_an_end_of_text_that_a_record_has_is_not_added_again(tokenizer):
    for text in ("xy", f"xy{E}", f"xy{E}\n"):
        assert marked(tokenizer, None, {"text": text}) == f"x⟦y{E}⟧"
        assert marked(tokenizer, None, {"prompt": "q", "completion": text}) == f"q⟦xy{E}⟧"


def test_a_beginning_of_text_that_a_record_has_is_not_added_again(tmp_path):
    from tokenizers import processors

    opening = chat_tokenizer(tmp_path, bos_token="[INST]", eos_token="</s>")
    opening.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[INST] $A", special_tokens=[("[INST]", opening.bos_token_id)]
    )
    assert opening("x")["input_ids"][0] == opening.bos_token_id
    for start in ("", "[INST]"):
        assert marked(opening, None, {"text": f"{start}xy"}) == "[INST]⟦xy</s>⟧"
        assert marked(opening, None, {"prompt": f"{start}q", "completion": "a"}) == "[INST]q⟦a</s>⟧"


def test_a_doubled_token_in_a_conversation_is_said(tokenizer):
    tokenizer.chat_template = CHATML
    rows = [record({"messages": said("q", answer)}, f"f:{n}") for n, answer in enumerate(("a", f"a{E}"))]
    found = encode_all(rows, tokenizer, max_length=99, loss_on="response")
    assert found.remarks == {DOUBLED: [1]}
    assert remarks_of(found, rows) == [f"{DOUBLED}: 1 record (f:1)"]


def test_a_template_that_opens_no_answer_does_not_train_its_header(tokenizer):
    from bidora_jax.data import chat_template
    from bidora_jax.data.prompts import prompt_text

    silent = CHATML.partition("{% if add_generation_prompt")[0]
    assert marked(tokenizer, silent, {"messages": said("q", "a", "r", "b")}, "turns") == (
        f"{U}q{E}\n{A}⟦a{E}⟧\n{U}r{E}\n{A}⟦b{E}⟧\n"
    )
    assert prompt_text(record({"messages": said("q", "a")}), tokenizer) == f"{U}q{E}\n{A}"
    assert chat_template.has_own_opening(tokenizer)
    tokenizer.chat_template = MISTRAL
    assert not chat_template.has_own_opening(tokenizer)
