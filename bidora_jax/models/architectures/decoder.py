"""What a config.json says of a decoder, and the names and shapes of its linear layers. No JAX."""

from dataclasses import dataclass

from bidora_jax.models.architectures.rope import RopeScaling

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


ATTENTION, MLP = LINEARS[:4], LINEARS[4:]
PATHS = tuple(f"self_attn.{name}" for name in ATTENTION) + tuple(f"mlp.{name}" for name in MLP)


def linear_shapes(config: "DecoderConfig") -> dict[str, tuple[int, int]]:
    """(O, I) of every linear layer, by its path inside a decoder layer."""
    d, f = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return dict(zip(PATHS, ((q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f)), strict=True))


@dataclass(frozen=True)
class DecoderConfig:
    """What the mathematics needs of a config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    qk_norm: bool
    """RMS norm of every query and key head before the rotation (Qwen3)."""
    qkv_bias: bool
    o_bias: bool
    max_position_embeddings: int
    mlp_bias: bool = False
    window: int | None = None
    """Tokens that a position sees, its own included (Mistral); None: all up to it."""
    rope_scaling: RopeScaling | None = None
