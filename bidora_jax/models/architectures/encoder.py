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
from bidora_jax.models.architectures.heads import Activation, HeadPart, HeadSpec, Kind, Pool

POSITIONS, TYPES = "position_embeddings", "token_type_embeddings"
EMBED_NORM, EMBED_PROJECTION = "embed_norm", "embed_projection"
NORM, ROTARY = "norm", "rotary"
RELATIVE, RELATIVE_NORM = "relative_positions", "relative_norm"
CONVOLUTION, CONVOLUTION_NORM = "convolution", "convolution_norm"
"""Keys of the base tree, beside those of architecture.py: tables, the norm and the projection of their sum, the norm of the last
hidden states, the frequencies of rotary positions, the table of relative positions, DeBERTa-v2's convolution, their norms."""

LONGEST = 2**15
"""Tokens of the longest text that is taken of a model whose positions have no end."""
Term = Literal["c2p", "p2c"]
"""What relative positions add to the score of two tokens: the query with the key of their distance, the key with its query."""
TERMS: dict[Role, Term] = {"rel_k": "c2p", "rel_q": "p2c"}


@dataclass(frozen=True)
class RelativePositions:
    """Positions that enter the scores of attention: DeBERTa's, see kernels/disentangled.py."""

    half: int
    """Half of the table's rows."""
    buckets: int | None
    """How many logarithmic ones there are; None: each distance has a row."""
    most: int
    """The distance that the last bucket ends at."""
    terms: tuple[Term, ...]
    shared: bool
    """Whether the projections of queries and keys project the table too; else it has its own."""
    normed: bool


