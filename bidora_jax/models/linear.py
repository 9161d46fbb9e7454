"""The one linear layer of the package, and the only place that asks whether a layer is adapted.

    y = gain ⊙ (x·W0ᵀ + s·(x·Aᵀ)·Bᵀ) + bias          see kernels/dora.py

Its variables live in three collections, which are the three parameter groups: 'base' (frozen), 'direction' (A, B) and
'magnitude' (m). Dropout acts on the input of A only, and only where a 'dropout' key is given.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bidora_jax.kernels import dora
from bidora_jax.models.adapters import Adapter


class Linear(nn.Module):
    """Frozen weight (O, I), optional bias, and the adapter's factors when `adapter` is given."""

    in_features: int
    out_features: int
    use_bias: bool = False
    adapter: Adapter | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        shape = (self.out_features, self.in_features)
        weight = self.variable("base", "weight", jnp.zeros, shape, x.dtype).value
        adapter = self.adapter
        y = dora.frozen_dot(x, weight).astype(x.dtype) if adapter is None else self._adapted(x, weight, adapter)
        if self.use_bias:
            bias = self.variable("base", "bias", jnp.zeros, (self.out_features,), x.dtype).value
            y = y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
        return y

    def _adapted(self, x, weight, adapter: Adapter):
        dtype, rank = dora.wide(x.dtype), adapter.rank
        a = self.variable("direction", "A", jnp.zeros, (rank, self.in_features), dtype).value
        b = self.variable("direction", "B", jnp.zeros, (self.out_features, rank), dtype).value
        direction = dora.Direction(a, b)
        gain = self._gain(weight, direction, adapter) if adapter.magnitude else None
        dropped = self._dropout(x, adapter.dropout)
        return dora.apply(x, weight, direction, gain, scale=adapter.scale, x_low_rank=dropped)

    def _gain(self, weight, direction, adapter: Adapter):
        dtype = dora.wide(weight.dtype)
        norm_sq = self.variable("base", "norm_sq", jnp.zeros, (self.out_features,), dtype).value
        m = self.variable("magnitude", "m", jnp.zeros, (self.out_features,), dtype).value
        norm = dora.row_norm(weight, norm_sq, direction, scale=adapter.scale)
        # Held constant, the norm drops out of the direction's gradient: DoRA section 4.3.
        return dora.gain(m, jax.lax.stop_gradient(norm) if adapter.constant_norm else norm)

    def _dropout(self, x, rate: float):
        if not rate or not self.has_rng("dropout"):
            return x
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, x.shape)
        return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))
