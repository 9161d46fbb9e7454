"""Random bases of a given shape, dense or quantised, and training steps over them. Codes and scales are drawn as such, on the
device, a layer at a time: a quantised base has no dense copy at any time, and drawing needs no memory as large as a stack.

    form         none | int8 | nf4 | nf4-nested          nf4-nested has its absmax in 8 bits: `model.double_quant`, the default

Weights have a standard deviation of 0.02 to 0.03, norms are 1. The values depend on the key, the shapes and the form only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bidora_jax.models import quantization
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.compute import Compute
from bidora_jax.models.settings import ModelConfig
from bidora_jax.training import objective, optim
from bidora_jax.training.bilevel import bilevel_step
from bidora_jax.training.settings import OptimizerConfig
from bidora_jax.training.state import init_state, init_train_state
from bidora_jax.training.step import train_step

Form = Literal["none", "int8", "nf4", "nf4-nested"]
FORMS: tuple[Form, ...] = get_args(Form)
DEVIATION = 0.02
SCALE = 0.03
"""absmax, times 0.5 to 1.5; of a nested one what is added to the offset, which is twice this."""
PIECES = 256
"""A leaf is made in at most so many pieces, of whole layers or rows."""


def stack_shapes(form: Form, shape: tuple[int, ...], dtype) -> PyTree:
    """Shapes of a weight (*L, O, I) in a form, to be used in `dtype`."""
    if form == "none":
        return jax.ShapeDtypeStruct(shape, np.dtype(dtype))
    kind = "int8" if form == "int8" else "nf4"
    return quantization.packed_shapes(quantization.Quantization(kind, form == "nf4-nested", ()), shape, dtype)


def base_shapes(config: DecoderConfig, form: Form, dtype) -> PyTree:
    """Shapes of a whole base as the loader makes it: quantised modules by default, 16-bit stacks on a CPU as integers."""
    settings = ModelConfig(quantization=form.removesuffix("-nested"), double_quant=form == "nf4-nested")
    return quantization.base_shapes(settings, config, dtype)


def random_like(shapes: PyTree, key: jax.Array) -> PyTree:
    """Arrays for a tree of the shapes above; every leaf has a key of its own."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    made = [
        _leaf(_kind(path, like), like.shape, like.dtype, jax.random.fold_in(key, number))
        for number, (path, like) in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, made)


def _kind(path, like) -> str:
    names = [getattr(part, "key", None) or getattr(part, "name", "") for part in path]
    if any("norm" in name for name in names):
        return "norm"
    return names[-1] if names and names[-1] in ("codes", "absmax", "offset", "bits") else "weight"


@partial(jax.jit, static_argnums=(0, 1, 2))
def _leaf(kind: str, shape: tuple[int, ...], dtype, key: jax.Array) -> jax.Array:
    if kind in ("norm", "offset"):
        return jnp.full(shape, 1.0 if kind == "norm" else 2 * SCALE, dtype)
    pieces = next(count for count in range(min(PIECES, shape[0]), 0, -1) if shape[0] % count == 0)
    piece = (shape[0] // pieces, *shape[1:])
    return jax.lax.map(lambda key: _drawn(kind, piece, dtype, key), jax.random.split(key, pieces)).reshape(shape)


def _drawn(kind: str, shape: tuple[int, ...], dtype, key: jax.Array) -> jax.Array:
    if kind == "absmax":
        return SCALE * jax.random.uniform(key, shape, dtype, 0.5, 1.5)
    if kind == "bits":
        return jax.lax.bitcast_convert_type(_drawn("weight", shape, jnp.bfloat16, key), dtype)
    if kind == "weight":
        return (DEVIATION * jax.random.normal(key, shape, jnp.float32)).astype(dtype)
    codes = jax.random.bits(key, shape, jnp.uint8)
    return codes if dtype == jnp.uint8 else jnp.maximum(jax.lax.bitcast_convert_type(codes, jnp.int8), -127)


@dataclass(frozen=True)
class Problem:
    """The training step of a random model, and what it takes. One micro-batch of one text on each level."""

    method: str
    form: Form
    config: DecoderConfig
    tokens: int

    @property
    def adapter(self) -> adapters.Adapter:
        return adapters.resolve(AdapterConfig(method=self.method), self.config)

    def base_shapes(self):
        return base_shapes(self.config, self.form, jnp.bfloat16)

    def arguments(self, base, key):
        """(state, prepared base, batch or batches)."""
        tx = optim.transformation(OptimizerConfig(), 100)
        base = initial.prepare_base(base, self.adapter)
        direction, magnitude = initial.init(self.adapter, base, jax.random.fold_in(key, 0))
        train, val = (self._batch(jax.random.fold_in(key, number)) for number in (1, 2))
        if self.method != "bidora":
            return init_train_state((direction, magnitude), tx, key), base, train
        return init_state(direction, magnitude, tx, tx, key), base, train, val

    def step(self) -> Callable:
        tx = optim.transformation(OptimizerConfig(), 100)
        inner, outer = (
            level(self.config, self.adapter, Compute(remat="layer"))
            for level in (objective.inner_loss, objective.outer_loss)
        )
        if self.method != "bidora":
            return partial(train_step, loss=lambda params, *rest: inner(*params, *rest), tx=tx)
        return partial(bilevel_step, inner_loss=inner, outer_loss=outer, inner_tx=tx, outer_tx=tx)

    def _batch(self, key) -> dict[str, jax.Array]:
        shape = (1, 1, self.tokens)
        tokens = jax.random.randint(key, shape, 0, self.config.vocab_size, jnp.int32)
        return {"tokens": tokens, "loss_mask": jnp.ones(shape, jnp.float32)}
