"""The architecture of an encoder: what its config.json says, and the names, shapes and roles of its weights. No JAX.

Encoders differ in flags, and in what Hugging Face calls their modules (`Names`). The mathematics is in models/encoder.py.
"""

import re
from dataclasses import dataclass
from typing import Literal

from bidora_jax.models.architectures.architecture import (
    ATTENTION_ROLES,
    EMBEDDING,
    LAYERS,
    LinearSpec,
    Role,
    TensorSpec,
)
from bidora_jax.models.architectures.heads import Activation, HeadPart, HeadSpec, Kind

POSITIONS, TYPES = "position_embeddings", "token_type_embeddings"
EMBED_NORM, EMBED_PROJECTION = "embed_norm", "embed_projection"
NORM, ROTARY = "norm", "rotary"
"""Keys of the base tree, beside those of architecture.py: tables, the norm and the projection of their sum, the norm of the last
hidden states, the frequencies of rotary positions."""


@dataclass(frozen=True)
class Names:
    """What Hugging Face calls the modules of a family. An empty name is of a module that the family never has."""

    prefix: str
    """The model inside one with a head."""
    layers: str
    """The list of layers, below the prefix; so are the modules outside the layers."""
    words: str
    positions: str
    types: str
    embed_norm: str
    embed_projection: str
    final_norm: str
    linears: tuple[tuple[str, tuple[Role, ...]], ...]
    """The linear layers of a layer, by path inside it."""
    attention_norm: str
    """Inside a layer: of the sum after attention, or where the norm comes first, before attention; and so of the MLP."""
    mlp_norm: str
    head: tuple[str, str]
    """The dense layer and the output of a head over whole texts, by full names."""
    head_activation: Activation
    beside: tuple[str, ...]
    """How tensors begin that files may hold and the model lacks: of pretraining's outputs and of heads; below the prefix or not."""


@dataclass(frozen=True)
class EncoderConfig:
    """What the mathematics needs of a config.json. It is an `Architecture`."""

    names: Names
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_position_embeddings: int
    eps: float
    activation: Activation
    norm_first: bool
    """x + f(norm(x)), and a norm at the end; else norm(x + f(x))."""
    positions: Literal["learned", "rotary"]
    first_position: int
    """The row of the table of positions that a text's first token takes (RoBERTa: 2)."""
    types: int
    """Rows of the table of token types; 0 for no table."""
    embedding_size: int
    """Width of the embeddings, which are projected where it is not hidden_size (ELECTRA)."""
    embed_norm: bool
    dropped_token: int | None
    """The token whose embedding is zero, the others of its text being scaled for it (ESM's <mask>)."""
    initializer_range: float
    """Standard deviation of a new head."""

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def max_positions(self) -> int:
        return self.max_position_embeddings - self.first_position

    @property
    def window(self) -> None:
        return None

    @property
    def tied(self) -> bool:
        return False  # it has no output over the vocabulary

    def untied(self) -> "EncoderConfig":
        return self

    def without_output(self) -> "EncoderConfig":
        return self

    @property
    def prefix(self) -> str:
        return self.names.prefix

    @property
    def layer_prefix(self) -> str:
        return f"{self.prefix}.{self.names.layers}"

    @property
    def linears(self) -> tuple[LinearSpec, ...]:
        d, f = self.hidden_size, self.intermediate_size
        shapes: dict[Role, tuple[int, int]] = dict.fromkeys(ATTENTION_ROLES, (d, d))
        shapes |= {"gate": (f, d), "up": (f, d), "down": (d, f)}
        return tuple(
            LinearSpec(path, roles, sum(shapes[role][0] for role in roles), shapes[roles[0]][1])
            for path, roles in self.names.linears
        )

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        names, d, e = self.names, self.hidden_size, self.embedding_size
        outside = [self._outside(EMBEDDING, f"{names.words}.weight", (self.vocab_size, e))]
        if self.positions == "learned":
            outside.append(self._outside(POSITIONS, f"{names.positions}.weight", (self.max_position_embeddings, e)))
        else:  # published ones are rounded through float16, and are to be read, not computed
            frequencies = self._outside(ROTARY, "rotary_embeddings.inv_freq", (self.head_dim // 2,), wide=True)
            outside.append(frequencies)
        if self.types:
            outside.append(self._outside(TYPES, f"{names.types}.weight", (self.types, e)))
        if self.embed_norm:
            outside += [self._outside(EMBED_NORM, f"{names.embed_norm}.{leaf}", (e,)) for leaf in ("weight", "bias")]
        if e != d:
            outside += [
                self._outside(EMBED_PROJECTION, f"{names.embed_projection}.{leaf}", shape)
                for leaf, shape in (("weight", (d, e)), ("bias", (d,)))
            ]
        if self.norm_first:
            outside += [self._outside(NORM, f"{names.final_norm}.{leaf}", (d,)) for leaf in ("weight", "bias")]
        inside: dict[str, tuple[int, ...]] = {
            f"{norm}.{leaf}": (d,) for norm in (names.attention_norm, names.mlp_norm) for leaf in ("weight", "bias")
        }
        for linear in self.linears:
            inside |= {f"{linear.path}.weight": linear.shape, f"{linear.path}.bias": (linear.out_features,)}
        stacked = [TensorSpec((LAYERS, *name.split(".")), name, shape) for name, shape in inside.items()]
        return tuple(sorted(outside + stacked, key=lambda one: one.path))

    def head(self, kind: Kind, outputs: int) -> HeadSpec:
        d, (dense, out) = self.hidden_size, self.names.head
        more = {"initializer_range": self.initializer_range}
        if kind == "token":
            return HeadSpec(kind, "each", (HeadPart("out", "classifier", (outputs, d)),), **more)
        parts = HeadPart("dense", dense, (d, d)), HeadPart("out", out, (outputs, d))
        return HeadSpec(kind, "first", parts, self.names.head_activation, **more)

    def ignores(self, name: str) -> bool:
        name = name.removeprefix(f"{self.prefix}.")
        if name.startswith(self.names.beside) or name.endswith(("position_ids", "token_type_ids")):
            return True
        unused = f"{self.names.positions}.weight" if self.positions == "rotary" else "rotary_embeddings.inv_freq"
        return name.endswith(unused)

    def canonical(self, name: str) -> str:
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        # transformers 5 holds the frequencies of rotary positions once, and writes that name with a star in place of a number.
        return re.sub(r"\bencoder\.layer\.(\d+|\*)\.attention\.self\.(?=rotary_embeddings\.inv_freq$)", "", name)

    def _outside(self, key: str, name: str, shape: tuple[int, ...], *, wide: bool = False) -> TensorSpec:
        return TensorSpec((key, name.rpartition(".")[2]), f"{self.prefix}.{name}", shape, wide)
