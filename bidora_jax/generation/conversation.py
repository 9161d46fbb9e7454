"""Turns of a conversation, as the model's own chat template writes them, and its text as it comes.

A template is a program in the tokenizer's files, which transformers runs in a sandbox; no code of a model folder runs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bidora_jax.data import chat_template, prompts
from bidora_jax.data.records import BadRecord, Record, Turn, is_conversation
from bidora_jax.data.tokenizer import Tokenizer, has_tokenizer, load_tokenizer, tokenize
from bidora_jax.errors import InputError
from bidora_jax.machine.files import read_json

UNFINISHED = "\ufffd"
"""The tokenizer decodes bytes of an incomplete character to this."""


def said_by(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def opening(system: str) -> list[Turn]:
    """The turns before the first one of the user."""
    return [said_by("system", system)] if system else []


def require_template(folder: Path, tokenizer: Tokenizer, flag: str) -> None:
    """InputError for a tokenizer without chat template."""
    if not tokenizer.chat_template:
        raise InputError(
            f"{flag} needs a chat template, and the tokenizer in {folder} has none: take a model that was trained to chat, "
            "or give --prompt the text to go on from"
        )


Form = Literal["raw", "chat template", "plain template"]
"""How a prompt of a record is asked: as text to go on from, as a user's turn, or as training asks without a chat template."""


def question_ids(record: Record, form: Form, system: str, tokenizer: Tokenizer) -> list[int]:
    """Tokens of what a record asks, up to where the answer begins. A conversation, and an instruction in the form `raw`, are asked
    as in training."""
    if is_conversation(record):
        turns = record["messages"]
        before = [] if turns[0]["role"] == "system" else opening(system)
        return prompts.prompt_ids(Record({**record, "messages": [*before, *turns]}, record.place), tokenizer)
    if form == "raw":
        return prompts.prompt_ids(record, tokenizer)
    if form == "plain template":
        return prompts.prompt_ids(Record({"instruction": record["prompt"]}), tokenizer)
    user = "\n\n".join(record[key] for key in ("prompt", "instruction", "input") if record.get(key))
    return prompt_ids([*opening(record.get("system") or system), said_by("user", user)], tokenizer)


def prompt_ids(turns: Sequence[Turn], tokenizer: Tokenizer) -> list[int]:
    """Tokens of a conversation, up to where the answer begins. InputError where the template refuses the conversation."""
    try:
        text = chat_template.render(turns, tokenizer, ask=True)
    except BadRecord as problem:
        raise InputError(str(problem)) from problem
    return tokenize(tokenizer, text, add_special_tokens=False)["input_ids"]  # the template writes them itself


def ends(folder: Path, tokenizer: Tokenizer) -> list[int]:
    """Tokens that end an answer: the tokenizer's, the one that ends a turn in the chat template, and those of
    generation_config.json or, without one, config.json (a chat model may have several)."""
    found = {tokenizer.eos_token_id, chat_template.end_of_turn(tokenizer)}
    path = next(
        (folder / name for name in ("generation_config.json", "config.json") if (folder / name).is_file()), None
    )
    if path is not None:
        listed = read_json(path, "fetch it again, or remove it").get("eos_token_id")
        found |= {*(listed if isinstance(listed, list) else [listed])}
    return sorted(token for token in found if isinstance(token, int))


def ends_of_folder(folder: Path) -> list[int]:
    """`ends` of a model folder; none of one without a tokenizer."""
    return ends(folder, load_tokenizer(folder)) if has_tokenizer(folder) else []


class Spoken:
    """The text of an answer whose tokens come in pieces; incomplete characters are held back until the rest of them comes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._shown = ""

    @property
    def text(self) -> str:
        """All of it so far, half characters included."""
        return self._tokenizer.decode(self._tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def add(self, tokens: Sequence[int]) -> str:
        """The text that these tokens complete."""
        self._tokens += tokens
        return self._show(self.text.rstrip(UNFINISHED))

    def rest(self) -> str:
        """The text that is still held back when the answer has ended."""
        return self._show(self.text)

    def _show(self, text: str) -> str:
        new = text.removeprefix(self._shown)
        self._shown = text
        return new
