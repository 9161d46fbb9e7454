"""Weights in the form that XLA's CPU backend slices and multiplies without a copy.

Bits(stack)          a stack of 16-bit weights as integers of the same bits
Transposed(weight)   a weight (O, I) stored as (I, O)
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from bidora_jax.kernels.xla_cpu import active


@partial(jax.tree_util.register_dataclass, data_fields=["bits"], meta_fields=["dtype"])
@dataclass(frozen=True)
class Bits:
    """A stack of dense 16-bit weights as integers of the same bits.

    XLA's CPU backend has no slice of 16-bit floats: it widens the whole stack to float32 and slices that. A cast to integers
    inside the program copies the stack. The two cost 1.8 and 0.9 GB of temporaries at Qwen3-0.6B's shape. Of a stack that is held
    as integers, one layer is sliced and read back by itself.
    """

    bits: Any
    """uint16 (L, O, I)"""
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape


class Transposed(NamedTuple):
    """A dense weight stored as its transpose, the order in which a CPU multiplies it with few rows.

    XLA copies a weight in the usual order into this one before such a product: in a loop over tokens, a whole model's weights.
    """

    weight: Any
    """(I, O), or a stack of them: an array, Bits, or a Layer of Bits."""


def held_as_bits(shape: tuple[int, ...], dtype) -> bool:
    """Whether the loader holds a dense tensor of the base as `Bits`: stacks of 16-bit matrices, where a CPU computes."""
    return active() and len(shape) == 3 and np.dtype(dtype).itemsize == 2
