"""BiDoRA in JAX: bi-level optimisation of weight-decomposed low-rank adaptation, with exact hypergradients.

    from bidora_jax import bilevel_step, init_state

The public names load on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bidora_jax.training.bilevel import bilevel_step
    from bidora_jax.training.state import BilevelState, TrainState, init_state, init_train_state
    from bidora_jax.training.step import train_step

__version__ = "0.1.0"
__all__ = ["BilevelState", "TrainState", "bilevel_step", "init_state", "init_train_state", "train_step"]

_HOMES = {
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
    return getattr(import_module(_HOMES[name]), name)
