"""Records: what is read, what is refused and how, and which tokens are trained."""

import json
from pathlib import Path

import numpy as np
import pytest
from byte_tokenizer import make_tokenizer

from bidora_jax.data.encoding import chunk_lengths, encode, encode_all, encode_each, read_records
from bidora_jax.data.prompts import PLAIN_TEMPLATE, prompt_ids, response_text
from bidora_jax.data.records import Record
from bidora_jax.data.tokenizer import load_tokenizer, pad_id
from bidora_jax.errors import InputError

EOS, USER, BOT = 0, 1, 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def ids(tokenizer, *words: str) -> list[int]:
    return [tokenizer.get_vocab()[word] for word in words]


def write(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


# Reading


def test_the_four_shapes_are_read_with_their_keys_only(tmp_path):
    path = write(
        tmp_path,
        b'\xef\xbb\xbf{"instruction": "i", "input": "more", "output": "o", "id": 7}',
        '{"instruction": "i", "input": null, "output": "", "text": "ignored"}',
        "",
        '{"instruction": "i", "input": "", "output": "o"}',
        '{"prompt": "p", "completion": "c", "text": "ignored"}\r',
        '  {"code": "c", "text": "ignored"}',
        '{"text": "zwei Zeilen\\n\u2028"}',
        "",
    )
    assert read_records(path) == [
        {"instruction": "i", "output": "o", "input": "more"},
        {"instruction": "i", "output": ""},
        {"instruction": "i", "output": "o"},
        {"prompt": "p", "completion": "c"},
        {"code": "c"},
        {"text": "zwei Zeilen\n\u2028"},
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{'text': 'x'}", "not JSON (Expecting property name enclosed in double quotes in column 2)"),
        ("[" * 100_000, "not JSON that can be read"),
        ('[{"text": "x"}]', "found an array; write the elements of the array one a line"),
        ('"x"', "expected an object, found a text"),
        ('{"instrution": "i", "output": "o"}', "its keys: 'instrution' (did you mean 'instruction'?), 'output'"),
        ("{}", "its keys: none"),
        (
            '{"instruction": "i", "ouput": "o"}',
            "has 'instruction' but lacks 'output'; its keys: 'instruction', 'ouput' (d",
        ),
        ('{"prompt": "p", "text": "t"}', "has 'prompt' but lacks 'completion'"),
        ('{"instruction": "i", "output": 5}', "'output' should be text, found the number 5"),
        ('{"instruction": "i", "input": ["a"], "output": "o"}', "'input' should be text, found an array"),
        ('{"instruction": "i", "input": 0, "output": "o"}', "'input' should be text, found the number 0"),
        ('{"text": null}', "'text' should be text, found null"),
        ('{"instruction": " \\n", "output": "o"}', "'instruction' is empty"),
        ('{"prompt": "", "completion": "o"}', "'prompt' is empty"),
        ('{"text": "x\\ud83d"}', "'text' holds U+D83D, one half of a surrogate pair"),
        (b'{"text": "\xe9"}', "not UTF-8 (byte 0xe9 in column 11)"),
    ],
)
def test_a_bad_line_is_named_with_its_fault(tmp_path, line, says):
    path = write(tmp_path, *['{"text": "fine"}'] * 16, line, '{"text": "fine"}')
    with pytest.raises(InputError) as refused:
        read_records(path)
    message = str(refused.value)
    assert f"{path}:17: " in message
    assert says in message
    assert "1 of the 18 lines" in message
    assert (
        "{instruction, input?, output, system?, history?}, {prompt, completion}, {messages}, {conversations}, {code} or"
        in message
    )


def test_all_bad_lines_are_listed_up_to_ten(tmp_path):
    with pytest.raises(InputError) as refused:
        read_records(write(tmp_path, *["{}"] * 13))
    assert str(refused.value).count("data.jsonl:") == 10
    assert "and 3 more" in str(refused.value)


