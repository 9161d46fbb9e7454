"""What the tests of a bilevel step share: execution settings, optimisers of each kind, batches, and products of trees."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny import CONFIG

from bidora_jax.models.compute import Compute
from bidora_jax.training.settings import OptimizerConfig

MODEL = Compute(remat="layer", attention_chunk=5, loss_chunk=7)
OPTIMIZERS = {
    "sgd": OptimizerConfig("sgd", 0.1, "constant", warmup=0.0, b1=0.0, clip=0.0),
    "momentum": OptimizerConfig("sgd", 0.1, "linear", b1=0.9, clip=0.0),
    "adamw": OptimizerConfig("adamw", 1e-3, "cosine", weight_decay=0.1, clip=0.1),
}


def batch(seed: int, micro: int, dtype=np.float64):
    """`micro` micro-batches of two records of eleven random tokens, about 0.6 of them trained."""
    random = np.random.default_rng(seed)
    tokens = random.integers(CONFIG.vocab_size, size=(micro, 2, 11), dtype=np.int32)
    return {"tokens": jnp.asarray(tokens), "loss_mask": jnp.asarray(random.random(tokens.shape) < 0.6, dtype)}


def dot(a, b):
    """Σ over leaves of ⟨a, b⟩."""
    return float(sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)))
