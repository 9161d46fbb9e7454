"""python -m bidora_jax.generate --run DIR --prompt TEXT [--max-new-tokens N] [--temperature T]
python -m bidora_jax.generate --model DIR [--adapter DIR] --prompt TEXT [--max-new-tokens N] [--temperature T]
python -m bidora_jax.generate --model DIR [--adapter NAME=DIR …] --prompt-file F | --chat

What a model answers to a prompt, in its own chat template where it has one, with or without adapters, which are applied and not
merged. Greedy unless there is a temperature. Several adapters answer in turn, or as one: their mean in outputs (--ensemble) or in
weights (--average).
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidora_jax.errors import InputError, command, program
from bidora_jax.generation.served_model import Served, load_weights, open_folder
from bidora_jax.generation.settings import Sampled
from bidora_jax.machine.files import write_whole
from bidora_jax.runs.serving import form_of_training, named, settled

if TYPE_CHECKING:
    from bidora_jax.data.records import Record
    from bidora_jax.data.tokenizer import Tokenizer
    from bidora_jax.generation.conversation import Form


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the model is asked, and in which form."""

    prompt: str = ""
    """Question to answer, in the model's own chat template; without a template, text to go on from."""
    prompt_file: str = ""
    """File of prompts: one a line, or rows with a prompt, an instruction or messages in any kind of file or folder that
    training takes; answers that are there are left out. The prompt of a row is text to go on from."""
    columns: tuple[tuple[str, str], ...] = ()
    """A record's key and the column that holds it, where it has another name; repeat it for several."""
    raw: bool = False
    """Go on from --prompt, or from each line of a text file, as it stands, without the chat template."""
    template: bool = False
    """Insist on the chat template, around the prompts of rows too."""
    system: str = ""
    """System prompt, which the chat template writes."""
    chat: bool = False
    """Talk with the model; bidora-jax chat does the same."""


@dataclass(frozen=True, kw_only=True)
class GenerateArguments(Sampled, Served, Asked):
    """What a model answers to a prompt, or to each prompt of a file. For example: --run runs/mine --prompt "Add a cube\""""

    batch_size: int = 8
    """Prompts answered at a time."""
    json: str = ""
    """Also write prompts and answers to this file."""


def main(argv: list[str]) -> None:
    import tyro

    arguments = tyro.cli(GenerateArguments, args=argv, prog=program("generate"), config=(tyro.conf.UseAppendAction,))
    _check(arguments)
    arguments = settled(arguments, named(argv))
    if arguments.chat:
        from bidora_jax.generation.chat import Settings, chat

        a = arguments
        chat(a, Settings(a.system, a.sampling, a.max_new_tokens, a.seed, a.combine))
        return
    answers = generate(arguments)
    if arguments.json:
        write_whole(Path(arguments.json), json.dumps(answers, indent=2, ensure_ascii=False) + "\n")


def _check(arguments: GenerateArguments) -> None:
    """Refuses flags that contradict each other and values out of bounds, all in one message."""
    a = arguments
    ways = [
        name for name, given in (("--prompt", a.prompt), ("--prompt-file", a.prompt_file), ("--chat", a.chat)) if given
    ]
    checks = {
        f"give one of --prompt TEXT, --prompt-file FILE and --chat, found {' and '.join(ways) or 'none of them'}": len(
            ways
        )
        != 1,
        "--raw leaves out the chat template, which --system, --template and --chat need": a.raw
        and bool(a.system or a.template or a.chat),
        "--raw is for --prompt and for text files: each row of other files says itself what it asks": a.raw
        and not _are_lines(a),
        "--json is for --prompt and --prompt-file": a.chat and bool(a.json),
        f"--batch-size must be at least 1, found {a.batch_size}": a.batch_size < 1,
        f"there is no folder for --json {a.json}; make it, or name another file": bool(a.json)
        and not Path(a.json).absolute().parent.is_dir(),
    }
    if wrong := [*(message for message, found in checks.items() if found), *a.wrong()]:
        raise InputError("\n".join(wrong))


