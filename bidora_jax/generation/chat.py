"""The conversation of `bidora-jax chat`: lines in, streamed answers out.

Every turn the whole conversation goes through the model's template and the model again; answers come a few tokens at a time.
Conversations are padded to a few widths, and each width has programs of its own. Those of the first question are compiled before
it is asked. Answers go to standard output, and what is said of them to standard error.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from bidora_jax.errors import InputError
from bidora_jax.generation.ctrl_c import CtrlC

if TYPE_CHECKING:
    from bidora_jax.generation.decoding import Model
    from bidora_jax.generation.ensembles import Combine, Member
    from bidora_jax.generation.served_model import Served
    from bidora_jax.kernels.sampling import Sampling


CHUNK = 8
"""Tokens between two looks at an answer."""
FIRST_QUESTION = 24
"""Tokens that a first question is likely to have at most."""
HELP = """\
/retry         answers the last question again; other words come with --temperature, /system or /adapter
/reset         forgets the conversation
/system TEXT   sets the system prompt; without a text there is none
/adapter NAME  lets that adapter answer; without a name it lists them
/help          shows this list
/exit          ends, and so do Ctrl-D and Ctrl-C twice
Ctrl-C         stops an answer, or clears the line"""


class Settings(NamedTuple):
    """Settings that hold for the whole conversation."""

    system: str
    sampling: "Sampling"
    max_new_tokens: int
    seed: int
    combine: "Combine | None"


def chat(served: "Served", settings: Settings) -> None:
    """Talks until the input ends. InputError for a model or adapters that can't be opened, and for one without chat template."""
    from bidora_jax.generation import conversation, decoding
    from bidora_jax.generation.served_model import load_weights, open_folder

    opened = open_folder(served)
    tokenizer = opened.tokenizer
    conversation.require_template(opened.folder, tokenizer, "a chat")
    first = conversation.prompt_ids(
        [*conversation.opening(settings.system), conversation.said_by("user", "?")], tokenizer
    )
    base, members = load_weights(served, opened)
    model, ends = decoding.assemble(opened.config, base), conversation.ends(opened.folder, tokenizer)
    del base  # a CPU answers from a copy
    ctrl_c = CtrlC()
    talk = Talk(settings, model, members, tokenizer, ends, ctrl_c.taken)
    talk.warm(len(first) + FIRST_QUESTION)
    if sys.stdin.isatty():
        print("/help lists what can be typed, Ctrl-D ends")
    with ctrl_c:
        for line in lines(ctrl_c):
            if line.strip() and not talk.hear(line.strip()):
                return


