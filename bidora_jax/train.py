"""python -m bidora_jax.train --config configs/NAME.py [--SECTION.FIELD VALUE …] [--resume | --auto | --dry-run]

Reads everything and refuses what is wrong before it writes the first byte of the run folder. Then it trains phase by phase and
writes the adapter, and the merged model when asked.
"""

from pathlib import Path

from bidora_jax.config import named, parse_train
from bidora_jax.errors import InputError, command
from bidora_jax.runs.assembly import assemble, describe, settle
from bidora_jax.runs.checks import as_begun, check_config, check_folder
from bidora_jax.runs.execution import run
from bidora_jax.runs.folder import hold


def main(argv: list[str]) -> None:
    config, resume = parse_train(argv)
    given = named(argv)
    check_config(config)
    if resume and "auto" in given:
        raise InputError(
            "--auto chooses settings for a new run; --resume goes on with those of the run folder: leave one out"
        )
    if resume:
        config = as_begun(config)
    dry = "dry_run" in given
    if not dry:
        check_folder(config, resume)
        if resume:
            with hold(Path(config.output_dir)):
                pass  # a process that trains there is named before anything is read
    from bidora_jax.machine.allocator import keep_freed_memory
    from bidora_jax.machine.compile_cache import keep_compiled
    from bidora_jax.machine.memory import device_memory
    from bidora_jax.runs import auto, dry_run, out_of_memory

    keep_freed_memory()
    kept = keep_compiled(config.compilation_cache)
    clock = dry_run.Clock() if dry else None
    memory = device_memory(config.memory_limit)
    if "auto" in given:
        config = auto.fit(config, given, memory)
    with out_of_memory.explained(config):
        inputs = assemble(config)
        config, first = settle(config, inputs, memory)
    inputs = inputs._replace(problem=first.problem)
    with out_of_memory.explained(config, inputs.problem.buckets[-1]):
        if clock is not None:
            describe(config, inputs)
            dry_run.main(config, inputs, first, memory, clock, kept=kept is not None)
        else:
            run(config, inputs, first)


if __name__ == "__main__":
    command(main)
