"""Finds the assistant's answers in a conversation as the model's chat template writes it.

    text = template(turns)                             one rendering of the whole conversation decides what is trained
    an answer = text[start:end]                        from where the template asks for it to its end-of-turn token
    start     = len(template(turns before it, ready for an answer))
    end       = len(template(turns up to it)), without trailing blanks

This holds where the shorter renderings are beginnings of `text`. They need not be: Qwen3 leaves the thinking out of an answer
that is followed by another question. Then the place is found from the contents of the turns. The content of a turn ends where
the rendering gains one letter if the content gains one, and is otherwise unchanged. The text between that place and the answer,
or between the answer's content and its end of turn, is taken from the shorter rendering; `text` must hold it at the same place.
Where it does not, the record is refused rather than guessed at.

A template may mark what the assistant generates ({% generation %}). Its marks are used, and nothing is searched for.

Qwen3's template opens the last answer with a thinking block, which may be empty. That block is part of the answer and is trained,
as a model that is asked with default settings has to write it. Earlier answers have no block in the rendering, and are trained
without. TRL does the same for {prompt, completion}; its training template keeps all blocks.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from bidora_jax.data import left_out
from bidora_jax.data.tokenizer import Tokenizer, tokenize
from bidora_jax.data.turns import WEIGHT, BadRecord, Turn, trained
from bidora_jax.errors import InputError
from bidora_jax.machine.bounds import at_most, little_memory

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
OPENED_THINKING = re.compile(r"<think>\s*$")
"""Some templates open the thinking where they ask for an answer, but write an answer without thinking without it."""
BATCH = 256
"""Conversations tokenised in one call. Until it returns, the offsets take 200 bytes a token."""


class Tokens(NamedTuple):
    ids: list[int]
    trained: list[bool]
    unwritten: tuple[str, ...] = ()
    """What of the conversation the template does not write, in words."""


class Conversation(NamedTuple):
    """A conversation and the turns of it that are trained."""

    turns: Sequence[Turn]
    numbers: Sequence[int] | None
    """Numbers of the assistant's turns that are trained; None: all of the text is."""
    tools: list[Any] | None = None


class Encoding(NamedTuple):
    ids: list[int]
    offsets: Int[np.ndarray, "N 2"]
    """The first character of each token and the one past its last."""


class Rendered(NamedTuple):
    text: str
    answers: list[tuple[int, int]]
    """(start, end) of each trained answer, in characters of the text."""
    unwritten: tuple[str, ...] = ()


def render(turns: Sequence[Turn], tokenizer: Tokenizer, tools: list[Any] | None = None, *, ask: bool = False) -> str:
    """The turns as text; `ask` adds the opening of an answer. Raises BadRecord where the template refuses the turns."""
    text = _render(turns, tokenizer, tools, ask=ask)
    return text + _own_opening(turns, tokenizer, tools, text) if ask and not opens_answers(tokenizer) else text


WORD = "Rindfleischetikettierung"
"""An answer that no template writes by itself."""
QUESTION = [{"role": "user", "content": "question"}]


def _own_opening(turns: Sequence[Turn], tokenizer: Tokenizer, tools: list[Any] | None, text: str) -> str:
    """What stands before the words of an answer to `turns`, for a template that does not open one where it is asked to."""
    answered = _render([*turns, {"role": "assistant", "content": WORD}], tokenizer, tools, ask=False)
    before = answered[len(text) :].partition(WORD)[0] if answered.startswith(text) and WORD in answered else ""
    return before if before.strip() else ""  # Mistral's writes a blank, which is part of the answer


def opens_answers(tokenizer: Tokenizer) -> bool:
    """Whether the template opens an answer where it is asked to (add_generation_prompt)."""
    return _opens_answers(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=8)
def _opens_answers(tokenizer: Tokenizer, template: str) -> bool:
    del template  # a tokenizer can be given another one
    try:
        asked, plain = (_render(QUESTION, tokenizer, None, ask=ask) for ask in (True, False))
    except BadRecord:  # it wants more than a question: nothing is known of it, and nothing added
        return True
    return asked != plain


def has_own_opening(tokenizer: Tokenizer) -> bool:
    """Whether the template writes a header before an answer, and does not open one where it is asked to."""
    if opens_answers(tokenizer):
        return False
    return bool(_own_opening(QUESTION, tokenizer, None, _render(QUESTION, tokenizer, None, ask=True)))


