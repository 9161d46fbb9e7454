"""chat.py, generation/chat.py and generation/conversation.py: a chat over a pipe, its memory, its commands and its bounds.

generation/ctrl_c.py: Ctrl-C is a signal here too, raised while an answer is written or a line is read.
"""

import io
import signal
import sys

import pytest
from conversations import answered, turn

from bidora_jax import chat, generate
from bidora_jax.data import prompts
from bidora_jax.data.tokenizer import load_tokenizer
from bidora_jax.errors import command
from bidora_jax.generation import conversation
from bidora_jax.generation.ctrl_c import CtrlC
from bidora_jax.kernels.sampling import Sampling

ASKS = "<|im_start|>assistant\n"
NEW = 7


def talked(model_folder, lines, capfd, monkeypatch, *argv, main=chat.main, stdin=io.StringIO) -> tuple[str, str]:
    """Answers, and what is said of them."""
    monkeypatch.setattr(sys, "stdin", stdin("\n".join(lines)))
    command(main, ["--model", str(model_folder), "--max-new-tokens", str(NEW), *argv])
    out, err = capfd.readouterr()
    first, _, rest = err.partition(" s)\n")
    assert first.startswith("(compiling for conversations of up to 64 tokens …")
    return out, rest


def test_a_chat_remembers_its_turns_until_it_is_reset(model_folder, capfd, monkeypatch):
    system, first = turn("system", "s"), turn("user", "abc")
    answer = answered(model_folder, [system + first + ASKS], numbers=[2])[0]
    both = system + first + turn("assistant", answer) + turn("user", "and?") + ASKS
    second = answered(model_folder, [both])[0]
    fresh = answered(model_folder, [system + turn("user", "and?") + ASKS])[0]
    assert second != fresh
    lines = ["abc", "", "and?", "/reset", "and?", "/exit", "not heard"]
    cut = f"[cut at {NEW} tokens: --max-new-tokens]\n"
    for main, flag in ((chat.main, []), (generate.main, ["--chat"])):
        out, err = talked(model_folder, lines, capfd, monkeypatch, "--system", "s", *flag, main=main)
        assert out == f"{answer}\n{second}\n{fresh}\n"
        assert err.replace("(compiling for conversations of up to 128 tokens … 0 s)\n", "").count(cut) == 3
        assert "(the conversation is forgotten)\n" in err


def test_the_system_prompt_can_be_set_and_the_last_question_asked_again(model_folder, capfd, monkeypatch):
    def answer(system, **how):
        return answered(model_folder, [system + turn("user", "abc") + ASKS], **how)[0]

    plain, set_ = answer(""), answer(turn("system", "be b"))
    assert plain != set_
    lines = ["/retry", "abc", "/system be b", "/retry", "/system", "/retry", "/help", "/what"]
    out, err = talked(model_folder, lines, capfd, monkeypatch)
    assert out == f"{plain}\n{set_}\n{plain}\n"
    for said in ("(there is no answer to try again)\n", "(the system prompt is set)\n", "(there is no system prompt)\n",
                 "/retry         answers the last question again", "there is no /what; /help lists"):  # fmt: skip
        assert said in err
    hot = {"sampling": Sampling(temperature=2.0), "numbers": [1]}
    first, again = answer("", **hot, seed=5), answer("", **hot, seed=6)
    assert first != again
    out, _ = talked(model_folder, ["abc", "/retry", "abc"], capfd, monkeypatch, "--temperature", "2", "--seed", "5")
    assert out.splitlines()[:2] == [first, again]


def test_a_chat_switches_adapters(model_folder, adapter_folders, capfd, monkeypatch):
    given = [text for name, folder in adapter_folders.items() for text in ("--adapter", f"{name}={folder}")]
    lines = ["abc", "/adapter dora", "/retry", "/adapter none", "/adapter"]
    out, err = talked(model_folder, lines, capfd, monkeypatch, *given)
    first, second = out.splitlines()
    assert first != second
    assert "(dora answers)\n" in err
    assert err.count("adapters: lora, dora\n") == 2
    assert "compiling" not in err  # adapters of any rank are one shape


