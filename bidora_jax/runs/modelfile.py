"""The Modelfile that `ollama create NAME -f FILE.Modelfile` reads, written beside a GGUF file.

Ollama runs no Jinja: it has templates of its own for chat templates that it knows, and takes others from TEMPLATE. One is written
where the model's chat template puts the same text around every turn, which is tried on a conversation of four turns.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bidora_jax.data import chat_template
from bidora_jax.data.records import BadRecord, Turn
from bidora_jax.generation.conversation import said_by
from bidora_jax.machine.files import write_whole

SYSTEM, QUESTION, ANSWER, SECOND = "‹system›", "‹question›", "‹answer›", "‹second›"


def beside(file: Path) -> Path:
    """Where the Modelfile of a GGUF file stands."""
    return file.with_suffix(".Modelfile")


def write(path: Path, file: str, tokenizer: Any, ends: Sequence[int], *, adapter: str = "") -> None:
    """The Modelfile of the GGUF file of that name, and of an adapter on it; `ends` are the tokens that end an answer."""
    lines = [f"FROM ./{file}", *([f"ADAPTER ./{adapter}"] if adapter else [])]
    if template := ollama_template(tokenizer):
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f'PARAMETER stop "{tokenizer.convert_ids_to_tokens(token)}"' for token in ends]
    write_whole(path, "\n".join(lines) + "\n")


def ollama_template(tokenizer: Any) -> str:
    """What Ollama puts around a system prompt, a question and an answer; empty where the chat template does more than that."""
    if not tokenizer.chat_template:
        return ""
    first, second = said_by("user", QUESTION), said_by("user", SECOND)
    try:
        alone = _rendered(tokenizer, first)
        four = _rendered(tokenizer, said_by("system", SYSTEM), first, said_by("assistant", ANSWER), second)
    except BadRecord:  # it takes no system prompt
        return ""
    before, _, after = alone.partition(QUESTION)
    system = four.partition(QUESTION)[0].removesuffix(before)
    between = four.partition(ANSWER)[2].partition(SECOND)[0].removesuffix(before)
    again = f"{system}{before}{QUESTION}{after}{ANSWER}{between}{before}{SECOND}{after}"
    texts = (system, before, after, between)
    if again != four or SYSTEM not in system or any("{{" in text or '"""' in text for text in texts):
        return ""
    shown = system.replace(SYSTEM, "{{ .System }}")
    return f"{{{{ if .System }}}}{shown}{{{{ end }}}}{before}{{{{ .Prompt }}}}{after}{{{{ .Response }}}}{between}"


def _rendered(tokenizer: Any, *turns: Turn) -> str:
    text = chat_template.render(turns, tokenizer, ask=True)
    return text.removeprefix(tokenizer.bos_token or "")  # Ollama begins a text with it itself
