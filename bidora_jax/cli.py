"""bidora-jax COMMAND …: every command of the package under one name; `bidora-jax train …` is `python -m bidora_jax.train …`.

    bidora-jax --help                    the commands, a line each
    bidora-jax completion bash|zsh       a script that lets the shell complete commands and flags

A command's module is imported when the command is called. To add one, add a line to COMMANDS.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple, Union

from bidora_jax.errors import InputError, command, did_you_mean
from bidora_jax.machine.version import __version__


class Command(NamedTuple):
    """Where a command is found."""

    module: str
    """Its module, with a function main(argv)."""
    arguments: str
    """The dataclass of its flags, as MODULE:CLASS."""
    about: str
    """One line for --help."""


COMMANDS = {
    "train": Command("bidora_jax.train", "bidora_jax.config:TrainArguments", "Fine-tune a model with BiDoRA, DoRA or LoRA."),
    "evaluate": Command("bidora_jax.evaluate", "bidora_jax.evaluate:EvaluateArguments",
                        "Loss and perplexity of a model, with or without adapters, on a file."),
    "predict": Command("bidora_jax.predict", "bidora_jax.predict:PredictArguments",
                       "Write what a classifier says of each row of a file: labels, values or tags."),
    "kaggle": Command("bidora_jax.kaggle", "bidora_jax.kaggle:KaggleArguments",
                      "From a competition's train.csv to its submission.csv, in one command."),
    "sweep": Command("bidora_jax.sweep", "bidora_jax.sweep:SweepArguments",
                     "Search settings and compare methods by Optuna; writes the best configuration."),
    "generate": Command("bidora_jax.generate", "bidora_jax.generate:GenerateArguments",
                        "Write the answer to a prompt, or to each prompt of a file."),
    "chat": Command("bidora_jax.chat", "bidora_jax.chat:ChatArguments",
                    "Talk with a model, with or without adapters."),
    "export": Command("bidora_jax.export", "bidora_jax.export:ExportArguments",
                      "Write a run as a merged model or as an adapter, or a model quantised."),
    "report": Command("bidora_jax.report", "bidora_jax.report:ReportArguments",
                      "Curves, a page and a summary of a run, finished or not."),
    "analyze": Command("bidora_jax.analyze", "bidora_jax.analyze:AnalyzeArguments",
                       "Magnitude and direction changes of each layer of a run, with a plot."),
    "data": Command("bidora_jax.show_data", "bidora_jax.config:DataArguments",
                    "What a run will train on: records with their trained tokens, lengths, costs."),
    "models": Command("bidora_jax.list_models", "bidora_jax.list_models:ModelsArguments",
                      "Models with their parameters and memory, and what fits this machine."),
    "info": Command("bidora_jax.info", "bidora_jax.info:InfoArguments", "Versions, devices and this machine."),
}  # fmt: skip
OTHER_NAMES = {"list-models": "models"}
"""Names of commands in the PyPI package bidora."""
SHELLS = ("bash", "zsh")


def main(argv: Sequence[str]) -> None:
    """Runs the command that the first argument names, or says which there are."""
    name, rest = (argv[0], list(argv[1:])) if argv else ("--help", [])
    name = OTHER_NAMES.get(name, name)
    if name in ("-h", "--help", "help"):
        print(help_text())
    elif name == "--version":
        print(__version__)
    elif name == "completion":
        print(completion(rest))
    elif name in COMMANDS:
        import_module(COMMANDS[name].module).main(rest)
    else:
        known = [*COMMANDS, "completion"]
        raise InputError(
            f"there is no command {name!r}{did_you_mean(name, known)}; the commands are {', '.join(known)}; "
            "bidora-jax --help says what they do"
        )


def help_text() -> str:
    """The commands, a line each."""
    about = {name: one.about for name, one in COMMANDS.items()}
    about["completion"] = "Print the script for completion in bash or zsh."
    width = max(map(len, about))
    lines = [f"  {name:<{width}}  {text}" for name, text in about.items()]
    return "\n".join([
        "usage: bidora-jax COMMAND [FLAGS]    (python -m bidora_jax COMMAND [FLAGS])", "",
        "Fine-tuning of language models in JAX with BiDoRA, DoRA and LoRA.", "",
        *lines, "", "bidora-jax COMMAND --help lists the flags of a command.",
    ])  # fmt: skip


def completion(rest: Sequence[str]) -> str:
    """The script for a shell, which knows every command and flag. InputError for a shell that is not known."""
    if len(rest) != 1 or rest[0] not in SHELLS:
        found = f", found {' '.join(rest)!r}" if rest else ""
        raise InputError(f"completion needs one of the shells {', '.join(SHELLS)}{found}: bidora-jax completion bash")
    import tyro
    from tyro.conf import subcommand

    kinds: Any = tuple(
        Annotated[_arguments(one), subcommand(name, description=one.about, prefix_name=False)]
        for name, one in COMMANDS.items()
    )
    flags = ["--tyro-print-completion", rest[0]]
    every: Any = Union[kinds]  # noqa: UP007 - of a tuple
    script = _printed(lambda: tyro.cli(every, prog="bidora-jax", args=flags, config=(tyro.conf.UseAppendAction,)))
    lines = (_with_short_flags(line) if line.startswith("COMPLETION_SPEC") else line for line in script.split("\n"))
    # The script splits its answers at line ends, those inside a help text too.
    return "\n".join(line.replace("\\n", " ") if line.startswith("COMPLETION_SPEC") else line for line in lines)


def _with_short_flags(line: str) -> str:
    """The line that lists every command's flags, in Python, with the short flags beside the settings that they name."""
    import ast

    from bidora_jax.flags import SHORT, SWITCHES

    name, _, literal = line.partition(" = ")
    spec = ast.literal_eval(literal)
    short: dict[str, list[str]] = {"-h": ["--help-all"]}
    for one in SHORT:
        short.setdefault("--" + one.setting.replace("_", "-"), []).extend(one.names)
    for switch, meant in SWITCHES.items():
        short.setdefault(meant, []).append(switch)
    for command_name in ("train", "data"):
        for option in spec["subcommands"][command_name]["options"]:
            option["flags"] += [name for own in option["flags"] for name in short.get(own, ())]
    return f"{name} = {spec!r}"


def _arguments(one: Command) -> Any:
    module, _, name = one.arguments.partition(":")
    return getattr(import_module(module), name)


def _printed(call: Any) -> str:
    """What a call prints before it exits."""
    import io
    from contextlib import redirect_stdout, suppress

    stream = io.StringIO()
    with redirect_stdout(stream), suppress(SystemExit):
        call()
    return stream.getvalue()


def entry() -> None:
    """The command `bidora-jax`."""
    command(main)
