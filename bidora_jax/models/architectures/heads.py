"""Heads of classification as data: what stands on the last hidden states x (T, D) of a text, and under which names. No JAX.

    x → pool → dense → activation → norm → out                         the parts that a family has, in this order

    sequence    BERT            first, tanh of bert.pooler.dense, classifier
                RoBERTa, ESM    first, tanh of classifier.dense, classifier.out_proj        ELECTRA: gelu
                DistilBERT      first, relu of pre_classifier, classifier
                ModernBERT      first or mean, norm of the activation of head.dense, classifier
                DeBERTa         first, gelu of pooler.dense, classifier
                decoders        last, score without a bias
    token       each token: classifier, or score; ModernBERT with head.dense and head.norm before it

PEFT trains the modules `classifier` and `score` whole, and every module whose name ends so. Such a part is trained here too.
Another part is trained where the model's folder lacks it, as it is then drawn at random, and is frozen where the folder has it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

HEAD_TREE = "head"
"""Key of the head in the base tree (frozen parts) and in the direction (trained parts): {part: {'weight': …, 'bias': …}}."""

Kind = Literal["sequence", "token"]
Pool = Literal["first", "mean", "last", "each"]
"""The hidden state that stands for a text: of its first token, the mean of all, of its last token; or each token for itself."""
Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]
PartName = Literal["dense", "norm", "out"]
TRAINED_BY_PEFT = ("classifier", "score")


@dataclass(frozen=True)
class HeadPart:
    """One module of a head."""

    name: PartName
    """Its key in the tree."""
    module: str
    """Its Hugging Face name, such as 'bert.pooler.dense'."""
    shape: tuple[int, ...]
    """Of its weight: (O, I), or (D,) of a norm."""
    bias: bool = True

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes by leaf."""
        return {"weight": self.shape} | ({"bias": self.shape[:1]} if self.bias else {})

    def is_named(self, names: Collection[str]) -> bool:
        """Whether one of PEFT's `modules_to_save` names it, or the module that it stands in: those whose full name ends so, with or
        without a dot before it."""
        above = accumulate(self.module.split("."), lambda outer, name: f"{outer}.{name}")
        return any(module.endswith(tuple(names)) for module in above)

    @property
    def saved_as(self) -> str:
        """The name for `modules_to_save`: of the module that it stands in where there is one."""
        return self.module.split(".")[-2:][0]


@dataclass(frozen=True)
class TrainedHead:
    """The parts of a head that are trained, in float32, with the direction."""

    kind: Kind
    parts: tuple[HeadPart, ...]
    initializer_range: float = 0.02

    @property
    def modules_to_save(self) -> tuple[str, ...]:
        """As PEFT writes them: what is saved besides, and the two names that it adds itself."""
        others = (part.saved_as for part in self.parts if not part.is_named(TRAINED_BY_PEFT))
        return (*dict.fromkeys(others), *TRAINED_BY_PEFT)


@dataclass(frozen=True)
class HeadSpec:
    """A head on hidden states of width D, with C outputs."""

    kind: Kind
    pool: Pool
    parts: tuple[HeadPart, ...]
    """In the order of use; the last one is 'out'."""
    activation: Activation | None = None
    """After dense."""
    eps: float = 1e-5
    """Of norm."""
    initializer_range: float = 0.02
    """Standard deviation of the weights that the folder lacks; their biases start at 0, a norm's weight at 1."""

    def trained(self, present: Collection[PartName], modules_to_save: Collection[str] = ()) -> TrainedHead:
        """The parts that are trained where the model's folder has those that are `present`."""
        names = (*TRAINED_BY_PEFT, *modules_to_save)
        parts = tuple(part for part in self.parts if part.name not in present or part.is_named(names))
        return TrainedHead(self.kind, parts, self.initializer_range)

    @property
    def outputs(self) -> int:
        return self.parts[-1].shape[0]
