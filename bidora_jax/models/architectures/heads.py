"""Heads of classification as data: what stands on the last hidden states x (T, D) of a text, and under which names. No JAX.

    x → pool → dense → activation → norm → out                         the parts that a family has, in this order

    sequence    BERT            first, tanh of bert.pooler.dense, classifier
                RoBERTa, ESM    first, tanh of classifier.dense, classifier.out_proj        ELECTRA: gelu
                DistilBERT      first, relu of pre_classifier, classifier
                ModernBERT      first or mean, norm of the activation of head.dense, classifier
                DeBERTa         first, gelu of pooler.dense, classifier
                decoders        last, score without a bias
    token       each token: classifier, or score; ModernBERT with head.dense and head.norm before it

PEFT trains the modules `classifier` and `score` whole, and every module whose name ends so. Such a part is trained here too. Another
part is trained where the model's folder lacks it, as it is then drawn at random, and is frozen where the folder has it.
"""

from dataclasses import dataclass
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

    @property
    def saved_by_peft(self) -> bool:
        """Whether PEFT trains it whole without being asked: it looks for names that end with one of `TRAINED_BY_PEFT`, with or
        without a dot before it."""
        modules = self.module.split(".")
        return any(name.endswith(TRAINED_BY_PEFT) for name in modules)


@dataclass(frozen=True)
class HeadSpec:
    """A head on hidden states of width D, with C outputs."""

    pool: Pool
    parts: tuple[HeadPart, ...]
    """In the order of use; the last one is 'out'."""
    activation: Activation | None = None
    """After dense."""
    eps: float = 1e-5
    """Of norm."""
    initializer_range: float = 0.02
    """Standard deviation of the weights that the folder lacks; their biases start at 0, a norm's weight at 1."""

    @property
    def outputs(self) -> int:
        return self.parts[-1].shape[0]
