"""Settings of the two optimisers, of the two phases and of the samples: `inner.*`, `outer.*`, `search.*`, `retrain.*`,
`samples.*`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimizerConfig:
    """One level's optimiser."""

    optimizer: Literal["adamw", "adamw_8bit", "sgd"] = "adamw"
    """adamw; adamw_8bit: adamw with its moments stored in 8 bits, a quarter of the memory; sgd, with momentum b1."""
    learning_rate: float = 2e-4
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Decay to zero after the warmup."""
    warmup: float = 0.1
    """Share of the phase's steps over which the rate rises from zero."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip: float = 1.0
    """Largest global norm of a gradient; 0 switches clipping off."""
    b1: float = 0.9
    """Decay of the first moment (adamw, adamw_8bit), or momentum (sgd)."""
    b2: float = 0.999
    """Decay of the second moment (adamw, adamw_8bit)."""
    eps: float = 1e-8
    """Added to the root of the second moment. 1e-6 suits adamw_8bit, which reads small second moments as zero."""
    eps_root: float = 1e-16
    """Added under that root. Zero would make the hypergradient NaN at B = 0, where a second moment is exactly zero."""


@dataclass(frozen=True)
class SearchConfig:
    """First phase. bidora: direction on train, magnitude on val. lora, dora: the whole training."""

    epochs: float = 3.0
    """Passes over the training split; used when steps is 0."""
    steps: int = 0
    """Outer steps; 0 derives them from epochs."""
    lower_steps: int = 1
    """Direction steps in an outer step. Only the last one is unrolled in the hypergradient."""
    hypergradient: Literal["auto", "exact", "reverse", "finite-difference", "direct"] = "auto"
    """exact, which auto is: through the unrolled update, mixed product forward over reverse; reverse: the same quantity,
    reverse over reverse, in much more memory; finite-difference: as the BiDoRA reference does; direct: no second-order term."""
    splits: Literal["fixed", "rotate"] = "fixed"
    """rotate: folds of both splits take turns as the validation split, so that both levels see every record and never the same one
    in a step. The last step is kept: no record is left that a best one could be chosen by."""
    gram_penalty: float = 0.0
    """Weight γ of the penalty mean ‖D·Dᵀ − I‖_F on the direction's loss (1e-5 in the paper)."""
    metric: str = "auto"
    """What the best step has most or least of on the validation split: loss, or a metric of the task, such as accuracy, f1_macro,
    matthews, rmse, entity_f1. auto: the loss of a language model, else the task's first metric."""
    patience: int = 0
    """Stop after this many evaluations without a better one; 0 never stops early."""


@dataclass(frozen=True)
class RetrainConfig:
    """Second phase of bidora: the magnitude is fixed and the direction is trained on train and val together."""

    epochs: float = 3.0
    """Passes over both splits; used when steps is 0."""
    steps: int = 0
    """Optimiser steps; 0 derives them from epochs. epochs = 0 and steps = 0 leave the phase out."""
    start: Literal["scratch", "continue"] = "scratch"
    """scratch: a fresh direction, as in the paper; continue: the direction that the search found."""
    learning_rate: float = 0.0
    """Peak learning rate of the direction; 0 takes inner.learning_rate."""


@dataclass(frozen=True)
class OuterConfig(OptimizerConfig):
    """The magnitude's optimiser."""

    multiplier: float = 2.0
    """outer.learning_rate is inner.learning_rate times this, as long as nobody sets it."""


@dataclass(frozen=True)
class SamplesConfig:
    """Answers that are written while training goes on, to samples.jsonl and the report."""

    every: int = 0
    """Steps between two sets of answers to the same prompts, and one before the first step; 0 writes none."""
    prompts: tuple[str, ...] = ()
    """Instructions to answer, or beginnings of texts where the training records have no prompt. None: the first records of
    test_file, or of the validation split, or of the training split."""
    count: int = 3
    """Records to take as prompts where samples.prompts gives none."""
    max_new_tokens: int = 64
    """Tokens that an answer may have."""
    temperature: float = 0.0
    """0: always the most probable token; above: draws, with the run's seed."""
