"""The prompt of a record: its question in the tokenizer's chat template, or in a plain template where there is none.

The prompt ends where the answer begins. It is tokenised apart from the answer, so that no token straddles the border.
"""

from bidora_jax.data import chat_template, records
from bidora_jax.data.records import BadRecord, Record
from bidora_jax.data.tokenizer import Tokenizer, tokenize
from bidora_jax.data.turns import Turn
from bidora_jax.errors import InputError

PLAIN_TEMPLATE = "### Instruction:\n{instruction}\n\n### Response:\n"  # for a tokenizer without a chat template


def question_text(record: Record) -> str:
    """The question for people to read, without template. Of a conversation it is the last turn before the answer."""
    if records.is_conversation(record):
        return _asked(record)[-1]["content"]
    return record.get("instruction", record.get("prompt", ""))


def prompt_text(record: Record, tokenizer: Tokenizer) -> str:
    """What stands before the response; empty for {code} and {text}. Raises InputError where the template refuses it."""
    if "instruction" not in record and not records.is_conversation(record):
        return record.get("prompt", "")
    if "instruction" in record and not tokenizer.chat_template:
        content = "\n\n".join(filter(None, [record.get("system"), records.asked(record)]))
        return PLAIN_TEMPLATE.format(instruction=content)
    try:
        return chat_template.render(_asked(record), tokenizer, record.get("tools"), ask=True)
    except BadRecord as problem:
        raise InputError(f"{slot(record)}{problem}") from problem


def response_text(record: Record) -> str:
    """The text that is trained; of a conversation, the last answer."""
    if records.is_conversation(record):
        return records.turns(record)[0][-1]["content"]
    return next(record[key] for key in ("output", "completion", "code", "text") if key in record)


def prompt_ids(record: Record, tokenizer: Tokenizer) -> list[int]:
    """Tokens to generate an answer from. Raises InputError for {code} and {text}, which ask nothing."""
    if not prompt_text(record, tokenizer):
        raise InputError("a {code} or {text} record has no prompt; use {instruction, output} or {prompt, completion}")
    return encode_prompts([record], tokenizer)[0]


def encode_prompts(records: list[Record], tokenizer: Tokenizer) -> list[list[int]]:
    """What stands before each response, in tokens."""
    texts = [prompt_text(record, tokenizer) for record in records]
    bos = tokenizer.bos_token_id
    opening = [bos] if bos is not None and tokenize(tokenizer, "")["input_ids"][:1] == [bos] else []
    return [
        [*([] if _templated(record, tokenizer) or ids[:1] == opening else opening), *ids]
        for record, ids in zip(records, token_ids(texts, tokenizer), strict=True)
    ]


def _templated(record: Record, tokenizer: Tokenizer) -> bool:
    """Whether the chat template writes the prompt; it writes the beginning-of-text token itself."""
    return records.is_conversation(record) or ("instruction" in record and bool(tokenizer.chat_template))


def _asked(record: Record) -> list[Turn]:
    """The turns of the question: those of {instruction}, or all turns of a conversation but the last answer."""
    if records.is_conversation(record):
        turns, _ = records.turns(record)
        return turns[:-1] if turns[-1]["role"] == "assistant" else turns
    return records.asking(record)


def slot(record: Record) -> str:
    """The record's place, where it is known, for the head of a message."""
    return f"{record.place}: " if isinstance(record, Record) and record.place else ""


def token_ids(texts: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    return tokenize(tokenizer, texts, add_special_tokens=False)["input_ids"] if texts else []