def test_a_conversation_longer_than_the_context_says_so(model_folder, capfd, monkeypatch):
    out, err = talked(model_folder, ["a" * 240, "/reset", "a"], capfd, monkeypatch)
    assert "tokens, as many as the model's context takes; /reset starts anew" in err
    assert len(out.splitlines()) == 1


def test_an_answer_that_fills_the_context_is_cut_there(model_folder, capfd, monkeypatch):
    asked = 256 - 3 - len(load_tokenizer(model_folder)(turn("user", "") + ASKS)["input_ids"])
    _, err = talked(model_folder, ["b" * asked], capfd, monkeypatch)
    assert "[cut at 3 tokens: the model's context is full, /reset starts anew]" in err


# Ctrl-C


class Interrupting(io.StringIO):
    """Lines of which ^C is a press of Ctrl-C while the line is typed."""

    def readline(self, *size):
        line = super().readline(*size)
        if line.startswith("^C"):
            signal.raise_signal(signal.SIGINT)
        return line


def test_control_c_stops_an_answer_and_keeps_what_is_there(model_folder, capfd, monkeypatch):
    asked, written, pressed = turn("user", "abc"), [], []

    class Pressing(io.StringIO):
        """Presses Ctrl-C when the first words are shown."""

        def write(self, text):
            written.append(text)
            if text.strip() and not pressed:
                pressed.append(signal.raise_signal(signal.SIGINT))
            return len(text)

    with monkeypatch.context() as at:
        at.setattr(sys, "stdout", Pressing())
        at.setattr(sys, "stdin", io.StringIO("abc\nand?"))
        command(chat.main, ["--model", str(model_folder), "--max-new-tokens", "60"])
    first, second, _ = "".join(written).split("\n")
    whole = answered(model_folder, [asked + ASKS])[0]
    assert whole.startswith(first) or first.startswith(whole)
    assert 0 < len(first) <= 9  # the first token, or the chunk after it
    assert second.startswith(
        answered(model_folder, [asked + turn("assistant", first) + turn("user", "and?") + ASKS])[0]
    )
    assert capfd.readouterr().err.count("[stopped]\n") == 1


def test_control_c_while_programs_are_compiled_stops_at_the_first_token(model_folder, capfd, monkeypatch):
    said = sys.stderr

    class Pressing(io.StringIO):
        """Presses Ctrl-C when programs of a second width are compiled."""

        def write(self, text):
            if text.startswith("(compiling for conversations of up to 128"):
                signal.raise_signal(signal.SIGINT)
            return said.write(text)

    monkeypatch.setattr(sys, "stderr", Pressing())
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc" * 30))
    command(chat.main, ["--model", str(model_folder), "--max-new-tokens", str(NEW)])
    out, err = capfd.readouterr()
    assert len(out) <= 2  # a character, at most, and the end of the line
    assert "[stopped]\n" in err


def test_control_c_clears_a_line_and_twice_ends(model_folder, capfd, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    lines = ["^C cleared", "abc", "^C", "^C", "not heard"]
    out, err = talked(model_folder, lines, capfd, monkeypatch, stdin=Interrupting)
    assert out == answered(model_folder, [turn("user", "abc") + ASKS])[0] + "\n"
    assert err.count("(Ctrl-C once more ends the chat)") == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_control_c_is_a_flag_but_where_it_is_raised():
    with CtrlC() as interrupts:
        assert not interrupts.taken()
        signal.raise_signal(signal.SIGINT)
        assert (interrupts.taken(), interrupts.taken()) == (True, False)
        with pytest.raises(KeyboardInterrupt), interrupts.raised():
            signal.raise_signal(signal.SIGINT)
        assert not interrupts.taken()


def test_values_out_of_bounds_are_refused_before_anything_is_read(capfd):
    with pytest.raises(SystemExit) as stopped:
        command(chat.main, ["--model", "none", "--top-p", "0", "--max-new-tokens", "0"])
    said = capfd.readouterr().err
    assert stopped.value.code == 2 and "--top-p must be above 0" in said and "--max-new-tokens must be" in said


# Text as it comes


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