def test_a_missing_file_a_folder_and_an_empty_file_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no data file at .*absent\.jsonl"):
        read_records(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match=r"is a folder without \.txt files"):
        read_records(tmp_path)
    with pytest.raises(InputError, match="holds no record; expected one JSON object a line"):
        read_records(write(tmp_path, "", "  "))


# Tokens


def assert_example(example, tokens: list[int], trained: str, truncated: bool = False) -> None:
    """`trained` has a 1 for each trained token."""
    np.testing.assert_array_equal(example.tokens, tokens)
    assert example.tokens.dtype == np.int32
    assert "".join("01"[int(flag)] for flag in example.trained) == trained
    assert example.truncated == truncated


def test_instruction_goes_through_the_chat_template_and_the_response_is_trained(tokenizer):
    record = {"instruction": "ab", "input": "c", "output": "abc"}
    ab, newline, c, abc = ids(tokenizer, "ab", "Ċ", "c", "abc")
    example = encode(record, tokenizer, max_length=99, loss_on="response")
    assert_example(example, [USER, ab, newline, newline, c, BOT, abc, EOS], "00000011")
    assert prompt_ids(record, tokenizer) == [USER, ab, newline, newline, c, BOT]
    assert response_text(record) == "abc"


def test_loss_on_all_trains_the_prompt_but_never_the_first_token(tokenizer):
    ab, c = ids(tokenizer, "ab", "c")
    example = encode({"prompt": "cab", "completion": "c"}, tokenizer, max_length=99, loss_on="all")
    assert_example(example, [c, ab, c, EOS], "0111")


def test_no_token_straddles_the_border_of_prompt_and_response(tokenizer):
    """'ab' ‖ 'c' would be the one token 'abc' if the two were tokenised together."""
    ab, c = ids(tokenizer, "ab", "c")
    example = encode({"prompt": "ab", "completion": "c"}, tokenizer, max_length=99, loss_on="response")
    assert_example(example, [ab, c, EOS], "011")


@pytest.mark.parametrize("key", ["code", "text"])
def test_code_and_text_are_trained_from_the_second_token_to_the_end_of_text(tokenizer, key):
    a, c, abc = ids(tokenizer, "a", "c", "abc")
    example = encode({key: "acabc"}, tokenizer, max_length=99, loss_on="response")
    assert_example(example, [a, c, abc, EOS], "0111")
    with pytest.raises(InputError, match="has no prompt"):
        prompt_ids({key: "acabc"}, tokenizer)


