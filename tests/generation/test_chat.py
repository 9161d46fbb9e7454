"""generation/chat.py and generation/conversation.py: a chat over a pipe, its memory, its adapters and its bounds."""

import io
import sys

from conversations import answered, turn

from bidora_jax import generate
from bidora_jax.data import prompts
from bidora_jax.data.tokenizer import load_tokenizer
from bidora_jax.errors import command
from bidora_jax.generation import conversation


def talked(model_folder, lines, capfd, monkeypatch, *argv) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    command(generate.main, ["--model", str(model_folder), "--chat", "--max-new-tokens", "7", *argv])
    return capfd.readouterr().out


def test_a_chat_remembers_its_turns_until_it_is_reset(model_folder, capfd, monkeypatch):
    system, first = turn("system", "s"), turn("user", "abc")
    answer = answered(model_folder, [system + first + "<|im_start|>assistant\n"], numbers=[2])[0]
    both = system + first + turn("assistant", answer) + turn("user", "and?") + "<|im_start|>assistant\n"
    second = answered(model_folder, [both])[0]
    fresh = answered(model_folder, [system + turn("user", "and?") + "<|im_start|>assistant\n"])[0]
    assert second != fresh
    lines = ["abc", "", "and?", "/reset", "and?", "/exit", "not heard"]
    out = talked(model_folder, lines, capfd, monkeypatch, "--system", "s")
    assert out == f"{answer}\n{second}\n(the conversation is forgotten)\n{fresh}\n"


def test_a_chat_switches_adapters(model_folder, adapter_folders, capfd, monkeypatch):
    given = [text for name, folder in adapter_folders.items() for text in ("--adapter", f"{name}={folder}")]
    lines = ["abc", "/adapter dora", "/reset", "abc", "/adapter none", "/what"]
    out = talked(model_folder, lines, capfd, monkeypatch, *given)
    answers = out.split("(dora answers)\n(the conversation is forgotten)\n")
    assert answers[0] != answers[1].split("adapters: ")[0]
    assert "adapters: lora, dora\nthere is no /what; /reset" in out


def test_a_conversation_longer_than_the_context_says_so(model_folder, capfd, monkeypatch):
    out = talked(model_folder, ["a" * 240, "/reset", "a"], capfd, monkeypatch)
    assert "tokens, as many as the model's context takes; /reset starts anew" in out
    assert len(out.splitlines()) > 2


def test_half_a_character_is_held_back(model_folder):
    tokenizer = load_tokenizer(model_folder)

    class Bytes:
        def decode(self, tokens, **_):
            return bytes(tokens).decode("utf-8", errors="replace")

    spoken, whole = conversation.Spoken(Bytes()), "añ€😀".encode()
    pieces = [spoken.add([byte]) for byte in whole]
    assert pieces == ["a", "", "ñ", "", "", "€", "", "", "", "😀"]
    assert spoken.rest() == ""
    assert spoken.add(whole[6:8]) + spoken.rest() == "\ufffd"
    spoken = conversation.Spoken(tokenizer)
    ids = prompts.prompt_ids({"prompt": "ab c<|im_end|>d"}, tokenizer)
    assert [spoken.add([token]) for token in ids] == ["a", "b", " ", "c", "", "d"]