def generate(arguments: GenerateArguments) -> list[dict[str, Any]]:
    """Prints every answer and returns what --json writes: a dictionary for each prompt and adapter."""
    from bidora_jax.data import tokenizer as tokens
    from bidora_jax.data.prompts import question_text
    from bidora_jax.generation import answers, conversation, decoding

    given = _prompts(arguments)
    opened = open_folder(arguments)
    tokenizer = opened.tokenizer
    if flag := "--template" * arguments.template or "--system" * bool(arguments.system):
        conversation.require_template(opened.folder, tokenizer, flag)
    form, remark = _form(arguments, tokenizer)
    prompts = [conversation.question_ids(record, form, arguments.system, tokenizer) for record in given]
    if remark:
        print(remark, file=sys.stderr, flush=True)
    tokens.check_known(prompts, tokenizer, opened.config.vocab_size, "the prompts")
    answers.check_room(opened.config, prompts, arguments.max_new_tokens)
    base, members = load_weights(arguments, opened)
    model, ends = decoding.assemble(opened.config, base), conversation.ends(opened.folder, tokenizer)
    found, began = [], time.perf_counter()
    for name, member in members.items():
        model = model if member is None else decoding.with_adapter(model, *member, combine=arguments.combine)
        written = answers.each(model, prompts, arguments, ends=ends, batch_size=arguments.batch_size)
        for record, piece in zip(given, written, strict=True):
            text = tokenizer.decode(piece.tokens, skip_special_tokens=True)
            found.append({
                "prompt": question_text(record), "adapter": name, "answer": text, "tokens": len(piece.tokens),
                "ended": piece.ended,
            })  # fmt: skip
            _show(found[-1], several=len(prompts) * len(members) > 1)
    seconds, made = time.perf_counter() - began, sum(answer["tokens"] for answer in found)
    cut = sum(not answer["ended"] for answer in found)
    said = f"; {cut} of {len(found)} answers cut by --max-new-tokens {arguments.max_new_tokens}" if cut else ""
    print(f"{made} tokens in {seconds:.1f} s, compiling included{said}", file=sys.stderr)
    return found


def _show(answer: dict[str, Any], *, several: bool) -> None:
    if several:
        by = f" ({answer['adapter']})" if answer["adapter"] else ""
        print(f"--- prompt\n{answer['prompt']}\n--- answer{by}")
    print(answer["answer"], flush=True)


def _prompts(arguments: GenerateArguments) -> "list[Record]":
    """Records that ask something."""
    from bidora_jax.data.records import Record

    if not arguments.prompt_file:
        return [Record({"prompt": arguments.prompt})]
    if not _are_lines(arguments):
        return _records(arguments)
    path = Path(arguments.prompt_file)
    try:
        # Lines end at newlines only, as everywhere here: str.splitlines would cut at U+2028 too.
        lines = [line.rstrip("\r") for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise InputError(f"cannot read the prompts in {path}: {reason}; give a text file, one prompt a line") from None
    if not lines:
        raise InputError(f"{path} holds no prompt; write one a line")
    return [Record({"prompt": line}) for line in lines]


def _records(arguments: GenerateArguments) -> "list[Record]":
    from bidora_jax.data import records
    from bidora_jax.data.sources import sources
    from bidora_jax.data.sources.rows import Fault

    source, found, wrong = arguments.prompt_file, [], []
    rows = sources.rename({"": sources.scan_each(source)}, arguments.columns)[""][source]
    if not rows:
        raise InputError(f"{source} holds no prompt; write one a row")
    for row in rows:
        try:
            if isinstance(row, Fault):
                raise records.BadRecord(row.why)
            found.append(records.question(row.value, row.place))
        except records.BadRecord as problem:
            wrong.append(f"{row.place}: {problem}")
    if wrong:
        expected = "an object with a prompt, an instruction or messages"
        raise InputError(sources.unusable([source], wrong, len(rows), expected))
    for line in records.unused_keys(found):
        print(line, file=sys.stderr)
    return found


def _form(arguments: GenerateArguments, tokenizer: "Tokenizer") -> "tuple[Form, str]":
    """The form in which the model is asked, and a line on it where nobody chose it."""
    a = arguments
    if a.template or a.system:
        return "chat template", ""
    if a.raw or not _are_lines(a):
        return "raw", ""
    form = form_of_training(a, tokenizer)
    remarks = {
        "raw": "the prompt is taken as it stands, as texts were in training (--template wraps it in the chat template)",
        "chat template": "the model's chat template is applied (--raw leaves it out)",
        "plain template": "the prompt is asked in the plain template of the training (--raw leaves it out)",
    }
    return form, remarks[form] if form != "raw" or tokenizer.chat_template else ""


def _are_lines(arguments: GenerateArguments) -> bool:
    """Whether the prompts are texts without keys."""
    from bidora_jax.data.sources import sources

    return not arguments.prompt_file or not sources.has_keys(arguments.prompt_file)


if __name__ == "__main__":
    command(main)
