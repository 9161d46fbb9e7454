"""The adapter at every checkpoint that a run has kept, without the state of its optimisers.

Where direction d and magnitude m stand in a checkpoint (training/phases.py):

    search, bidora   state.direction, state.magnitude        retrain   state.params, best.1: m is fixed
    search, dora     state.params.0,  state.params.1         search, lora   state.params.0
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bidora_jax.models.adapters.adapter import put
from bidora_jax.training.checkpoint import Checkpoints

PLACES = (("state.direction", "state.magnitude"), ("state.params.0", "state.params.1"), ("state.params", "best.1"))


class Point(NamedTuple):
    """An adapter, and the step of a phase that it belongs to."""

    phase: str
    step: int | None
    best_step: int | None
    """The step of the phase with the best validation loss so far; 0 or None where there is none."""
    direction: PyTree
    magnitude: PyTree
    """{} for a method without one."""


def points(checkpoints: Checkpoints) -> Iterator[Point]:
    """Reads them one after the other: one adapter is in memory at a time."""
    for step in checkpoints.steps():
        arrays, info = checkpoints.part(step, lambda path: path.startswith(("state.direction.", "state.magnitude.",
                                                                            "state.params.", "best.1.")))  # fmt: skip
        places = next(pair for pair in PLACES if any(path.startswith(pair[0] + ".") for path in arrays))
        yield Point(info["phase"], info["step"], info["best_step"], *(_tree(arrays, place) for place in places))


def _tree(arrays: dict[str, np.ndarray], place: str) -> PyTree:
    tree: PyTree = {}
    for path, array in arrays.items():
        if path.startswith(place + "."):
            tree = put(tree, path.removeprefix(place + "."), jnp.asarray(array))
    return tree
