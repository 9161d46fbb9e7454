"""Masks: what each shape of record becomes, token by token, under several chat templates and each loss_on.

data/prompts.py and data/chat_template.py make them.
"""

import json
import threading

import pytest
from chat_templates import CHATML, LLAMA3, MARKED, MISTRAL, OPENING, QWEN3, SPECIAL, chat_tokenizer, marked
from turns import EARLIER, said, turn

from bidora_jax.data import chat_template
from bidora_jax.data.encoding import encode, encode_all
from bidora_jax.data.prompts import prompt_ids, question_text, response_text
from bidora_jax.data.records import BadRecord, question, record
from bidora_jax.errors import InputError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return chat_tokenizer(tmp_path_factory.mktemp("tokenizer"))


# Each shape × each loss_on, by hand

U, A, S = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_start|>system\n"
E = "<|im_end|>"
ONE = [
    ({"instruction": "q", "input": "more", "output": "a"}, f"{U}q\n\nmore{E}\n{A}⟦a{E}⟧", f"{U}q\n\nmore{E}\n{A}a{E}"),
    ({"instruction": "q", "response": "a", "system": "s"}, f"{S}s{E}\n{U}q{E}\n{A}⟦a{E}⟧", f"{S}s{E}\n{U}q{E}\n{A}a{E}"),
    ({"prompt": "q", "completion": "a"}, f"q⟦a{E}⟧", f"qa{E}"),
    ({"prompt": said("q"), "completion": [{"role": "assistant", "content": "a"}]}, f"{U}q{E}\n{A}⟦a{E}⟧\n",
     f"{U}q{E}\n{A}a{E}\n"),
    ({"messages": said("s", "q", "a", first="system")}, f"{S}s{E}\n{U}q{E}\n{A}⟦a{E}⟧\n", f"{S}s{E}\n{U}q{E}\n{A}a{E}\n"),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, f"{U}q{E}\n{A}⟦a{E}⟧\n",
     f"{U}q{E}\n{A}a{E}\n"),
    ({"code": "xy"}, f"x⟦y{E}⟧", f"xy{E}"),
    ({"text": "xy"}, f"x⟦y{E}⟧", f"xy{E}"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "response", "text"), ONE, ids=lambda value: next(iter(value), None))
def test_one_answer_is_trained_with_its_end_of_turn(tokenizer, value, response, text):
    assert marked(tokenizer, CHATML, value) == response
    assert marked(tokenizer, CHATML, value, "turns") == response
    first = next(token for token in (*SPECIAL, text[0]) if text.startswith(token))
    assert marked(tokenizer, CHATML, value, "all") == f"{first}⟦{text.removeprefix(first)}⟧"


TALK = {"messages": said("q", "a", "r", "bx")}
HEAD, REST = "<|im_start|>", f"user\nq{E}\n{A}a{E}\n{U}r{E}\n{A}bx{E}\n"


@pytest.mark.parametrize(
    ("loss_on", "expected"),
    [
        ("response", f"{U}q{E}\n{A}a{E}\n{U}r{E}\n{A}⟦bx{E}⟧\n"),
        ("turns", f"{U}q{E}\n{A}⟦a{E}⟧\n{U}r{E}\n{A}⟦bx{E}⟧\n"),
        ("all", f"{HEAD}⟦{REST}⟧"),
    ],
)
def test_of_a_conversation_the_last_answer_all_answers_or_everything(tokenizer, loss_on, expected):
    assert marked(tokenizer, CHATML, TALK, loss_on) == expected
    turns = [{"from": {"user": "human", "assistant": "gpt"}[turn["role"]], "value": turn["content"]}
             for turn in TALK["messages"]]  # fmt: skip
    assert marked(tokenizer, CHATML, {"conversations": turns}, loss_on) == expected


def test_the_answers_in_a_prompt_are_not_those_of_its_completion(tokenizer):
    value = {"prompt": said("q", "a", "r"), "completion": said("q", "b", "s", "c")[1:]}
    head = f"{U}q{E}\n{A}a{E}\n{U}r{E}\n"
    assert marked(tokenizer, CHATML, value) == f"{head}{A}b{E}\n{U}s{E}\n{A}⟦c{E}⟧\n"
    assert marked(tokenizer, CHATML, value, "turns") == f"{head}{A}⟦b{E}⟧\n{U}s{E}\n{A}⟦c{E}⟧\n"


