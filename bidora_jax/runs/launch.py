"""From a configuration to a finished run: what `train` on the command line and `finetune` from Python both do.

`checked` refuses what can be refused without reading a file of data; `launch` reads everything and refuses what is wrong before it
writes the first byte of the run folder.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bidora_jax.config import Config
from bidora_jax.errors import InputError
from bidora_jax.machine import hosts
from bidora_jax.runs import several_hosts
from bidora_jax.runs.assembly import assemble, describe, settle
from bidora_jax.runs.checks import as_begun, check_config, check_folder
from bidora_jax.runs.execution import run
from bidora_jax.runs.folder import hold

if TYPE_CHECKING:
    from bidora_jax.runs.sharing import Shared


class Request(NamedTuple):
    """What is asked beside the settings."""

    given: frozenset[str] = frozenset()
    """Dotted names of the settings that the caller has chosen: --auto leaves those as they are."""
    resume: bool = False
    auto: bool = False
    dry_run: bool = False


def checked(config: Config, request: Request) -> tuple[Config, Request]:
    """The configuration that will be run, and what is asked: of a process that is not the first of several, what that one says.

    InputError for settings and a run folder that do not allow it.
    """
    check_config(config)
    if hosts.number() == 0:
        config = _checked(config, request)
    if not hosts.several():
        return config, request
    config = several_hosts.same(
        config, {"--resume": request.resume, "--auto": request.auto, "--dry-run": request.dry_run}
    )
    return config, request if hosts.number() == 0 else request._replace(resume=False)


def _checked(config: Config, request: Request) -> Config:
    if request.resume and request.auto:
        raise InputError(
            "--auto chooses settings for a new run; --resume goes on with those of the run folder: leave one out"
        )
    if request.resume:
        config = as_begun(config)
    if not request.dry_run:
        check_folder(config, request.resume)
        if request.resume:
            with hold(Path(config.output_dir)):
                pass  # a process that trains there is named before anything is read
    return config


def launch(config: Config, request: Request, shared: "Shared | None" = None) -> None:
    """Trains as a checked configuration says, or rehearses it with dry_run; `shared`: with what earlier runs have left."""
    from bidora_jax.machine.allocator import keep_freed_memory
    from bidora_jax.machine.compile_cache import keep_compiled
    from bidora_jax.machine.memory import device_memory
    from bidora_jax.runs import auto, compile_clock, dry_run, out_of_memory

    keep_freed_memory()
    kept = keep_compiled(config.compilation_cache)
    clock = compile_clock.Clock() if request.dry_run else None
    memory = several_hosts.memory(device_memory(config.memory_limit))
    if request.auto:
        config = auto.fit(config, request.given, memory)
    with out_of_memory.explained(config):
        inputs = assemble(config, shared)
        inputs = several_hosts.agreed(config, inputs)
        config, first = settle(config, inputs, memory)
    inputs = inputs._replace(problem=first.problem)
    with out_of_memory.explained(config, inputs.problem.buckets[-1]):
        if clock is not None:
            describe(config, inputs)
            dry_run.main(config, inputs, first, memory, clock, kept=kept is not None)
        else:
            run(config, inputs, first)
