"""How a model is computed, apart from what it computes: one value that is handed on from the task to the linear layer."""

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp

from bidora_jax.kernels import xla_cpu
from bidora_jax.models.settings import ModelConfig

Remat = Literal["none", "dots", "layer", "offload"]


@dataclass(frozen=True)
class Compute:
    """None of these changes a result by more than rounding."""

    remat: Remat = "layer"
    """What the backward pass recomputes; see ModelConfig.remat and layer_scan.py."""
    attention: Literal["chunked", "cudnn"] = "chunked"
    """cudnn has first derivatives alone, and takes one document a row."""
    attention_chunk: int = 1024
    """Longer sequences are attended at most half as many queries at a time."""
    loss_chunk: int = 256
    """The loss holds no more logits at a time than so many tokens have."""
    reverse_differentiable: bool = True
    """Whether a gradient may be differentiated in reverse once more. If not, a CPU saves 16-bit activations as bits, in half the
    memory."""
    dtype: Any = None
    """dtype of the activations where it is not the base's; layers are then cast one at a time."""
    loss_devices: int = 1
    """Devices of a mesh that have as many tokens each, whose blocks of the loss are to be those of one device."""
    tensor_axis: str | None = None
    """The axis of a mesh whose devices share the products of a layer (models/tensor.py)."""

    @classmethod
    def of(cls, model: ModelConfig, *, reverse_differentiable: bool = True) -> "Compute":
        """What a run's settings say. Attention that is still auto is chunked. ValueError for a remat that is still auto."""
        if model.remat == "auto":
            raise ValueError(
                "remat auto is for training, which settles it (planning/remat_choice.py); say which policy is meant"
            )
        attention = "cudnn" if model.attention == "cudnn" else "chunked"
        return cls(model.remat, attention, model.attention_chunk, model.loss_chunk, reverse_differentiable)

    @property
    def fused(self) -> bool:
        return self.attention == "cudnn"

    @property
    def saves_sums(self) -> bool:
        """Whether the scan over layers saves the sums of the linear layers (layer_scan.py)."""
        return self.remat == "dots"

    def as_bits(self, dtype) -> bool:
        """Whether the scan over layers saves activations of this dtype as bits."""
        return not self.reverse_differentiable and jnp.dtype(dtype) == jnp.bfloat16 and xla_cpu.active()


DEFAULT = Compute()
