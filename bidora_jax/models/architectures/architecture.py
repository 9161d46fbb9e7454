"""What the package may ask of a model: the names, shapes and roles of its weights. No JAX.

Adapters, file formats, quantisation, planning and generation know a model through `Architecture` alone. Its weights form one
tree, the base, whose outer keys are the same for every family:

    base = {'embed_tokens': {'weight': (V, D)}, 'layers': {…}, 'lm_head': {'weight': (V, D)}, …}

A leaf below 'layers' stacks the tensors of all layers on a leading axis, and its path is the Hugging Face name inside a layer.
A leaf outside has the path that the architecture gives it. Tied embeddings have no 'lm_head', and neither has a model without
an output over the vocabulary. `name_table` translates every Hugging Face name into such a path; it is read in both directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from bidora_jax.models.architectures.heads import HeadSpec, Kind

EMBEDDING, HEAD, LAYERS = "embed_tokens", "lm_head", "layers"
"""Keys of the base tree: the input embedding, the output embedding, the stacked layers."""

Role = Literal["q", "k", "v", "o", "rel_q", "rel_k", "gate", "up", "down"]
"""What a linear layer computes: a projection of the attention, of relative positions in it (DeBERTa-v2), or one of the MLP."""
ATTENTION_ROLES: tuple[Role, ...] = ("q", "k", "v", "o")
ROLE_NAMES: dict[str, Role] = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
}
"""Names of linear layers that mean their role in a model which has no module of that name: q_proj is BERT's query."""


@dataclass(frozen=True)
class LinearSpec:
    """One linear layer of every layer of the model."""

    path: str
    """Path inside a layer, such as 'self_attn.q_proj'."""
    roles: tuple[Role, ...]
    """One role, or several where one matrix holds several projections."""
    out_features: int
    in_features: int

    @property
    def name(self) -> str:
        """The last part of the path, such as 'q_proj'."""
        return self.path.rpartition(".")[2]

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)"""
        return self.out_features, self.in_features


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the model, or one tensor of every layer."""

    path: tuple[str, ...]
    """Its leaf in the base tree."""
    name: str
    """Its Hugging Face name; of a stacked tensor, the name inside a layer."""
    shape: tuple[int, ...]
    """Its shape; of a stacked tensor, the shape in one layer."""
    wide: bool = False
    """Whether it is held in float32 at least, whatever the dtype of the model."""
    first_layer: int = 0
    """Of a stacked norm: the layers before this one have none. Their slices are ones, which nothing uses."""

    @property
    def stacked(self) -> bool:
        return self.path[0] == LAYERS

    @property
    def module(self) -> str:
        """The Hugging Face name of the module that the tensor is a parameter of."""
        return self.name.rpartition(".")[0]


