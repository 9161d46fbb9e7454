"""generation/conversation.py: the tokens at which an answer ends."""

import json

import pytest
from chat_templates import CHATML, MISTRAL, chat_tokenizer

from bidora_jax.data import chat_template
from bidora_jax.generation import conversation


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def test_an_answer_ends_at_the_end_of_text_and_at_the_end_of_a_turn(folder):
    """A base model: its texts end with one token, and its chat template's turns with another."""
    tokenizer = chat_tokenizer(folder, eos_token="<|endoftext|>")
    assert conversation.ends(folder, tokenizer) == [tokenizer.eos_token_id]
    tokenizer.chat_template = CHATML
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat_template.end_of_turn(tokenizer) == turn
    assert conversation.ends(folder, tokenizer) == sorted([tokenizer.eos_token_id, turn])
    tokenizer.chat_template = MISTRAL.replace("</s>", "")
    assert chat_template.end_of_turn(tokenizer) is None


def test_the_ends_that_the_folder_lists_count_too(folder):
    tokenizer = chat_tokenizer(folder, eos_token="<|endoftext|>")
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    assert conversation.ends(folder, tokenizer) == [0, 7]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    assert conversation.ends(folder, tokenizer) == [0, 5]  # as transformers: generation_config.json comes first
    assert conversation.ends_of_folder(folder) == [0, 5]
    assert conversation.ends_of_folder(folder / "nowhere") == []
