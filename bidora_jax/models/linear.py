"""The one linear layer of the package, and the only place that asks whether a layer is adapted or quantised.

    y = gain ⊙ (x·W0ᵀ + s·(x·Aᵀ)·Bᵀ) + bias          see kernels/dora.py; W0 opened by kernels/quantized.py

Its variables live in three collections, which are the three parameter groups: 'base' (frozen), 'direction' (A, B) and
'magnitude' (m). Dropout acts on the input of A only, and only where a 'dropout' key is given. The weight is opened once a
pass, for the product and the norm, and used in the dtype of x.
"""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bidora_jax.kernels import dora, lora_init, matmul, quantized
from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.save_for_backward import SAVED
from bidora_jax.models.adapters.adapter import LayerAdapter
from bidora_jax.models.tape import norm_written_down, written_down


class Linear(nn.Module):
    """Frozen weight (O, I), optional bias, and the adapter's factors when `adapter` is given."""

    in_features: int
    out_features: int
    use_bias: bool = False
    adapter: LayerAdapter | None = None
    reopen: bool = False
    """Open a packed weight anew in the backward pass rather than keep it. A layer that is itself recomputed does so anyway."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch I"], projected: Float[Array, "M r"] | None = None
    ) -> Float[Array, "*batch O"]:
        """`projected` is x·Aᵀ where it has been computed already, see `side_by_side`."""
        shape = (self.out_features, self.in_features)
        weight = self.variable("base", "weight", jnp.zeros, shape, x.dtype).value
        adapter = self.adapter
        trained: list[Any] = []
        if adapter is not None:
            trained = [
                self._direction(x.dtype), self._magnitude(x.dtype), self._dropout(x, adapter.dropout),
                self._scale(x.dtype), self._start(x.dtype),
            ]  # fmt: skip
        product = partial(_product, adapter, partial(written_down, self), partial(norm_written_down, self))
        if self.reopen and isinstance(weight, quantized.Layer):
            # What is kept for the backward pass is the sums, not the matrix.
            kept = jax.checkpoint_policies.save_only_these_names(SAVED)
            product = jax.checkpoint(product, policy=kept, prevent_cse=False)
        y = product(x, weight, *trained, projected=projected)
        if self.use_bias:
            bias = self.variable("base", "bias", jnp.zeros, (self.out_features,), x.dtype).value
            y = y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
        return y

    def _direction(self, dtype) -> dora.Direction:
        dtype, rank = wide(dtype), self.adapter.rank if self.adapter else 0
        a = self.variable("direction", "A", jnp.zeros, (rank, self.in_features), dtype).value
        b = self.variable("direction", "B", jnp.zeros, (self.out_features, rank), dtype).value
        return dora.Direction(a, b)

    def shared_factor(self) -> Float[Array, "r I"] | None:
        """A where it meets x itself, with nothing to do before: with dropout, a start or several adapters there is."""
        a = self.get_variable("direction", "A") if self.has_variable("direction", "A") else None
        if a is None or a.ndim > 2 or self.adapter is None or self.adapter.starts_nonzero:
            return None
        return None if self.adapter.dropout and self.has_rng("dropout") else a

    def _start(self, dtype) -> dora.Direction | None:
        """The factors that are taken off, for starts away from zero."""
        if self.adapter is None or not self.adapter.starts_nonzero:
            return None
        dtype, rank = wide(dtype), self.adapter.rank
        shapes = {"A0": (rank, self.in_features), "B0": (self.out_features, rank)}
        return dora.Direction(*(self.variable("base", name, jnp.zeros, s, dtype).value for name, s in shapes.items()))

    def _magnitude(self, dtype):
        """(m, ‖W0‖²), the gain alone where it was computed beforehand, or None for a method without magnitude."""
        if self.adapter is None or not self.adapter.magnitude:
            return None
        if self.has_variable("magnitude", "gain"):
            return self.get_variable("magnitude", "gain")
        names, shape = (("magnitude", "m"), ("base", "norm_sq")), (self.out_features,)
        return tuple(self.variable(group, name, jnp.zeros, shape, wide(dtype)).value for group, name in names)

    def _scale(self, dtype):
        """The scale of this layer where layers differ in it, or None. 0 says that this layer is not adapted."""
        if self.adapter is None or self.adapter.scale is not None:
            return None
        return self.variable("base", "scale", jnp.zeros, (), wide(dtype)).value

    def _dropout(self, x, rate: float):
        if not rate or not self.has_rng("dropout"):
            return None
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, x.shape)
        return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def side_by_side(layers: Sequence[Linear], x: Float[Array, "*batch I"]) -> list[Float[Array, "*batch _"]]:
    """What linear layers make of the same x. Their products with A are one, x·[A; A'; …]ᵀ, and so are the derivatives of those."""
    factors = [a for layer in layers if (a := layer.shared_factor()) is not None]
    if len(factors) < len(layers):
        return [layer(x) for layer in layers]
    ends = list(accumulate(len(factor) for factor in factors))
    projected = matmul.product(x.reshape(-1, x.shape[-1]), jnp.concatenate(factors))
    return [layer(x, part) for layer, part in zip(layers, jnp.split(projected, ends[:-1], axis=-1), strict=True)]


def _product(
    adapter: LayerAdapter | None, keep, keep_norm, x, weight: quantized.Weight, direction: dora.Direction | None = None,
    magnitude=None, dropped=None, own_scale: Any = None, start: dora.Direction | None = None, projected=None,
):  # fmt: skip
    w0, row_scale = quantized.opened(weight)
    w0 = w0.astype(x.dtype)
    if adapter is None or direction is None:
        return dora.linear(x, w0, row_scale=row_scale, keep=keep)
    scale = own_scale if adapter.scale is None else adapter.scale
    direction = direction if start is None else lora_init.change_since(direction, start)
    gain = magnitude
    if isinstance(magnitude, tuple):
        gain = _gain(adapter, w0, row_scale, direction, scale, *magnitude, keep_norm=keep_norm)
    return dora.apply(
        x, w0, direction, gain, scale=scale, x_low_rank=dropped, projected=projected, row_scale=row_scale, keep=keep
    )


def _gain(
    adapter: LayerAdapter,
    w0,
    row_scale,
    direction: dora.Direction,
    scale: dora.Scale,
    m,
    norm_sq,
    *,
    keep_norm=jnp.asarray,
):
    norm = dora.row_norm(w0, norm_sq, direction, scale=scale, row_scale=row_scale)
    if adapter.constant_norm:
        # It drops out of the direction's gradient: DoRA section 4.3.
        norm = keep_norm(jax.lax.stop_gradient(norm))
    gain = dora.gain(m, norm)
    return gain if adapter.scale is not None else jnp.where(scale == 0, 1.0, gain)


def row_gain(
    adapter: LayerAdapter,
    weight: quantized.Weight,
    direction: dora.Direction,
    scale: dora.Scale,
    m: Float[Array, " O"],
    norm_sq: Float[Array, " O"],
) -> Float[Array, " O"]:
    """m/‖V‖ as the layer computes it in every pass. It hangs on no input, so what trains nothing can compute it once.

    `direction` is the change since the start, where that is not zero.
    """
    return _gain(adapter, *quantized.opened(weight), direction, scale, m, norm_sq)