# Other templates


def test_blanks_that_a_template_trims_and_its_own_end_of_turn(tokenizer):
    value = {"messages": said(" q ", " a \n", "r", "b ")}
    u, a, e = "<|im_start|>user\n\n", "<|im_start|>assistant\n\n", "<|endoftext|>"
    assert marked(tokenizer, LLAMA3, value, "turns") == f"{u}q{e}{a}⟦a{e}⟧{u}r{e}{a}⟦b{e}⟧"
    assert marked(tokenizer, LLAMA3, value) == f"{u}q{e}{a}a{e}{u}r{e}{a}⟦b{e}⟧"


def test_a_template_without_headers(tokenizer):
    expected = "[INST] q[/INST]⟦ a</s>⟧[INST] r[/INST]⟦ bx</s>⟧"
    assert marked(tokenizer, MISTRAL, TALK, "turns") == expected
    assert marked(tokenizer, MISTRAL, TALK) == expected.replace("⟦ a</s>⟧", " a</s>")


def test_a_template_that_ends_no_answer_gets_the_end_of_text(tokenizer):
    bare = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    assert marked(tokenizer, bare, TALK, "turns") == f"user: q\nassistant: ⟦a⟧\nuser: r\nassistant: ⟦bx\n{E}⟧"


def test_a_template_marks_what_is_generated_and_is_believed(tokenizer):
    assert marked(tokenizer, MARKED, TALK, "turns") == f"{U}q{E}\n{A}⟦a{E}\n⟧{U}r{E}\n{A}⟦bx{E}\n⟧"
    assert marked(tokenizer, MARKED, TALK) == f"{U}q{E}\n{A}a{E}\n{U}r{E}\n{A}⟦bx{E}\n⟧"
    assert chat_template.is_marked(tokenizer)
    tokenizer.chat_template = {"default": CHATML, "tool_use": MARKED}
    assert (chat_template.is_marked(tokenizer), chat_template.is_marked(tokenizer, [{"name": "f"}])) == (False, True)


def test_no_token_reaches_into_an_answer(tokenizer):
    """'\\n' ‖ '\\nb' would have one token for both newlines, which no model is asked with."""
    value = {"messages": said("q", "\nb")}
    assert marked(tokenizer, CHATML, value) == f"{U}q{E}\n{A}⟦\nb{E}⟧\n"
    tokenizer.chat_template = CHATML
    example = encode(record(value), tokenizer, max_length=99, loss_on="response")
    asked = prompt_ids(record(value), tokenizer)
    assert example.tokens[: len(asked)].tolist() == asked
    assert example.trained.tolist() == [False] * len(asked) + [True] * 3 + [False]


# Qwen3's own template

NO_THOUGHT = "<think>\n\n</think>\n\n"


def test_qwen3_opens_the_last_answer_with_an_empty_thought_and_it_is_trained(tokenizer):
    assert marked(tokenizer, QWEN3, {"messages": said("q", "a")}) == f"{U}q{E}\n{A}⟦{NO_THOUGHT}a{E}⟧\n"


def test_qwen3_leaves_the_thoughts_of_earlier_answers_out(tokenizer):
    thought = "<think>\nhm\n</think>\n\n"
    value = {"messages": said("q", thought + "a", "r", thought + "b")}
    expected = f"{U}q{E}\n{A}⟦a{E}⟧\n{U}r{E}\n{A}⟦{thought}b{E}⟧\n"
    assert marked(tokenizer, QWEN3, value, "turns") == expected
    assert marked(tokenizer, QWEN3, value) == expected.replace(f"⟦a{E}⟧", f"a{E}")
    apart = said("q", "a", "r", "b")
    apart[3]["reasoning_content"] = "hm"
    assert marked(tokenizer, QWEN3, {"messages": apart}, "turns") == expected


def test_qwen3_answers_that_look_like_its_marks_are_found_where_they_stand(tokenizer):
    """Answers that repeat each other, the question, and the words of the template."""
    value = {"messages": said("a", "a", "a\n", "assistant\na\n", "x", "xx")}
    expected = f"{U}a{E}\n{A}⟦a{E}⟧\n{U}a\n{E}\n{A}⟦assistant\na\n{E}⟧\n{U}x{E}\n{A}⟦{NO_THOUGHT}xx{E}⟧\n"
    assert marked(tokenizer, QWEN3, value, "turns") == expected