def lines(ctrl_c: CtrlC) -> Iterator[str]:
    """The lines that are typed, until the input ends or Ctrl-C is pressed twice."""
    typed, pressed = sys.stdin.isatty(), 0
    if typed:
        with suppress(ImportError):
            import readline  # noqa: F401 - the arrow keys edit a line and bring back earlier ones
    while pressed < 2:
        try:
            with ctrl_c.raised():
                line = input("> " if typed else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            pressed += 1
            print("\n(Ctrl-C once more ends the chat)" if pressed == 1 else "", file=sys.stderr)
        else:
            pressed = 0
            yield line


class Talk:
    """One conversation with one model, whose adapters can be switched. `stopped` says whether an answer is to end here."""

    def __init__(
        self,
        settings: Settings,
        model: "Model",
        members: "dict[str, Member | None]",
        tokenizer: Any,
        ends: list[int],
        stopped: Callable[[], bool],
    ) -> None:
        from bidora_jax.generation import conversation

        self._settings, self._model, self._members = settings, model, members
        self._tokenizer, self._ends, self._stopped = tokenizer, ends, stopped
        self._opening = conversation.opening(settings.system)
        self.turns = list(self._opening)
        self._tries = 0
        """How often the last question was answered before."""
        self._compiled: set[tuple[int, int]] = set()
        self._switch(next(iter(members)))

    def hear(self, line: str) -> bool:
        """Answers a line, or obeys a command; False when the command ends the conversation."""
        order, _, text = line.partition(" ")
        orders = {"/retry": self._retry, "/reset": self._reset, "/help": lambda: print(HELP, file=sys.stderr),
                  "/system": lambda: self._set_system(text.strip()), "/adapter": lambda: self._offer(text.strip())}  # fmt: skip
        if order == "/exit":
            return False
        if order in orders:
            orders[order]()
        elif line.startswith("/") and len(line.split()) == 1:
            print(f"there is no {order}; /help lists what there is", file=sys.stderr)
        else:
            self._tries = 0
            self._answer(line)
        return True

    def warm(self, tokens: int) -> None:
        """Compiles the programs that answer conversations of so many tokens, where they are not yet."""
        from bidora_jax.generation import answers

        new = min(self._settings.max_new_tokens, self._model.config.max_positions - tokens)
        shape = (answers.bucket(tokens), answers.bucket(max(new, 1)))
        if new < 1 or shape in self._compiled:
            return
        print(f"(compiling for conversations of up to {shape[0]} tokens …", end="", file=sys.stderr, flush=True)
        began = time.perf_counter()
        for _ in islice(self._stream([0] * tokens, new, seed=0, chunk=1), 2):  # a token of each program
            pass
        print(f" {time.perf_counter() - began:.0f} s)", file=sys.stderr, flush=True)
        self._compiled.add(shape)

    def _reset(self) -> None:
        self.turns = list(self._opening)
        print("(the conversation is forgotten)", file=sys.stderr)

    def _retry(self) -> None:
        if not self.turns or self.turns[-1]["role"] != "assistant":
            print("(there is no answer to try again)", file=sys.stderr)
            return
        *self.turns, question, _ = self.turns
        self._tries += 1
        self._answer(question["content"])

    def _set_system(self, text: str) -> None:
        from bidora_jax.generation import conversation

        opening = conversation.opening(text)
        try:  # some templates refuse a system's turn
            conversation.prompt_ids([*opening, conversation.said_by("user", "?")], self._tokenizer)
        except InputError as problem:
            print(problem, file=sys.stderr)
            return
        self.turns = [*opening, *self.turns[len(self._opening) :]]
        self._opening = opening
        print("(the system prompt is set)" if text else "(there is no system prompt)", file=sys.stderr)

    def _offer(self, name: str) -> None:
        if name in self._members:
            self._switch(name)
            print(f"({name} answers)", file=sys.stderr)
        else:
            print(f"adapters: {', '.join(filter(None, self._members)) or 'none'}", file=sys.stderr)

    def _switch(self, name: str) -> None:
        from bidora_jax.generation.decoding import with_adapter

        member = self._members[name]
        if member is not None:
            self._model = with_adapter(self._model, *member, combine=self._settings.combine)

    def _answer(self, line: str) -> None:
        """Streams the answer to a line and remembers both; Ctrl-C cuts it short, and what is there is kept."""
        from bidora_jax.generation import conversation

        turns = [*self.turns, conversation.said_by("user", line)]
        ids = conversation.prompt_ids(turns, self._tokenizer)
        left = self._model.config.max_positions - len(ids)
        if left < 1:
            print(
                f"the conversation has {len(ids)} tokens, as many as the model's context takes; /reset starts anew",
                file=sys.stderr,
            )
            return
        self._stopped()  # forgets a Ctrl-C that came before; one while programs are compiled ends the answer at its first token
        self.warm(len(ids))
        new, made, ended, stopped = min(self._settings.max_new_tokens, left), 0, False, False
        spoken = conversation.Spoken(self._tokenizer)
        for (piece,) in self._stream(ids, new, seed=self._settings.seed + self._tries, chunk=CHUNK):
            print(spoken.add(piece.tokens), end="", flush=True)
            made, ended, stopped = made + len(piece.tokens), piece.ended, self._stopped()
            if stopped:
                break
        print(spoken.rest(), flush=True)
        self.turns = [*turns, conversation.said_by("assistant", spoken.text)]
        if stopped:
            print("[stopped]", file=sys.stderr)
        elif not ended:
            why = "--max-new-tokens" if new < left else "the model's context is full, /reset starts anew"
            print(f"[cut at {made} tokens: {why}]", file=sys.stderr)

    def _stream(self, ids: list[int], new: int, *, seed: int, chunk: int):
        from bidora_jax.generation import answers

        return answers.stream(
            self._model, [ids], chunk=chunk, max_new_tokens=new, ends=self._ends, sampling=self._settings.sampling,
            seed=seed, numbers=[len(self.turns) + 1],
        )  # fmt: skip
