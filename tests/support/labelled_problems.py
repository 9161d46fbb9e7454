"""Random texts with random labels, and a small model with a head for them."""

import encoders
import jax
import jax.numpy as jnp
import numpy as np
import tiny
from forms import quantised

from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.tasks.classification import Classification

CONFIG = tiny.CONFIG.without_output()


def labelled(type, classes, seed, *, micro=1, packed=False, rows=2, columns=13, vocabulary=CONFIG.vocab_size):
    """Random texts of several lengths with random labels; packed rows hold two of them, and one of them an empty slot."""
    random = np.random.default_rng(seed)
    lengths = random.integers(5, columns + 1, size=(micro, rows))
    column = np.arange(columns)
    segments = (column < lengths[..., None]).astype(np.int32)
    if packed:
        segments = np.where(column < 5, 1, 2) * segments
        segments[:, -1] = np.minimum(segments[:, -1], 1)
    batch = {"tokens": random.integers(vocabulary, size=segments.shape, dtype=np.int32)}
    batch |= {"segments": segments} if packed else {"lengths": lengths.astype(np.int32)}
    if type == "tokens":
        tags = np.where(random.random(segments.shape) < 0.7, random.integers(classes, size=segments.shape), -1)
        return {**batch, "labels": np.where(segments > 0, tags, -1).astype(np.int32)}
    slots = 2 if packed else 1
    weights = np.stack([(segments == slot + 1).any(-1) for slot in range(slots)], -1).astype(np.float32)
    if type == "classification":
        labels = np.eye(classes)[random.integers(classes, size=weights.shape)]
    elif type == "multilabel":
        labels = random.integers(2, size=(*weights.shape, classes)).astype(float)
    else:
        labels = random.normal(size=(*weights.shape, classes))
    return {**batch, "labels": labels.astype(np.float32), "weights": weights}


def problem(type, dtype=jnp.float64, classes=3, weights=None, config=CONFIG, form=None, **settings):
    head = config.head("token" if type == "tokens" else "sequence", classes)
    settings = {"rank": 3, "target_modules": ("q_proj", "down_proj"), **settings}
    adapter = adapters.resolve(AdapterConfig(**settings), config, head=head)
    base = (tiny if config == CONFIG else encoders).random_base(config, dtype=dtype)
    base = initial.prepare_base(base if form is None else quantised(base, form), adapter)
    direction, magnitude = initial.init(adapter, base, jax.random.key(0))
    direction = jax.tree.map(lambda leaf: leaf.astype(dtype), direction)
    return Classification(type, head, weights), adapter, base, direction, magnitude
