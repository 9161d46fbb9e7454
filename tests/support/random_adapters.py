"""Adapters of every kind on the tiny model, random in all that is trained, so that none is neutral."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny import CONFIG, noisy, random_base

from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import AdapterConfig

KINDS = {
    "lora": AdapterConfig(method="lora", rank=5, alpha=7.0),
    "narrow": AdapterConfig(method="lora", rank=2, alpha=3.0, rslora=True, target_modules=("q_proj", "down_proj")),
    "dora": AdapterConfig(method="dora", rank=3, alpha=7.0, target_modules=("v_proj", "down_proj")),
    "bidora": AdapterConfig(method="bidora", rank=4, alpha=2.5),
    "uneven": AdapterConfig(method="bidora", rank=3, alpha=5.0, rank_pattern=(("0.self_attn.q_proj", 7), ("1.*down_proj", 0)),
                            alpha_pattern=(("1.*v_proj", 2.0),)),
    "one layer": AdapterConfig(method="lora", rank=2, alpha=3.0, layers_to_transform=(1,)),
    "pissa": AdapterConfig(method="dora", rank=3, alpha=7.0, init="pissa", rank_pattern=(("1.*up_proj", 2),)),
    "olora": AdapterConfig(method="lora", rank=4, alpha=5.0, init="olora", target_modules=("k_proj", "down_proj")),
}  # fmt: skip


def random_adapter(settings, config=CONFIG, base=None):
    """(adapter, direction, magnitude) of which nothing is zero."""
    adapter = adapters.resolve(settings, config)
    base = initial.prepare_base(random_base(config) if base is None else base, adapter)
    direction, magnitude = initial.init(adapter, base, jax.random.key(0))
    return adapter, *noisy(adapter, direction, magnitude)


def prepared(settings: AdapterConfig, base):
    """(adapter, base prepared for it, direction, magnitude)."""
    adapter = adapters.resolve(settings, CONFIG)
    base = initial.prepare_base(base, adapter)
    return adapter, base, *noisy(adapter, *initial.init(adapter, base, jax.random.key(2)))


def adapted(method: str = "bidora", dtype=jnp.float32, **settings):
    """A base with a random, not neutral, adapter on it."""
    adapter = adapters.resolve(AdapterConfig(method=method, rank=3, **settings), CONFIG)
    base = initial.prepare_base(random_base(dtype=dtype), adapter)
    direction, magnitude = initial.init(adapter, base, jax.random.key(0))
    random = np.random.default_rng(5)
    direction = jax.tree.map(lambda leaf: leaf + 0.1 * random.normal(size=leaf.shape).astype(np.float32), direction)
    magnitude = jax.tree.map(lambda leaf: leaf * random.uniform(0.8, 1.2, leaf.shape).astype(np.float32), magnitude)
    return adapter, base, direction, magnitude
