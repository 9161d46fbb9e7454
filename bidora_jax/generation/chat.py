"""The conversation of `python -m bidora_jax.generate --chat`: lines in, streamed answers out.

Every turn the whole conversation goes through the model's template and the model again; answers come a few tokens at a time.
"""

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from bidora_jax.generation.decoding import Model
    from bidora_jax.generation.ensembles import Combine, Member
    from bidora_jax.generation.served_model import Served
    from bidora_jax.kernels.sampling import Sampling


CHUNK = 8
"""Tokens between two looks at an answer."""
HELP = "/reset forgets the conversation, /adapter NAME switches, /exit or Ctrl-D ends"


def chat(served: "Served", *, system: str, sampling: "Sampling", max_new_tokens: int, seed: int) -> None:
    """Talks until the input ends. InputError for a model or adapters that can't be opened, and for one without chat template."""
    from bidora_jax.generation import conversation, decoding
    from bidora_jax.generation.served_model import load_weights, open_folder

    opened = open_folder(served)
    tokenizer = opened.tokenizer
    conversation.require_template(opened.folder, tokenizer, "--chat")
    conversation.prompt_ids([*conversation.opening(system), conversation.said_by("user", "?")], tokenizer)
    base, members = load_weights(served, opened)
    settings = Settings(system, sampling, max_new_tokens, seed, served.combine)
    model, ends = decoding.assemble(opened.config, base), conversation.ends(opened.folder, tokenizer)
    talk = Talk(settings, model, members, tokenizer, ends)
    if sys.stdin.isatty():
        print(HELP)
    while (line := _next_line()) is not None:
        if line.strip() and not talk.hear(line.strip()):
            return


def _next_line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        return None


class Settings(NamedTuple):
    """Settings that hold for the whole conversation."""

    system: str
    sampling: "Sampling"
    max_new_tokens: int
    seed: int
    combine: "Combine | None"


class Talk:
    """One conversation with one model, whose adapters can be switched."""

    def __init__(
        self,
        settings: Settings,
        model: "Model",
        members: "dict[str, Member | None]",
        tokenizer: Any,
        ends: list[int],
    ) -> None:
        from bidora_jax.generation import conversation

        self._settings, self._model, self._members = settings, model, members
        self._tokenizer, self._ends = tokenizer, ends
        self._opening = conversation.opening(settings.system)
        self.turns = list(self._opening)
        self._switch(next(iter(members)))

    def hear(self, line: str) -> bool:
        """Answers a line, or obeys a command; False when the command ends the conversation."""
        order, _, name = line.partition(" ")
        if order == "/exit":
            return False
        if order == "/reset":
            self.turns = list(self._opening)
            print("(the conversation is forgotten)")
        elif order == "/adapter":
            self._offer(name.strip())
        elif line.startswith("/") and len(line.split()) == 1:
            print(f"there is no {order}; {HELP}")
        else:
            self._answer(line)
        return True

    def _offer(self, name: str) -> None:
        if name in self._members:
            self._switch(name)
            print(f"({name} answers)")
        else:
            print(f"adapters: {', '.join(filter(None, self._members)) or 'none'}")

    def _switch(self, name: str) -> None:
        from bidora_jax.generation.decoding import with_adapter

        member = self._members[name]
        if member is not None:
            self._model = with_adapter(self._model, *member, combine=self._settings.combine)

    def _answer(self, line: str) -> None:
        """Streams the answer to a line and remembers both; Ctrl-C cuts it short."""
        from bidora_jax.generation import answers, conversation

        turns = [*self.turns, conversation.said_by("user", line)]
        ids = conversation.prompt_ids(turns, self._tokenizer)
        left = self._model.config.max_positions - len(ids)
        if left < 1:
            print(f"the conversation has {len(ids)} tokens, as many as the model's context takes; /reset starts anew")
            return
        spoken = conversation.Spoken(self._tokenizer)
        pieces = answers.stream(
            self._model, [ids], chunk=CHUNK, max_new_tokens=min(self._settings.max_new_tokens, left), ends=self._ends,
            sampling=self._settings.sampling, seed=self._settings.seed, numbers=[len(turns)],
        )  # fmt: skip
        try:
            for piece in pieces:
                print(spoken.add(piece[0].tokens), end="", flush=True)
        except KeyboardInterrupt:
            pass  # it cuts this answer, and the chat goes on
        print(spoken.rest(), flush=True)
        self.turns = [*turns, conversation.said_by("assistant", spoken.text)]