@dataclass(frozen=True)
class Convolution:
    """Over the embeddings of neighbours; its norm takes it with the first layer's result (DeBERTa-v2)."""

    width: int
    activation: Activation


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
    relative: str = ""
    relative_norm: str = ""
    convolution: str = ""
    convolution_norm: str = ""
    head_norm: str = ""
    """The norm between the two, of a head which stands on tokens as it does on texts."""


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
    positions: Literal["learned", "rotary", "relative"]
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
    norm_bias: bool = True
    attention_bias: bool = True
    mlp_bias: bool = True
    first_norm: bool = True
    """Whether the first layer has a norm before attention; without one, the norm of the embeddings serves (ModernBERT)."""
    windows: tuple[int | None, ...] = ()
    """How far a token sees to each side, by layer (None: its whole document); no entries where none has a window."""
    thetas: tuple[float, ...] = ()
    """The base of the rotary frequencies, by layer; no entries where the frequencies are read from the files."""
    pool: Pool = "first"
    """What the head stands on, of a text."""
    head_bias: bool = True
    """Of its dense layer."""
    relative: RelativePositions | None = None
    projected_first: bool = False
    """Whether embeddings are projected before their norm, without a bias (DeBERTa); else after it, with one (ELECTRA)."""
    convolution: Convolution | None = None

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def max_positions(self) -> int:
        if self.positions == "relative":  # no table ends: far positions share a row
            return LONGEST
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
        shapes |= {"rel_q": (d, d), "rel_k": (d, d), "gate": (f, d), "up": (f, d), "down": (d, f)}
        apart = self.relative.terms if self.relative and not self.relative.shared else ()
        return tuple(
            LinearSpec(path, roles, sum(shapes[role][0] for role in roles), shapes[roles[0]][1])
            for path, roles in self.names.linears
            if roles[0] not in TERMS or TERMS[roles[0]] in apart
        )

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        names, d, e = self.names, self.hidden_size, self.embedding_size
        outside = [self._outside(EMBEDDING, f"{names.words}.weight", (self.vocab_size, e))]
        if self.positions == "learned":
            outside.append(self._outside(POSITIONS, f"{names.positions}.weight", (self.max_position_embeddings, e)))
        elif (
            self.positions == "rotary" and not self.thetas
        ):  # published ones are rounded through float16, and are to be read, not computed
            frequencies = self._outside(ROTARY, "rotary_embeddings.inv_freq", (self.head_dim // 2,), wide=True)
            outside.append(frequencies)
        if self.types:
            outside.append(self._outside(TYPES, f"{names.types}.weight", (self.types, e)))
        if self.embed_norm:
            outside += self._norm(EMBED_NORM, names.embed_norm, d if self.projected_first else e)
        if e != d:
            outside.append(self._outside(EMBED_PROJECTION, f"{names.embed_projection}.weight", (d, e)))
        if e != d and not self.projected_first:
            outside.append(self._outside(EMBED_PROJECTION, f"{names.embed_projection}.bias", (d,)))
        if self.norm_first:
            outside += self._norm(NORM, names.final_norm, d)
        if self.relative:
            outside.append(self._outside(RELATIVE, f"{names.relative}.weight", (2 * self.relative.half, d)))
        if self.relative and self.relative.normed:
            outside += self._norm(RELATIVE_NORM, names.relative_norm, d)
        if self.convolution:
            shapes = {"weight": (d, d, self.convolution.width), "bias": (d,)}
            outside += [
                self._outside(CONVOLUTION, f"{names.convolution}.{leaf}", shape) for leaf, shape in shapes.items()
            ]
            outside += self._norm(CONVOLUTION_NORM, names.convolution_norm, d)
        first = {names.attention_norm: int(not self.first_norm), names.mlp_norm: 0}
        stacked = [_inside(norm, leaf, (d,), layer) for norm, layer in first.items() for leaf in self._norm_leaves]
        for linear in self.linears:
            stacked.append(_inside(linear.path, "weight", linear.shape))
            if self.has_bias(linear):
                stacked.append(_inside(linear.path, "bias", linear.shape[:1]))
        return tuple(sorted(outside + stacked, key=lambda one: one.path))

    @property
    def _norm_leaves(self) -> tuple[str, ...]:
        return ("weight", "bias") if self.norm_bias else ("weight",)

    def has_bias(self, linear: LinearSpec) -> bool:
        return self.mlp_bias if linear.roles[0] in ("gate", "up", "down") else self.attention_bias

    def head(self, kind: Kind, outputs: int) -> HeadSpec:
        d, (dense, out) = self.hidden_size, self.names.head
        deviation = self.initializer_range
        if kind == "token" and not self.names.head_norm:
            return HeadSpec(kind, "each", (HeadPart("out", "classifier", (outputs, d)),), initializer_range=deviation)
        parts = [HeadPart("dense", dense, (d, d), self.head_bias), HeadPart("out", out, (outputs, d))]
        if self.names.head_norm:
            parts.insert(1, HeadPart("norm", self.names.head_norm, (d,), self.norm_bias))
        pool = self.pool if kind == "sequence" else "each"
        return HeadSpec(kind, pool, tuple(parts), self.names.head_activation, self.eps, deviation)

    def ignores(self, name: str) -> bool:
        name = name.removeprefix(f"{self.prefix}.")
        if name.startswith(self.names.beside) or name.endswith(("position_ids", "token_type_ids")):
            return True
        if self.positions == "learned":
            return name.endswith("rotary_embeddings.inv_freq")
        return bool(self.names.positions) and name == f"{self.names.positions}.weight"

    def canonical(self, name: str) -> str:
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        # transformers 5 holds the frequencies of rotary positions once, and writes that name with a star in place of a number.
        return re.sub(r"\bencoder\.layer\.(\d+|\*)\.attention\.self\.(?=rotary_embeddings\.inv_freq$)", "", name)

    def _norm(self, key: str, module: str, width: int) -> list[TensorSpec]:
        return [self._outside(key, f"{module}.{leaf}", (width,)) for leaf in self._norm_leaves]

    def _outside(self, key: str, name: str, shape: tuple[int, ...], *, wide: bool = False) -> TensorSpec:
        return TensorSpec((key, name.rpartition(".")[2]), f"{self.prefix}.{name}", shape, wide)


def _inside(module: str, leaf: str, shape: tuple[int, ...], first_layer: int = 0) -> TensorSpec:
    return TensorSpec((LAYERS, *module.split("."), leaf), f"{module}.{leaf}", shape, first_layer=first_layer)
