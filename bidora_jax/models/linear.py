"""The one linear layer of the package, and the only place that asks whether a layer is adapted or quantised.

    y = gain ⊙ (x·W0ᵀ + s·(x·Aᵀ)·Bᵀ) + bias          see kernels/dora.py; W0 opened by kernels/quant.py

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

from bidora_jax.kernels import dora, gains, lowrank, products, quant, records
from bidora_jax.kernels.products import KEPT, wide
from bidora_jax.models.adapters import Adapted

SUMS, TAPS, COTANGENTS = "sums", "taps", "cotangents"
"""Collections of what is written down of a layer's products and read by another pass, see models/recorded.py."""
NORMS = "norms"
"""The collection of the norms ‖V‖ that are held constant: with a layer's norm known, W0·Aᵀ is not made again."""
ROUNDED = "rounded"
"""A collection of nothing. A pass that may write it goes on with its sums as they are kept, rounded to the dtype of x."""


def tapped(module: nn.Module, name: str, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """x, the input of linear layers: the sum of their cotangents is what they hand back."""
    if module.has_variable(COTANGENTS, name):
        return records.foretold(x, module.get_variable(COTANGENTS, name))
    if module.is_mutable_collection(TAPS) and not module.is_initializing():
        module.put_variable(TAPS, name, x)
    return records.tapped(x, module.get_variable(TAPS, name)) if module.has_variable(TAPS, name) else x


def written_down(
    module: nn.Module, y: Float[Array, "*n"], dtype, name: str, gain: Float[Array, "*N O"] | None = None
) -> Float[Array, "*n"]:
    """y, or gain ⊙ y, as `gains.kept` has it: written down in a pass that asks for SUMS, taken from them in one given them."""
    z = gains.kept(y, dtype, name, gain)
    if module.is_initializing():
        return z
    if module.is_mutable_collection(ROUNDED):
        narrow = jnp.finfo(dtype)
        z = jax.lax.reduce_precision(z, narrow.nexp, narrow.nmant)
        # Of what it is rounded to, as in a pass that is given it.
        z = z if gain is None else gains.known(z, y, gain)
    written = module.is_mutable_collection(SUMS)
    if module.has_variable(SUMS, name):
        value = module.get_variable(SUMS, name)
        if not written:
            # The derivative in reverse of gain ⊙ y is not this one's, but that of `gains.gained`.
            z = records.restored(value, z) if gain is None else value
        else:
            z = records.known(value, z) if gain is None else gains.known(value, y, gain)
    if written:
        module.put_variable(SUMS, name, z)
    return z


def norm_written_down(module: nn.Module, norm: Float[Array, " O"]) -> Float[Array, " O"]:
    """The norm, a constant: written down in a pass that asks for NORMS, and taken from them in one given them."""
    norm = module.get_variable(NORMS, "norm") if module.has_variable(NORMS, "norm") else norm
    if module.is_mutable_collection(NORMS) and not module.is_initializing():
        module.put_variable(NORMS, "norm", norm)
    return norm


class Linear(nn.Module):
    """Frozen weight (O, I), optional bias, and the adapter's factors when `adapter` is given."""

    in_features: int
    out_features: int
    use_bias: bool = False
    adapter: Adapted | None = None
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
        if self.reopen and isinstance(weight, quant.Layer):
            # What is kept for the backward pass is the sums, not the matrix.
            kept = jax.checkpoint_policies.save_only_these_names(KEPT)
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
        if a is None or a.ndim > 2 or self.adapter is None or self.adapter.subtracts:
            return None
        return None if self.adapter.dropout and self.has_rng("dropout") else a

    def _start(self, dtype) -> dora.Direction | None:
        """The factors that are taken off, for starts away from zero."""
        if self.adapter is None or not self.adapter.subtracts:
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
    projected = products.product(x.reshape(-1, x.shape[-1]), jnp.concatenate(factors))
    return [layer(x, part) for layer, part in zip(layers, jnp.split(projected, ends[:-1], axis=-1), strict=True)]


def _product(
    adapter: Adapted | None, keep, keep_norm, x, weight: quant.Weight, direction: dora.Direction | None = None,
    magnitude=None, dropped=None, own_scale: Any = None, start: dora.Direction | None = None, projected=None,
):  # fmt: skip
    w0, row_scale = quant.opened(weight)
    w0 = w0.astype(x.dtype)
    if adapter is None or direction is None:
        return dora.linear(x, w0, row_scale=row_scale, keep=keep)
    scale = own_scale if adapter.scale is None else adapter.scale
    direction = direction if start is None else lowrank.since(direction, start)
    gain = magnitude
    if isinstance(magnitude, tuple):
        gain = _gain(adapter, w0, row_scale, direction, scale, *magnitude, keep_norm=keep_norm)
    return dora.apply(
        x, w0, direction, gain, scale=scale, x_low_rank=dropped, projected=projected, row_scale=row_scale, keep=keep
    )


def _gain(
    adapter: Adapted, w0, row_scale, direction: dora.Direction, scale: dora.Scale, m, norm_sq, *, keep_norm=jnp.asarray
):
    norm = dora.row_norm(w0, norm_sq, direction, scale=scale, row_scale=row_scale)
    if adapter.constant_norm:
        # It drops out of the direction's gradient: DoRA section 4.3.
        norm = keep_norm(jax.lax.stop_gradient(norm))
    gain = dora.gain(m, norm)
    return gain if adapter.scale is not None else jnp.where(scale == 0, 1.0, gain)


def row_gain(
    adapter: Adapted,
    weight: quant.Weight,
    direction: dora.Direction,
    scale: dora.Scale,
    m: Float[Array, " O"],
    norm_sq: Float[Array, " O"],
) -> Float[Array, " O"]:
    """m/‖V‖ as the layer computes it in every pass. It hangs on no input, so what trains nothing can compute it once.

    `direction` is the change since the start, where that is not zero.
    """
    return _gain(adapter, *quant.opened(weight), direction, scale, m, norm_sq)
