"""python -m bidora_jax.chat --run DIR [--system TEXT] [--temperature T] [--max-new-tokens N]
python -m bidora_jax.chat --model DIR [--adapter NAME=DIR …]

A conversation with a model, in its own chat template. /help lists what else can be typed; Ctrl-C stops an answer, Ctrl-D ends.
The arguments are those of generate.
"""

from dataclasses import dataclass

from bidora_jax.errors import InputError, command, program
from bidora_jax.generation.served_model import Served
from bidora_jax.generation.settings import Sampled
from bidora_jax.runs.serving import named, settled


@dataclass(frozen=True, kw_only=True)
class ChatArguments(Sampled, Served):
    """Talk with a model. For example: --run runs/mine"""

    system: str = ""
    """System prompt; /system sets another one."""


def main(argv: list[str]) -> None:
    import tyro

    arguments = tyro.cli(ChatArguments, args=argv, prog=program("chat"), config=(tyro.conf.UseAppendAction,))
    if wrong := arguments.wrong():
        raise InputError("\n".join(wrong))
    from bidora_jax.generation.chat import Settings, chat

    a = settled(arguments, named(argv))
    chat(a, Settings(a.system, a.sampling, a.max_new_tokens, a.seed, a.combine))


if __name__ == "__main__":
    command(main)
