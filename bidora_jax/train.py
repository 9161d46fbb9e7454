"""python -m bidora_jax.train --config configs/NAME.py [--SECTION.FIELD VALUE …] [--resume | --auto | --dry-run]
                           [--distributed auto | HOST:PORT,N,I]

Reads everything and refuses what is wrong before it writes the first byte of the run folder. Then it trains phase by phase and
writes the adapter, and the merged model when asked.
"""

from bidora_jax.config import named, parse_train
from bidora_jax.errors import command
from bidora_jax.machine import hosts
from bidora_jax.runs.launch import Request, checked, launch


def main(argv: list[str]) -> None:
    config, arguments = parse_train(argv)
    given = named(argv)
    request = Request(given, resume=arguments.resume, auto="auto" in given, dry_run="dry_run" in given)
    with hosts.joined(arguments.distributed):
        launch(*checked(config, request))


if __name__ == "__main__":
    command(main)