def test_qwen3_calls_of_tools_are_trained_and_their_results_are_not(tokenizer):
    call = {"type": "function", "function": {"name": "f", "arguments": {"n": 1}}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]},
             {"role": "tool", "content": "2"}, {"role": "assistant", "content": "two"}]  # fmt: skip
    called = '<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>'
    result = "<tool_response>\n2\n</tool_response>"
    text = marked(tokenizer, QWEN3, {"messages": turns, "tools": [{"name": "f"}]}, "turns")
    head, _, rest = text.partition(U)
    assert head.startswith(f"{S}# Tools\n") and '<tools>\n{"name": "f"}\n</tools>' in head and "⟦" not in head
    assert rest == f"q{E}\n{A}⟦{called}{E}⟧\n{U}{result}{E}\n{A}⟦{NO_THOUGHT}two{E}⟧\n"
    after = [*turns, *said("r", "b")]
    rest = marked(tokenizer, QWEN3, {"messages": after, "tools": '[{"name": "f"}]'}, "turns").partition(U)[2]
    assert rest == f"q{E}\n{A}⟦{called}{E}⟧\n{U}{result}{E}\n{A}⟦two{E}⟧\n{U}r{E}\n{A}⟦{NO_THOUGHT}b{E}⟧\n"


def test_thinking_that_the_template_opens_itself_is_not_trained(tokenizer):
    assert marked(tokenizer, OPENING, {"messages": said("q", "a")}) == f"{U}q{E}\n{A}<think>\n⟦\n</think>\n\na{E}⟧\n"
    # An earlier answer stands without it: all that stands there is trained.
    expected = f"{U}q{E}\n{A}⟦a{E}⟧\n{U}r{E}\n{A}<think>\n⟦\n</think>\n\nbx{E}⟧\n"
    assert marked(tokenizer, OPENING, TALK, "turns") == expected


@pytest.mark.parametrize("template", [CHATML, QWEN3, LLAMA3, MISTRAL, OPENING])
def test_the_tokens_before_the_last_answer_are_those_a_model_is_asked_with(tokenizer, template):
    tokenizer.chat_template = template
    one = record({"messages": said("q", "a", "r", "bx")})
    example = encode(one, tokenizer, max_length=999, loss_on="response")
    asked = prompt_ids(one, tokenizer)
    assert example.tokens[: len(asked)].tolist() == asked
    assert int(example.trained.argmax()) == len(asked)
    assert (question_text(one), response_text(one)) == ("r", "bx")
    assert prompt_ids(question({"messages": said("q", "a", "r")}), tokenizer) == asked


# What can't be determined is refused


def refused(tokenizer, template, *values: dict, loss_on: str = "turns") -> str:
    tokenizer.chat_template = template
    rows = [record(value, f"talks.jsonl:{number}") for number, value in enumerate(values, 1)]
    with pytest.raises(InputError) as refusal:
        encode_all(rows, tokenizer, max_length=99, loss_on=loss_on)
    return str(refusal.value)


def test_an_answer_that_is_written_otherwise_than_it_is_asked_for_is_refused(tokenizer):
    template = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>model\n{% endif %}")
    message = refused(tokenizer, template, {"messages": said("q", "a")}, loss_on="response")
    assert "1 of the 1 conversations" in message
    assert "talks.jsonl:1: can't tell where the answer of turn 2 begins" in message
    assert "model" in message and "loss_on to all" in message
    assert "⟦" in marked(tokenizer, template, {"messages": said("q", "a")}, "all")


def test_a_template_that_changes_the_end_of_earlier_answers_is_refused(tokenizer):
    template = CHATML.replace("{{ m.content }}", "{{ m.content }}{{ '' if loop.last or m.role == 'user' else '…' }}")
    message = refused(tokenizer, template, TALK)
    assert "can't tell where the answer of turn 2 ends" in message
    assert marked(tokenizer, template, TALK).endswith(f"⟦bx{E}⟧\n")  # the last one is certain


