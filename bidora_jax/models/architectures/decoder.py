"""The architecture of a decoder: what its config.json says, and the names, shapes and roles of its weights. No JAX."""

from dataclasses import dataclass, replace

from bidora_jax.models.architectures.architecture import (
    ATTENTION_ROLES,
    EMBEDDING,
    HEAD,
    LAYERS,
    LinearSpec,
    Role,
    TensorSpec,
    linear_shapes,
)
from bidora_jax.models.architectures.heads import HeadPart, HeadSpec, Kind
from bidora_jax.models.architectures.rope import RopeScaling

__all__ = ["ATTENTION", "LINEARS", "DecoderConfig", "linear_shapes"]

_ROLES: dict[str, Role] = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
"""The linear layers of a decoder layer, by path."""
LINEARS = tuple(path.partition(".")[2] for path in _ROLES)
"""Their names, which settings have as defaults."""
ATTENTION = tuple(path.partition(".")[2] for path, role in _ROLES.items() if role in ATTENTION_ROLES)


@dataclass(frozen=True)
class DecoderConfig:
    """What the mathematics needs of a config.json. It is an `Architecture`."""

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
    has_output: bool = True
    """Whether it has an output over the vocabulary; a classifier has none."""

    @property
    def types(self) -> int:
        return 0

    @property
    def tied(self) -> bool:
        return self.has_output and self.tie_word_embeddings

    @property
    def max_positions(self) -> int:
        return self.max_position_embeddings

    def untied(self) -> "DecoderConfig":
        return replace(self, tie_word_embeddings=False)

    def without_output(self) -> "DecoderConfig":
        """The model inside a classifier."""
        return replace(self, has_output=False)

    @property
    def prefix(self) -> str:
        return "model"

    @property
    def layer_prefix(self) -> str:
        return "model.layers"

    @property
    def linears(self) -> tuple[LinearSpec, ...]:
        d, f = self.hidden_size, self.intermediate_size
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shapes: dict[Role, tuple[int, int]] = {
            "q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q), "gate": (f, d), "up": (f, d), "down": (d, f)
        }  # fmt: skip
        return tuple(LinearSpec(path, (role,), *shapes[role]) for path, role in _ROLES.items())

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        d = self.hidden_size
        outside = [
            TensorSpec((EMBEDDING, "weight"), "model.embed_tokens.weight", (self.vocab_size, d)),
            TensorSpec(("norm", "weight"), "model.norm.weight", (d,)),
        ]
        if self.has_output and not self.tied:
            outside.append(TensorSpec((HEAD, "weight"), "lm_head.weight", (self.vocab_size, d)))
        inside: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
        if self.qk_norm:
            inside |= dict.fromkeys(("self_attn.q_norm.weight", "self_attn.k_norm.weight"), (self.head_dim,))
        for linear in self.linears:
            inside[f"{linear.path}.weight"] = linear.shape
            if self._has_bias(linear.roles[0]):
                inside[f"{linear.path}.bias"] = (linear.out_features,)
        stacked = [TensorSpec((LAYERS, *name.split(".")), name, shape) for name, shape in inside.items()]
        return tuple(sorted(outside + stacked, key=lambda one: one.path))

    def head(self, kind: Kind, outputs: int) -> HeadSpec:
        out = HeadPart("out", "score", (outputs, self.hidden_size), bias=kind == "token")
        return HeadSpec(kind, "last" if kind == "sequence" else "each", (out,))

    def ignores(self, name: str) -> bool:
        if name.endswith("rotary_emb.inv_freq"):  # follows from rope_theta
            return True
        if self.has_output:
            return self.tied and name == "lm_head.weight"  # a copy of the embedding
        return name in ("lm_head.weight", "score.weight", "score.bias")

    def canonical(self, name: str) -> str:
        return name

    def _has_bias(self, role: Role) -> bool:
        if role not in ATTENTION_ROLES:
            return self.mlp_bias
        return self.o_bias if role == "o" else self.qkv_bias
