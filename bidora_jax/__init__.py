"""BiDoRA in JAX: bi-level optimisation of weight-decomposed low-rank adaptation, with exact hypergradients.

    from bidora_jax import kaggle                         from train.csv to submission.csv: guides/competitions.md
    from bidora_jax import sweep                          search settings, compare methods: guides/sweeps.md
    from bidora_jax import finetune, load                 fine-tune a model from Python: guides/python.md
    from bidora_jax import bilevel_step, init_state       the step alone, in a program of one's own

The public names load on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from bidora_jax.machine.version import __version__ as __version__

if TYPE_CHECKING:
    from bidora_jax.errors import InputError, RunError
    from bidora_jax.kaggle import kaggle
    from bidora_jax.runs.finetuned_model import FinetunedModel, load
    from bidora_jax.runs.finetuning import finetune
    from bidora_jax.runs.sharing import Shared
    from bidora_jax.sweep import sweep
    from bidora_jax.training.bilevel import bilevel_step
    from bidora_jax.training.state import BilevelState, TrainState, init_state, init_train_state
    from bidora_jax.training.step import train_step

__all__ = [
    "BilevelState", "FinetunedModel", "InputError", "RunError", "Shared", "TrainState", "bilevel_step", "finetune", "init_state",
    "init_train_state", "kaggle", "load", "sweep", "train_step",
]  # fmt: skip

_HOMES = {
    "InputError": "bidora_jax.errors",
    "RunError": "bidora_jax.errors",
    "finetune": "bidora_jax.runs.finetuning",
    "FinetunedModel": "bidora_jax.runs.finetuned_model",
    "kaggle": "bidora_jax.kaggle",
    "load": "bidora_jax.runs.finetuned_model",
    "Shared": "bidora_jax.runs.sharing",
    "sweep": "bidora_jax.sweep",
    "bilevel_step": "bidora_jax.training.bilevel",
    "train_step": "bidora_jax.training.step",
    "BilevelState": "bidora_jax.training.state",
    "TrainState": "bidora_jax.training.state",
    "init_state": "bidora_jax.training.state",
    "init_train_state": "bidora_jax.training.state",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'bidora_jax' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    return (
        home if home.__name__ == f"{__name__}.{name}" else getattr(home, name)
    )  # kaggle and sweep are modules that can be called


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
