"""python -m bidora_jax.sweep --config FILE --over NAME … [--over NAME …] --output-dir DIR [--trials N] [--seeds K] [--budget …]

Searches settings with Optuna: each point is trained with K seeds, judged by the mean of a metric on records that no run reads, and
the best one is written as a configuration that `train --config` takes. The same command goes on with a sweep that was stopped or
killed, and several processes that are given it share its trials. guides/sweeps.md says the rest.

From Python the module itself is the call: bidora_jax.sweep("c.yaml", over={"inner.learning_rate": ("log", 1e-5, 1e-3)}, …).
"""

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from bidora_jax.errors import InputError, command, did_you_mean, program


@dataclass(frozen=True)
class SweepArguments:
    """Search settings: train points of --over from a configuration, each with several seeds, and write down which is best.
    For example: --config c.yaml --over inner.learning_rate log 1e-5 1e-3 --over adapter.method lora bidora --output-dir runs/s"""

    config: str = ""
    """Configuration that every run starts from: a .py, .yaml or .json file, as `train` takes it."""
    over: tuple[str, ...] = ()
    """A setting and what it may be: NAME log LOW HIGH, NAME uniform LOW HIGH, or NAME VALUE VALUE …; repeat it for several."""
    output_dir: str = ""
    """Folder of the sweep. If it holds this sweep already, it goes on."""
    trials: int = 0
    """Points to train; 0: all of them where every --over lists its values, else 20."""
    seeds: int = 3
    """Runs of each point, which is judged by their mean."""
    metric: str = "auto"
    """What the best point has most or least of: loss, or a metric of the task, such as accuracy; auto: search.metric."""
    budget: str = ""
    """tokens=N: every run takes gradients on so many tokens, whatever its method; time=T: it trains for so long, such as 10m."""
    judge_file: tuple[str, ...] = ()
    """Records that judge, read by no run; without it the validation records do, and bidora splits its own off train."""
    sampler: str = "auto"
    """tpe, random, or grid for all points there are; auto: grid where every --over lists its values, else tpe."""
    prune: bool = False
    """Stop a point after a seed if it is worse than the median of the others."""


def main(argv: list[str]) -> None:
    import tyro

    arguments = tyro.cli(
        SweepArguments, args=_with_axes(argv), prog=program("sweep"), config=(tyro.conf.UseAppendAction,)
    )
    run(arguments)


def sweep(config: str | Path, *, over: Mapping[str, Any] | Sequence[str], **settings: Any) -> dict[str, Any]:
    """The command from Python: flags are keywords. Returns what results.json holds. InputError for what is wrong, before anything
    is written."""
    from bidora_jax.sweeps import space

    known = {item.name: item for item in dataclasses.fields(SweepArguments)}
    if unknown := [f"{name!r}{did_you_mean(name, known)}" for name in settings if name not in known]:
        raise InputError(f"sweep has no setting {', '.join(unknown)}; it has {', '.join(known)}")
    values: dict[str, Any] = {
        name: str(value) if isinstance(value, Path) else value for name, value in settings.items()
    }
    if isinstance(values.get("judge_file"), str):
        values["judge_file"] = (values["judge_file"],)
    return run(SweepArguments(config=str(config), over=space.written(over), **values))


def run(arguments: SweepArguments) -> dict[str, Any]:
    """Checks everything, and runs what is left of the sweep."""
    from bidora_jax.sweeps import plan, sweeping

    a = arguments
    return sweeping.run(plan.make(plan.Request(
        a.config, a.over, a.output_dir, a.trials, a.seeds, a.metric, a.budget, a.sampler, a.prune, a.judge_file,
    )))  # fmt: skip


def _with_axes(argv: Sequence[str]) -> list[str]:
    """The command line with all words of an --over as one, up to the next flag; a negative number is none."""
    found: list[str] = []
    axis: list[str] | None = None
    for arg in [*argv, "--"]:
        if axis is not None and not arg.startswith("--") and arg != "-h":
            axis.append(arg)
            continue
        if axis is not None:
            found.append(f"--over={shlex.join(axis)}")
            axis = None
        if arg == "--over":
            axis = []
        else:
            found.append(arg)
    return found[:-1]


class _Call(ModuleType):
    """This module, which can be called: bidora_jax.sweep("c.yaml", over={…})."""

    def __call__(self, config: str | Path, **settings: Any) -> Any:
        return sweep(config, **settings)


sys.modules[__name__].__class__ = _Call

if __name__ == "__main__":
    command(main)