def end_of_turn(tokenizer: Tokenizer) -> int | None:
    """The special token that ends an answer as the chat template writes it; None where there is no template or no such token."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": WORD}, {"role": "assistant", "content": WORD}]
    try:
        after = _render(turns, tokenizer, None, ask=False).rpartition(WORD)[2].strip()
    except BadRecord:
        return None
    ids = tokenize(tokenizer, after, add_special_tokens=False)["input_ids"] if after else []
    added = tokenizer.added_tokens_decoder
    return ids[0] if ids and ids[0] in added and added[ids[0]].special else None


def _render(turns: Sequence[Turn], tokenizer: Tokenizer, tools: list[Any] | None, *, ask: bool) -> str:
    return _applied(turns, tokenizer, tools=tools, tokenize=False, add_generation_prompt=ask)


def _applied(turns: Sequence[Turn], tokenizer: Tokenizer, **how: Any) -> Any:
    """What the template makes of the turns. Some read the arguments of a call as an object, others as its JSON text."""
    shown, problem = _for_template(turns), None
    for form in (shown, [{**turn, **_as_text(turn)} for turn in shown]):
        try:
            with at_most(LONGEST, _endless), little_memory(MEMORY):
                written = tokenizer.apply_chat_template(form, **how)
            if isinstance(written, str) and len(written) > LARGEST:
                raise InputError(f"the chat template writes {len(written):,} characters for one conversation; {OTHER}")
            return written
        except InputError:
            raise
        except MemoryError:
            raise InputError(
                f"the chat template takes more than {MEMORY >> 20} MiB for one conversation; {OTHER}"
            ) from None
        except Exception as error:  # a template is a program: it can raise anything
            problem = problem or error
            if not any("tool_calls" in turn for turn in shown):
                break
    roles = ", ".join(turn["role"] for turn in turns)
    raise BadRecord(f"the tokenizer's chat template refuses the turns {roles}: {problem}") from problem


LONGEST, LARGEST, MEMORY = 5.0, 100_000_000, 1 << 29
"""Seconds, characters and bytes that the template may take for one conversation; long ones take milliseconds, and a megabyte."""
OTHER = "the tokenizer's files come with a template that can't be used: take them from the model's own page"


def _endless() -> InputError:
    return InputError(f"the chat template takes more than {LONGEST:g} s for one conversation; {OTHER}")


def _for_template(turns: Sequence[Turn]) -> list[Turn]:
    """The turns without what is meant for training."""
    return [{key: value for key, value in turn.items() if key != WEIGHT} for turn in turns]


def _as_text(turn: Turn) -> Turn:
    """The tool calls of a turn with their arguments as JSON text."""
    calls = [
        call | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False)}}
        if isinstance(call.get("function"), dict) and isinstance(call["function"].get("arguments"), dict)
        else call
        for call in turn.get("tool_calls", [])
    ]  # fmt: skip
    return {"tool_calls": calls} if calls else {}


def is_marked(tokenizer: Tokenizer, tools: list[Any] | None = None) -> bool:
    """Whether the template (a tokenizer may have another one for tools) marks itself what the assistant generates."""
    return bool(MARKED.search(tokenizer.get_chat_template(tools=tools)))


def check_template(tokenizer: Tokenizer) -> None:
    """Raises InputError for a tokenizer that can't write conversations."""
    if not tokenizer.chat_template:
        raise InputError(
            "records with turns need a chat template, and the model's tokenizer has none: take a model that was trained to "
            "chat, put its template into the folder as chat_template.jinja, or write {prompt, completion} records"
        )
    if not tokenizer.is_fast:
        raise InputError("records with turns need a fast tokenizer, and the model's folder holds no tokenizer.json")


def tokens(talks: Sequence[Conversation], tokenizer: Tokenizer) -> list[Tokens | BadRecord]:
    """The tokens of each conversation and which of them are trained, or the reason why it can't be used.

    A token that would cross the border of an answer is cut there: when a model answers, its prompt ends there too.
    """
    found = []
    for first in range(0, len(talks), BATCH):
        written = [_unless_bad(_written, talk, tokenizer) for talk in talks[first : first + BATCH]]
        encoded = iter(_tokenised([one.text for one in written if isinstance(one, Rendered)], tokenizer))
        for one in written:
            found.append(_unless_bad(_marks, one, next(encoded), tokenizer) if isinstance(one, Rendered) else one)
    return found