def opening_tokenizer(folder: Path, *, chat: bool = False):
    """One that opens every text with <|bot|>."""
    make_tokenizer(folder, chat=chat)
    raw = json.loads((folder / "tokenizer.json").read_text())
    opening = {"SpecialToken": {"id": "<|bot|>", "type_id": 0}}
    raw["post_processor"] = {
        "type": "TemplateProcessing", "single": [opening, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [opening, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|bot|>": {"id": "<|bot|>", "ids": [BOT], "tokens": ["<|bot|>"]}},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "<|bot|>"}))
    return load_tokenizer(folder)


@pytest.mark.parametrize("chat", [True, False])
def test_text_opens_with_the_token_that_the_tokenizer_puts_there_and_a_template_with_its_own(tmp_path, chat):
    opened = opening_tokenizer(tmp_path, chat=chat)
    c, ab = ids(opened, "c", "ab")
    record = {"prompt": "c", "completion": "ab"}
    assert_example(encode(record, opened, max_length=9, loss_on="response"), [BOT, c, ab, EOS], "0011")
    assert_example(encode({"text": "ab"}, opened, max_length=9, loss_on="response"), [BOT, ab, EOS], "011")
    assert prompt_ids(record, opened) == [BOT, c] == opened("c")["input_ids"]
    instruction = prompt_ids({"instruction": "c", "output": "ab"}, opened)
    assert instruction[: 2 if chat else 1] == ([USER, c] if chat else [BOT])


def test_padding_with_the_end_of_text_does_not_mask_it(tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == pad_id(tokenizer) == EOS
    example = encode({"prompt": "c", "completion": "<eos>c"}, tokenizer, max_length=99, loss_on="response")
    assert_example(example, [*ids(tokenizer, "c"), EOS, *ids(tokenizer, "c"), EOS], "0111")


def test_truncation_cuts_the_end_and_says_so(tokenizer):
    a, c = ids(tokenizer, "a", "c")
    record = {"prompt": "c", "completion": "aac"}
    assert_example(encode(record, tokenizer, max_length=5, loss_on="response"), [c, a, a, c, EOS], "01111")
    assert_example(encode(record, tokenizer, max_length=4, loss_on="response"), [c, a, a, c], "0111", truncated=True)
    assert_example(encode(record, tokenizer, max_length=1, loss_on="response"), [c], "0", truncated=True)


def test_a_tokenizer_without_a_template_gets_the_plain_one(tmp_path):
    plain = make_tokenizer(tmp_path / "plain", chat=False)
    record = {"instruction": "{a}", "input": "b", "output": "c"}
    assert plain.decode(prompt_ids(record, plain)) == "### Instruction:\n{a}\n\nb\n\n### Response:\n"
    assert "{instruction}" in PLAIN_TEMPLATE


def test_encode_all_drops_and_counts_what_has_no_trained_token(tokenizer):
    records = [
        {"prompt": "c", "completion": "a"},
        {"prompt": "cc", "completion": "aaaa"},  # cut within the response: kept
        {"prompt": "cccc", "completion": "a"},  # the response is cut away
        {"prompt": "c", "completion": " \n"},
        {"text": ""},
        {"text": "c"},
    ]
    split_ = encode_all(records, tokenizer, max_length=4, loss_on="response")
    c, a = ids(tokenizer, "c", "a")
    assert [example.tokens.tolist() for example in split_.examples] == [[c, a, EOS], [c, c, a, a], [c, EOS]]
    assert (split_.n_truncated, split_.n_untrained) == (2, 3)


# Long records


@pytest.mark.parametrize(
    ("count", "most", "lengths"),
    [(0, 7, [0]), (3, 7, [3]), (7, 7, [7]), (8, 7, [4, 4]), (14, 7, [7, 7]), (22, 7, [7, 7, 4, 4]), (23, 7, [7, 7, 5, 4]),
     (27, 7, [7, 7, 7, 6]), (5, 2, [2, 2, 1]), (4, 3, [2, 2]), (2053, 1024, [1024, 965, 64]), (1088, 1024, [1024, 64]),
     (1087, 1024, [1023, 64]), (300, 127, [127, 109, 64]), (300, 129, [129, 107, 64])],
)  # fmt: skip
def test_chunks_are_full_but_for_the_end_by_hand(count, most, lengths):
    assert chunk_lengths(count, most) == lengths


def test_no_chunk_is_too_long_or_a_single_token():
    for most in range(3, 150):
        for count in (*range(2, 40), 127, 128, 129, 1009, most * 5, most * 5 + 1):
            lengths = chunk_lengths(count, most)
            assert sum(lengths) == count and len(lengths) == -(-count // most)
            assert min(lengths) >= 2 and max(lengths) <= most
            assert set(lengths[:-2]) <= {most}


@pytest.mark.parametrize("key", ["code", "text"])
def test_a_long_text_is_split_by_hand(tmp_path, key):
    """Opened once, ended once, the first token of a chunk not predicted, no token lost or twice."""
    opened = opening_tokenizer(tmp_path)
    c, a, ab, abc = ids(opened, "c", "a", "ab", "abc")
    record = {key: "cabcaabacabcc"}
    first, second, third = encode_each(record, opened, max_length=4, loss_on="response", long="split")
    assert_example(first, [BOT, c, abc, a], "0111")
    assert_example(second, [ab, a, c, abc], "0111")
    assert_example(third, [c, EOS], "01")
    (whole,) = encode_each(record, opened, max_length=10, loss_on="response", long="split")
    assert_example(whole, [BOT, c, abc, a, ab, a, c, abc, c, EOS], "0111111111")


def test_only_texts_are_split_and_the_others_are_cut_and_counted(tokenizer):
    a, c = ids(tokenizer, "a", "c")
    records = [
        {"prompt": "c", "completion": "aaaaaa"},
        {"text": "c"},
        {"code": "acacacac"},
        {"text": " "},
        {"instruction": "c", "output": "aaa"},
        {"text": "aaaaa"},
    ]
    found = encode_all(records, tokenizer, max_length=5, loss_on="all")
    assert [example.tokens.tolist() for example in found.examples] == [
        [c, a, a, a, a], [c, EOS], [a, c, a, c, a], [c, a, c, EOS], [USER, c, BOT, a, a], [a, a, a], [a, a, EOS],
    ]  # fmt: skip
    assert [example.record for example in found.examples] == [0, 1, 2, 2, 4, 5, 5]
    assert [example.truncated for example in found.examples] == [True, False, False, False, True, False, False]
    assert (found.chunks, found.n_truncated, found.n_untrained) == ([2, 2], 2, 1)


def test_a_chunk_of_one_token_has_nothing_to_train(tokenizer):
    found = encode_all([{"text": "aaaa"}, {"text": "c"}], tokenizer, max_length=2, loss_on="response")
    assert [(example.record, len(example.tokens)) for example in found.examples] == [(0, 2), (0, 2), (1, 2)]
    assert (found.n_truncated, found.n_untrained) == (0, 0)


@pytest.mark.parametrize(("long", "kept", "counts"), [("truncate", [0, 1], ([], 1, 0)), ("drop", [1], ([], 1, 0))])
def test_other_policies_split_nothing(tokenizer, long, kept, counts):
    records = [Record({"text": "acacac"}, "a:1"), Record({"text": "c"}, "a:2")]
    found = encode_all(records, tokenizer, max_length=5, loss_on="response", long=long)
    assert [example.record for example in found.examples] == kept
    assert (found.chunks, found.n_truncated, found.n_untrained) == counts
    assert all(len(example.tokens) == (5 if example.record == 0 else 2) for example in found.examples)
    with pytest.raises(
        InputError, match=r"1 of 2 records have more than .* set long to split, truncate or drop:\n  a:1$"
    ):
        encode_all(records, tokenizer, max_length=5, loss_on="response", long="refuse")


def test_encode_is_one_element_of_encode_all(tokenizer):
    records = [{"prompt": "ab", "completion": "abcabc"}, {"instruction": "abc", "output": "c"}, {"code": "ab ab"}]
    for record, example in zip(
        records, encode_all(records, tokenizer, max_length=9, loss_on="response").examples, strict=True
    ):
        alone = encode(record, tokenizer, max_length=9, loss_on="response")
        np.testing.assert_array_equal(alone.tokens, example.tokens)
        np.testing.assert_array_equal(alone.trained, example.trained)


def test_nothing_to_train_on_is_refused_with_both_reasons(tokenizer):
    records = [{"prompt": "c", "completion": ""}, {"prompt": "cccc", "completion": "a"}, {"text": " "}]
    with pytest.raises(InputError) as refused:
        encode_all(records, tokenizer, max_length=3, loss_on="response")
    assert "none of the 3 records has a token to train on: 2 have an empty response, 1 have no" in str(refused.value)
    assert "max_length = 3" in str(refused.value)


def test_long_texts_are_tokenised_without_a_warning(tokenizer, caplog):
    encode({"text": "abc " * 50}, tokenizer, max_length=99, loss_on="response")
    assert not caplog.records


# A template that refuses


def test_a_template_that_refuses_the_turn_says_so(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.chat_template = "{{ raise_exception('a system turn is needed') }}"
    with pytest.raises(InputError, match="chat template refuses the turns user: a system turn is needed"):
        prompt_ids({"instruction": "a", "output": "b"}, tokenizer)
