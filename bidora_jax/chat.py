"""The conversation of `python -m bidora_jax.generate --chat`: lines in, streamed answers out.

Every turn the whole conversation goes through the model's template and the model again; answers come a few tokens at a time.
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bidora_jax.generate import GenerateArguments
    from bidora_jax.models.ensembles import Member
    from bidora_jax.models.generation import Model

CHUNK = 8
"""Tokens between two looks at an answer."""
HELP = "/reset forgets the conversation, /adapter NAME switches, /exit or Ctrl-D ends"


def chat(arguments: "GenerateArguments") -> None:
    """Talks until the input ends. InputError for what can't be talked with."""
    from bidora_jax.generate import open_model, open_tokens
    from bidora_jax.training import conversation

    folder, config, tokenizer = open_tokens(arguments)
    conversation.prompt_ids([*conversation.opening(arguments.system), conversation.said_by("user", "?")], tokenizer)
    model, members = open_model(arguments, folder, config)
    talk = Talk(arguments, model, members, tokenizer, conversation.ends(folder, tokenizer))
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


class Talk:
    """One conversation with one model, whose adapters can be switched."""

    def __init__(
        self,
        arguments: "GenerateArguments",
        model: "Model",
        members: "dict[str, Member | None]",
        tokenizer: Any,
        ends: list[int],
    ) -> None:
        from bidora_jax.training import conversation

        self._arguments, self._model, self._members = arguments, model, members
        self._tokenizer, self._ends = tokenizer, ends
        self._opening = conversation.opening(arguments.system)
        self.turns = list(self._opening)
        self._switch(next(iter(members)))

    def hear(self, line: str) -> bool:
        """Answers a line or does what it says; False when it ends the conversation."""
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
        from bidora_jax.generate import combine_of
        from bidora_jax.models.decoding import with_adapter

        member = self._members[name]
        if member is not None:
            self._model = with_adapter(self._model, *member, combine=combine_of(self._arguments))

    def _answer(self, line: str) -> None:
        """Streams the answer to a line and remembers both; Ctrl-C cuts it short."""
        from bidora_jax.generate import sampling_of
        from bidora_jax.models import generation
        from bidora_jax.training import conversation

        turns = [*self.turns, conversation.said_by("user", line)]
        ids = conversation.prompt_ids(turns, self._tokenizer)
        left = self._model.config.max_position_embeddings - len(ids)
        if left < 1:
            print(f"the conversation has {len(ids)} tokens, as many as the model's context takes; /reset starts anew")
            return
        spoken = conversation.Spoken(self._tokenizer)
        pieces = generation.stream(
            self._model, [ids], chunk=CHUNK, max_new_tokens=min(self._arguments.max_new_tokens, left), ends=self._ends,
            sampling=sampling_of(self._arguments), seed=self._arguments.seed, numbers=[len(turns)],
        )  # fmt: skip
        try:
            for piece in pieces:
                print(spoken.add(piece[0].tokens), end="", flush=True)
        except KeyboardInterrupt:
            pass
        print(spoken.rest(), flush=True)
        self.turns = [*turns, conversation.said_by("assistant", spoken.text)]