def _unless_bad(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except BadRecord as problem:
        return problem


def _written(talk: Conversation, tokenizer: Tokenizer) -> Rendered | Tokens:
    if talk.numbers is not None and is_marked(tokenizer, talk.tools):
        return _marked(talk.turns, talk.numbers, tokenizer, talk.tools)
    return find(talk.turns, talk.numbers, tokenizer, talk.tools)


def _marks(written: Rendered, encoding: Encoding, tokenizer: Tokenizer) -> Tokens:
    """The tokens of a text; those in its answers are trained."""
    text, places, unwritten = written
    borders = sorted({border for place in places for border in place})
    starts, ends = encoding.offsets.T
    if any(np.any((starts < border) & (border < ends)) for border in borders):
        encoding = _tokenised_apart(text, borders, tokenizer)
        starts, ends = encoding.offsets.T
    trained = np.zeros(len(encoding.ids), bool)
    for first, last in places:
        trained |= (starts >= first) & (ends <= last)
    return Tokens(encoding.ids, trained.tolist(), unwritten)


def find(
    turns: Sequence[Turn], numbers: Sequence[int] | None, tokenizer: Tokenizer, tools: list[Any] | None
) -> Rendered:
    """The conversation as text and the places of the assistant's turns `numbers` in it. Of None, the whole text is an answer,
    but for the answers whose weight is 0.

    If the template does not end its answers, the end-of-text token is added to the last one. Raises BadRecord where a place
    can't be determined, and where the template leaves out a part of a trained answer.
    """
    view = _View(turns, tokenizer, tools)
    text, last = view.text, turns[-1]
    said = last["content"].rstrip()
    if last["role"] == "assistant" and text.rstrip().endswith(said or "\0") and not said.endswith(tokenizer.eos_token):
        text += tokenizer.eos_token
    of_assistant = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    if numbers is None:
        read = [(view.start(number), view.end(number)) for number in of_assistant if not trained(turns[number])]
        edges = [0, *(edge for place in read for edge in place), len(text)]
        places = [place for place in zip(edges[::2], edges[1::2], strict=True) if place[0] < place[1]]
        checked = {number: text for number in of_assistant if trained(turns[number])}
    else:
        places = [(view.start(number), view.end(number)) for number in numbers]
        if places and numbers[-1] == len(turns) - 1 and text != view.text:
            places[-1] = (places[-1][0], len(text))
        checked = {number: text[start:end] for number, (start, end) in zip(numbers, places, strict=True)}
    return Rendered(text, places, left_out.check(turns, checked, text, tools))


def _tokenised(texts: list[str], tokenizer: Tokenizer) -> list[Encoding]:
    """All texts at once, which a fast tokenizer spreads over the cores."""
    if not texts:
        return []
    how = {"add_special_tokens": False, "return_offsets_mapping": True, "return_attention_mask": False}
    found = tokenize(tokenizer, texts, **how)
    pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
    return [Encoding(ids, np.array(spans, np.int64).reshape(-1, 2)) for ids, spans in pairs]


def _tokenised_apart(text: str, borders: list[int], tokenizer: Tokenizer) -> Encoding:
    edges = list(pairwise([0, *borders, len(text)]))
    pieces = _tokenised([text[start:end] for start, end in edges], tokenizer)
    for (start, end), piece in zip(edges, pieces, strict=True):
        if tokenizer.decode(piece.ids, clean_up_tokenization_spaces=False) != text[start:end]:
            raise BadRecord(f"can't cut the tokens before {text[start : start + 30]!r}, where an answer begins or ends")
    offsets = np.concatenate([start + piece.offsets for (start, _), piece in zip(edges, pieces, strict=True)])
    return Encoding([token for piece in pieces for token in piece.ids], offsets)


def _marked(turns: Sequence[Turn], numbers: Sequence[int], tokenizer: Tokenizer, tools: list[Any] | None) -> Tokens:
    """The conversation's tokens; trained are those that the template's marks enclose, one run for each turn of the assistant."""
    text = render(turns, tokenizer, tools)
    found = _applied(turns, tokenizer, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, marks = found["input_ids"], [0, *found["assistant_masks"], 0]
    starts = [at for at in range(len(ids)) if marks[at + 1] and not marks[at]]
    ends = [at + 1 for at in range(len(ids)) if marks[at + 1] and not marks[at + 2]]
    of_assistant = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    if len(starts) != len(of_assistant):
        raise BadRecord(
            f"the chat template's {{% generation %}} marks enclose {len(starts)} runs of tokens in a conversation with "
            f"{len(of_assistant)} turns of the assistant"
        )
    runs = {n: run for n, run in zip(of_assistant, zip(starts, ends, strict=True), strict=True) if n in numbers}
    trained = {n: tokenizer.decode(ids[start:end]) for n, (start, end) in runs.items()}
    marked = [any(start <= at < end for start, end in runs.values()) for at in range(len(ids))]
    return Tokens(ids, marked, left_out.check(turns, trained, text, tools))


class _View:
    """A conversation, and what the template writes of all of it and of its beginnings."""

    def __init__(self, turns: Sequence[Turn], tokenizer: Tokenizer, tools: list[Any] | None) -> None:
        self._turns, self._tokenizer, self._tools = turns, tokenizer, tools
        self.text = render(turns, tokenizer, tools)

    def start(self, number: int) -> int:
        """Where answer `number` begins."""
        asked = self._until(number, ask=True)
        for text in _without_opening(asked):
            if self.text.startswith(text):
                self._check_opened(number, text == asked)
                return len(text)
        before = asked[self._content_end(self._turns[:number], number - 1, asked, ask=True) :]
        place = self._content_end(self._turns, number - 1, self.text)
        for between in _without_opening(before):
            if self.text.startswith(between, place):
                self._check_opened(number, between == before)
                return place + len(between)
        raise self._undetermined(number, "begins", before, self.text[place : place + len(before)])

    def end(self, number: int) -> int:
        """One past the end of answer `number`, its end-of-turn token included."""
        closed = self._until(number + 1)
        if self.text.startswith(closed):
            return len(closed.rstrip())
        after = closed[self._content_end(self._turns[: number + 1], number, closed) :].rstrip()
        place = self._content_end(self._turns, number, self.text)
        if not self.text.startswith(after, place):
            raise self._undetermined(number, "ends", after, self.text[place : place + len(after)])
        return place + len(after)

    def _check_opened(self, number: int, opened: bool) -> None:
        """BadRecord where a model is asked for the last answer with opened thinking, and it is written without."""
        if not opened and number == len(self._turns) - 1:
            raise BadRecord(
                f"turn {number + 1}: the chat template opens the thinking where it asks for an answer, and writes this "
                "answer without it, so that what is learned does not follow what a model is asked with; write "
                "{prompt, completion} records, whose texts are taken as they stand, or take a template that keeps it"
            )

    def _until(self, number: int, *, ask: bool = False) -> str:
        return render(self._turns[:number], self._tokenizer, self._tools, ask=ask)

    def _content_end(self, turns: Sequence[Turn], number: int, text: str, *, ask: bool = False) -> int:
        """Where the content of a turn ends in `text`, a rendering of `turns`: where a letter added to the content shows up."""
        content = turns[number]["content"]
        letter = "y" if content.endswith("x") else "x"
        longer = [*turns[:number], {**turns[number], "content": content + letter}, *turns[number + 1 :]]
        probe = render(longer, self._tokenizer, self._tools, ask=ask)
        place = len(text) - _common_ending(text, probe)
        if len(probe) <= len(text) or probe[:place] != text[:place]:
            role = turns[number]["role"]
            raise BadRecord(
                f"can't tell where turn {number + 1} ({role}) ends in the text that the chat template writes; "
                "set data.loss_on to all, or use a template with {% generation %} marks"
            )
        return place

    def _undetermined(self, number: int, what: str, expected: str, found: str) -> BadRecord:
        return BadRecord(
            f"can't tell where the answer of turn {number + 1} {what}: alone the chat template writes {expected!r} there, "
            f"in the whole conversation {found!r}; set data.loss_on to all, or use a template with {{% generation %}} marks"
        )


def _without_opening(asked: str) -> list[str]:
    """The text before an answer, and the same without the thinking block that it opens."""
    shorter = OPENED_THINKING.sub("", asked)
    return [asked] if shorter == asked else [asked, shorter]


def _common_ending(a: str, b: str) -> int:
    for length, (x, y) in enumerate(zip(reversed(a), reversed(b), strict=False)):
        if x != y:
            return length
    return min(len(a), len(b))
