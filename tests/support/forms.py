"""Weights in each quantised form, alone, in a stack and in a whole base; and stacks of 16-bit weights held as integers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bidora_jax.kernels import quantizers
from bidora_jax.kernels.xla_cpu.weights import Bits

SHAPE = (13, 11)  # 143 weights: an odd number, in two blocks and a part of one
FORMS = {
    "int8": quantizers.int8,
    "nf4": partial(quantizers.nf4, double=False),
    "nf4 nested": partial(quantizers.nf4, double=True),
}


def weights(form, count=3, dtype=jnp.float32, shape=SHAPE):
    """(one quantised weight each, their stack)."""
    random = np.random.default_rng(0)
    each = [FORMS[form](random.normal(size=shape).astype(dtype), dtype) for _ in range(count)]
    return each, jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *each)


def quantised(base, form):
    """The base with its linear layers in the form."""

    def leaf(path, weight):
        if path[0].key != "layers" or weight.ndim != 3:
            return weight
        each = [FORMS[form](np.asarray(layer), weight.dtype) for layer in weight]
        return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(part) for part in leaves]), *each)

    return jax.tree_util.tree_map_with_path(leaf, base)


def as_bits(base):
    """The 16-bit stacks of a base as they are loaded on a CPU."""

    def leaf(weight):
        return Bits(jax.lax.bitcast_convert_type(weight, jnp.uint16), weight.dtype) if weight.ndim == 3 else weight

    return {**base, "layers": jax.tree.map(leaf, base["layers"])}
