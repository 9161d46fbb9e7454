"""python -m bidora_jax.data --config configs/NAME.py [--SECTION.FIELD VALUE …] [--records N]

What a run will train on, before it is paid for: the first records with their trained tokens marked, lengths, what is split,
cut, dropped or there twice, tokens and steps of an epoch, and how much of it is padding. Takes the flags of train, refuses what
train would refuse, and reads no weights.
"""

import os
import sys

from bidora_jax.config import parse_data
from bidora_jax.errors import InputError, command
from bidora_jax.runs.assembly import read_data, read_labelled_data
from bidora_jax.runs.checks import check_config

TRAINED, MASKED = "bold green", "dim"
"""Styles of the text of trained tokens and of all others."""


def main(argv: list[str]) -> None:
    from rich.console import Console
    from rich.text import Text

    from bidora_jax.data import description

    config, count = parse_data(argv)
    check_config(config)
    if count < 0:
        raise InputError(f"--records must be at least 0, found {count}")
    labelled = read_labelled_data(config)
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    coloured = console.is_terminal and not os.environ.get("NO_COLOR")

    def say(*lines: str) -> None:
        for line in lines:
            console.print(line, markup=False)

    if labelled is not None:
        say(*labelled.notes, *description.of_labels(labelled, count))
        return
    splits, ready, tokenizer, settings = read_data(config)
    say(*ready.notes)
    for head, pieces in description.of_records(splits.train.records[:count], tokenizer, config.data):
        say(head)
        text = Text()
        for piece, trained in pieces:
            if coloured:
                text.append(piece, TRAINED if trained else MASKED)
            else:
                text.append(f"⟦{piece}⟧" if trained else piece)
        console.print(text)
    if count and not coloured:
        say("(trained text stands between ⟦ and ⟧)")
    say(*description.of_lengths(splits, ready, config.data))
    two_levels, search = config.adapter.method == "bidora", config.search
    levels = {"splits": search.splits, "lower_steps": search.lower_steps}
    say(*description.of_epoch(ready, settings, two_levels, **levels, seed=config.seed))


if __name__ == "__main__":
    command(main)