@runtime_checkable
class Architecture(Protocol):
    """A model as data. An implementation is a frozen dataclass, so that a jitted function can take it as static."""

    @property
    def num_layers(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def max_positions(self) -> int:
        """The longest sequence, in tokens."""
        ...

    @property
    def num_heads(self) -> int: ...

    @property
    def num_kv_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def window(self) -> int | None:
        """Tokens that a position attends to, its own included; None: no limit."""
        ...

    @property
    def types(self) -> int:
        """Rows of the table of token types; 0 of a model that has none."""
        ...

    @property
    def tied(self) -> bool:
        """Whether the input embedding is the output embedding too."""
        ...

    def untied(self) -> "Architecture":
        """This architecture with an output embedding of its own, where it has one at all."""
        ...

    def without_output(self) -> "Architecture":
        """The model inside a classifier: without an output over the vocabulary."""
        ...

    @property
    def prefix(self) -> str:
        """The Hugging Face name of the model inside one with a head, such as 'model' or 'bert'. Files that hold that model alone
        leave it out."""
        ...

    @property
    def layer_prefix(self) -> str:
        """The Hugging Face name of the list of layers, such as 'model.layers'."""
        ...

    @property
    def linears(self) -> tuple[LinearSpec, ...]:
        """The linear layers of a layer that can be adapted and quantised, in the order that they are listed in."""
        ...

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every tensor of the base tree, in the order of their paths."""
        ...

    def head(self, kind: Kind, outputs: int) -> HeadSpec:
        """The head of classification that transformers puts on this model, with so many outputs."""
        ...

    def ignores(self, name: str) -> bool:
        """Whether a checkpoint may hold a tensor of this name that is no part of the base tree: of a head, of the output that
        pretraining used, a buffer. With the prefix or without."""
        ...

    def canonical(self, name: str) -> str:
        """The name of a checkpoint's tensor as `tensors` spells it, of one that older files spell otherwise. They may hold a tensor
        that all layers share once for each of them."""
        ...


class Place(NamedTuple):
    """Where a checkpoint tensor lives: a leaf of the base tree, and the layer when that leaf is stacked."""

    path: tuple[str, ...]
    layer: int | None


def name_table(architecture: Architecture) -> dict[str, Place]:
    """Every tensor of the model by its Hugging Face name: those outside the layers, then layer after layer."""
    table = {one.name: Place(one.path, None) for one in architecture.tensors if not one.stacked}
    stacked = [one for one in architecture.tensors if one.stacked]
    for layer in range(architecture.num_layers):
        here = [one for one in stacked if layer >= one.first_layer]
        table |= {module_name(architecture, layer, one.name): Place(one.path, layer) for one in here}
    return table


def module_name(architecture: Architecture, layer: int, path: str) -> str:
    """The Hugging Face name of the module, or the tensor, that has this path inside a layer."""
    return f"{architecture.layer_prefix}.{layer}.{path}"


def linear_shapes(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """(O, I) of every linear layer, by its path inside a layer."""
    return {linear.path: linear.shape for linear in architecture.linears}


def linear_names(architecture: Architecture) -> tuple[str, ...]:
    """The last parts of the paths of the linear layers, each once."""
    return tuple(dict.fromkeys(linear.name for linear in architecture.linears))


def embeddings(architecture: Architecture) -> dict[str, TensorSpec]:
    """The weights of the input and the output embedding by key of the base tree, as they are where the two are not tied.

    These are the modules outside the layers that can be trained whole and quantised.
    """
    specs = {one.path: one for one in architecture.untied().tensors}
    return {key: specs[key, "weight"] for key in (EMBEDDING, HEAD) if (key, "weight") in specs}


def by_role(architecture: Architecture, names: Sequence[str]) -> tuple[str, ...]:
    """The names, with those of `ROLE_NAMES` that no linear layer has replaced by `endings` of the layers of that role. A role that
    the model lacks, such as the gate of an MLP without one, means no layer."""
    own, found = linear_names(architecture), []
    for name in names:
        if name in own or name not in ROLE_NAMES:
            found.append(name)
            continue
        paths = [linear.path for linear in architecture.linears if ROLE_NAMES[name] in linear.roles]
        found += [ending for path in paths for ending in endings(architecture, path)]
    return tuple(dict.fromkeys(found))


def endings(architecture: Architecture, path: str) -> tuple[str, ...]:
    """Names that select a linear layer in every layer of the model and no other module, by PEFT's rule: a name selects the
    module of that name and those whose name ends with a dot and it.

    One name, the shortest ending of the path that selects nothing else; or, where each ending selects another module too,
    the full name in each layer.
    """
    outside = {one.module for one in architecture.untied().tensors if not one.stacked}
    others = {linear.path for linear in architecture.linears if linear.path != path} | outside
    parts = path.split(".")
    for start in reversed(range(len(parts))):
        ending = ".".join(parts[start:])
        if not any(f".{other}".endswith(f".{ending}") for other in others):
            return (ending,)
    return tuple(module_name(architecture, layer, path) for layer in range(architecture.num_layers))