def test_a_template_that_counts_letters_is_refused(tokenizer):
    template = CHATML.replace("{{ m.content }}", "{{ m.content | length }}{{ m.content }}{{ loop.last }}")
    assert "can't tell where turn 1 (user) ends in the text that the chat template writes" in refused(
        tokenizer, template, TALK
    )


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes more than 0.3 s"),
        ("{{ '%99999d' % 1 }}", "writes 99,999 characters"),
        ("{{ ('%999999999d' % 1) | length }}", "takes more than 512 MiB"),
    ],
)
def test_a_template_that_eats_time_or_memory_ends_the_work_at_once(tokenizer, monkeypatch, template, said):
    """It is a program in a file of somebody else's; each of a thousand conversations would have to wait for it."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # a worker may have another, asleep
    monkeypatch.setattr(chat_template, "LONGEST", 0.3)
    monkeypatch.setattr(chat_template, "LARGEST", 50_000)
    assert said in refused(tokenizer, template, *[TALK] * 1000)


def test_all_conversations_that_a_template_refuses_are_listed_with_their_places(tokenizer):
    odd = {"messages": said("s", "q", "a", first="system")}
    message = refused(tokenizer, MISTRAL, odd, TALK, odd)
    assert "2 of the 3 conversations cannot be used with this model and loss_on = turns" in message
    for place in ("talks.jsonl:1", "talks.jsonl:3"):
        assert (
            f"{place}: the tokenizer's chat template refuses the turns system, user, assistant: roles must" in message
        )


def test_conversations_that_are_tokenised_together_stay_apart(tokenizer, monkeypatch):
    """Those of a call, a bad one and one whose tokens are cut anew among them, are what each is alone."""
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = no_system + CHATML
    turns = [
        said("q", "a"),
        said("s", "q", "a", first="system"),
        said("é", "🙂", "r\n", "\nb"),
        said("q", "\n\n"),
        said("x", "y"),
    ]
    talks = [chat_template.Conversation(one, numbers) for one in turns for numbers in ([len(one) - 1], None)]
    alone = [chat_template.tokens([talk], tokenizer)[0] for talk in talks]
    monkeypatch.setattr(chat_template, "BATCH", 3)
    together = chat_template.tokens(talks, tokenizer)
    assert [isinstance(one, BadRecord) for one in together] == [False] * 2 + [True] * 2 + [False] * 6
    assert [str(one) for one in together] == [str(one) for one in alone]
    assert len({str(one) for one in together}) == 9  # all differ but the two that are refused alike


def test_turns_without_a_template_are_refused(tokenizer):
    assert "records with turns need a chat template" in refused(tokenizer, None, TALK)


def test_a_conversation_is_cut_at_its_end_and_counted(tokenizer):
    assert marked(tokenizer, CHATML, TALK, "turns", max_length=21) == f"{U}q{E}\n{A}⟦a⟧"
    tokenizer.chat_template = CHATML
    kept = encode_all([record(TALK), record({"text": "xy"})], tokenizer, max_length=21, loss_on="response")
    assert (len(kept.examples), kept.n_truncated, kept.n_untrained) == (1, 1, 1)


# What came before an instruction


@pytest.mark.parametrize(
    ("loss_on", "expected"),
    [
        ("response", f"{S}s{E}\n{U}q{E}\n{A}a{E}\n{U}r{E}\n{A}b{E}\n{U}t\n\nmore{E}\n{A}⟦cx{E}⟧\n"),
        ("turns", f"{S}s{E}\n{U}q{E}\n{A}⟦a{E}⟧\n{U}r{E}\n{A}⟦b{E}⟧\n{U}t\n\nmore{E}\n{A}⟦cx{E}⟧\n"),
    ],
)
@pytest.mark.parametrize("history", [EARLIER, json.dumps(EARLIER)], ids=["array", "text"])
def test_a_history_is_turns_before_the_question(tokenizer, loss_on, expected, history):
    value = {"instruction": "t", "input": "more", "output": "cx", "system": "s", "history": history}
    assert marked(tokenizer, CHATML, value, loss_on) == expected
    found = record(value, "f:7")
    assert found == {"messages": [turn("system", "s"), turn("user", "q"), turn("assistant", "a"), turn("user", "r"),
                                  turn("assistant", "b"), turn("user", "t\n\nmore"), turn("assistant", "cx")]}  # fmt: skip
    assert found.place == "f:7"
    assert question(value) == {"messages": found["messages"][:-1]}
    assert question({"instruction": "t", "history": [["q", "a"]]}) == {"messages": said("q", "a", "t")}
    assert prompt_ids(question(value), tokenizer) == prompt_ids(found, tokenizer)
