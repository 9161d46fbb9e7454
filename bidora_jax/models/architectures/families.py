"""The families that are read, and what each fixes without saying it in config.json."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Family:
    """What a model_type fixes without saying it in config.json, and what transformers assumes for a key that is not there
    (transformers/models/*/configuration_*.py)."""

    qk_norm: bool
    qkv_bias: bool | None
    """None, here and below: the key attention_bias, or mlp_bias, decides."""
    o_bias: bool | None
    mlp_bias: bool | None
    windowed: Literal["never", "always", "on request"]
    """Whether sliding_window is obeyed; on request: if use_sliding_window is true, from layer max_window_layers on."""
    num_key_value_heads: int | None
    """None: as many as num_attention_heads."""
    max_position_embeddings: int
    head_dim: int | None = None
    """None: hidden_size / num_attention_heads."""


FAMILIES = {
    "llama": Family(False, None, None, None, "never", num_key_value_heads=None, max_position_embeddings=2048),
    "mistral": Family(False, False, False, False, "always", num_key_value_heads=8, max_position_embeddings=131072),
    "qwen2": Family(False, True, False, False, "on request", num_key_value_heads=32, max_position_embeddings=32768),
    "qwen3": Family(
        True, None, None, False, "on request", num_key_value_heads=32, max_position_embeddings=32768, head_dim=128
    ),
}
