"""Which form of a step fits the device: the compiler is asked, the fastest form first.

    remat            none, dots, layer, offload (a GPU): the less is kept for the backward pass, the more is computed again
    hypergradient    reverse over reverse, then forward over reverse ("exact"): the same quantity

A form fits if the peak that the compiler counts for it is at most FITS of the memory there is; the rest is for what it does
not count: the interpreter, fragments, checkpoints on their way out.
"""

from jaxtyping import PyTree
import numpy as np

from bidora_jax.models import adapters
from bidora_jax.models.adapters import Adapter
from bidora_jax.models.decoder import DecoderConfig
from bidora_jax.models.settings import ModelConfig
from bidora_jax.training.phases import Problem, made
from bidora_jax.training.records import Example
from bidora_jax.training.settings import DataConfig

FITS = 0.85


def synthetic(
    config: DecoderConfig, model: ModelConfig, adapter: Adapter, base: PyTree, data: DataConfig, length: int
) -> Problem:
    """A problem over one record of `length` tokens on each level, for steps whose data do not matter. The base, as it was
    loaded, may be shapes."""
    example = Example(np.zeros(length, np.int32), np.arange(length) > 0, False)
    base = made(lambda base: adapters.prepare_base(base, adapter), base)
    return Problem(config, model, adapter, base, [example], [example], data, 0, 0)
