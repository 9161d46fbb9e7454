"""Stacked 16-bit weights in the form that XLA's CPU backend slices without a copy: as their bits."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np


@partial(jax.tree_util.register_dataclass, data_fields=["bits"], meta_fields=["dtype"])
@dataclass(frozen=True)
class Bits:
    """A stack of dense 16-bit weights as integers of the same bits, for a CPU.

    XLA's CPU backend has no slice of 16-bit floats: it widens the whole stack to float32 and slices that. Casting to
    integers inside the program copies the stack (1.8 and 0.9 GB of temporaries for Qwen3-0.6B); held as
    integers, a layer is sliced and read back by itself.
    """

    bits: Any
    """uint16 (L, O, I)"""
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape


class Transposed(NamedTuple):
    """A dense weight kept as its transpose, the order in which a CPU multiplies it with few rows.

    Of a weight in the usual order XLA makes a turned copy before it does so, a whole model's in a loop over tokens.
    """

    weight: Any
    """(I, O), or a stack of them: an array, Bits, or a Layer of Bits."""
