"""A run of several processes: who writes it, what all of them have to share, and how it stops and goes on.

Every process runs the same program, since each step is theirs together. The first one keeps the run folder; what the others would
write goes to a folder of their own, which is gone at the end, so nothing else knows of them. A checkpoint is the first one's: the
others take over what it reads, so that they need not see its disk. Each reads the model and the data by itself.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidora_jax.config import Config, differences, resolve, settled, to_json
from bidora_jax.config_files import given_by, tree_of
from bidora_jax.errors import InputError, listing
from bidora_jax.machine import hosts
from bidora_jax.machine import interrupts as signals
from bidora_jax.machine.memory import Memory
from bidora_jax.runs.checks import SETTLED

if TYPE_CHECKING:
    from bidora_jax.runs.assembly import RunInputs
    from bidora_jax.training.checkpoint import Checkpoints

OWN = (
    "compilation_cache",
    "data.token_cache",
    "data.train_file",
    "data.val_file",
    "data.test_file",
    "model.path",
    "adapter.path",
)
"""Settings that say where a process finds things. What it finds there is compared (`agreed`)."""


def same(config: Config, asked: Mapping[str, bool]) -> Config:
    """The configuration of the first process in this one, with folders of its own. InputError where this one was called otherwise;
    `asked` is what it was asked for beside the settings."""
    told = hosts.in_words()
    if hosts.number() == 0:
        print(told)
    text, of_first = json.loads(hosts.said_by_first(json.dumps([to_json(config), dict(asked)])))
    if hosts.number() == 0:
        return config
    values = json.loads(text)
    first = _config(values)
    differing = differences(first, settled(config, first, SETTLED), ("output_dir", *OWN))
    differing += [f"{name}: {of_first[name]} → {own}" for name, own in asked.items() if of_first[name] != own]
    if differing:
        raise InputError(
            f"this process was called otherwise than process 0:\n{listing(differing)}\ngive all of them one command line, but for "
            "the number in --distributed"
        )
    here = json.loads(to_json(config))
    for name in OWN:
        *section, leaf = name.split(".")
        part, own = (values[section[0]], here[section[0]]) if section else (values, here)
        part[leaf] = own[leaf]
    silent = {"merged": False, "report": False, "tensorboard": False, "wandb": ""}
    return _config(values | silent | {"output_dir": str(hosts.scratch() / "run")})


def _config(values: dict[str, Any]) -> Config:
    return resolve(tree_of(Config, given_by(values)))


def memory(own: Memory) -> Memory:
    """The least of what the processes may plan with: they have to choose the same."""
    if not hosts.several():
        return own
    return min((Memory(*json.loads(text)) for text in hosts.exchanged(json.dumps(own))), key=lambda one: one.bytes)


def agreed(config: Config, inputs: "RunInputs") -> "RunInputs":
    """The inputs with their checksums. InputError where this process has read other data or another model than the first one, or
    runs other versions."""
    if not hosts.several():
        return inputs
    from bidora_jax.machine import facts
    from bidora_jax.runs import foundation

    stands_on = foundation.of(config, inputs)
    versions = {f"version of {name}": str(number) for name, number in facts.machine()["versions"].items()}
    hosts.agree(stands_on | {"test data": foundation.of_rows(inputs.test_rows)} | versions)
    return inputs._replace(stands_on=stands_on)


def checkpoints(folder: Path, keep: int) -> "Checkpoints":
    """The checkpoints of a run that writes."""
    from bidora_jax.training.checkpoint import Checkpoints, SharedCheckpoints

    return SharedCheckpoints(folder, keep) if hosts.several() else Checkpoints(folder, keep)


def interrupts(advice: str) -> AbstractContextManager[signals.Interrupts]:
    """How a run is asked to stop."""
    return nullcontext(hosts.TogetherInterrupts(advice)) if hosts.several() else signals.noted(advice)
