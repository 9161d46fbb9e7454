"""The one linear layer of the package, and the only place that asks whether a layer is adapted or quantised.

    y = gain ⊙ (x·W0ᵀ + s·(x·Aᵀ)·Bᵀ) + bias          see kernels/dora.py; W0 is dequantised by kernels/quantized.py

Its variables live in three collections, which are the three parameter groups: 'base' (frozen), 'direction' (A, B) and
'magnitude' (m). Dropout acts on the input of A only, and only where a 'dropout' key is given. The weight is dequantised once a
pass, for the product and the norm, and used in the dtype of x.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bidora_jax.kernels import dora, lora_init, matmul, quantized
from bidora_jax.kernels.precision import wide
from bidora_jax.kernels.save_for_backward import ONLY_SAVED
from bidora_jax.kernels.varying import bernoulli_of_rows, summed
from bidora_jax.models.adapters.adapter import LayerAdapter
from bidora_jax.models.compute import Compute
from bidora_jax.models.tape import Tape


class Trained(NamedTuple):
    """The variables of an adapted layer."""

    direction: dora.Direction
    magnitude: Any
    """(m, ‖W0‖²), the gain itself where it was computed before, or None for a method without magnitude."""
    scale: Any
    """The scale of this layer where layers differ in it, or None. 0 says that this layer is not adapted."""
    start: dora.Direction | None
    """The factors that are subtracted, for starts away from zero."""


class Linear(nn.Module):
    """Frozen weight (O, I), optional bias, and the adapter's factors when `adapter` is given."""

    in_features: int
    out_features: int
    use_bias: bool = False
    adapter: LayerAdapter | None = None
    compute: Compute = Compute()
    saves_input: bool = False
    """Save x for the backward pass: what computes it costs more than a linear layer."""
    exposes_input: bool = False
    """Let a pass have the cotangent of x. Of layers over the same x `side_by_side` does so once."""
    is_summed: bool = False
    """On a mesh whose devices share products: whether x is cut, and the output a sum over them (models/tensor.py)."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch I"], lowered: Float[Array, "M r"] | None = None
    ) -> Float[Array, "*batch O"]:
        """`lowered` is x·Aᵀ where it has been computed already, see `side_by_side`."""
        tape = Tape(self, self.compute)
        x = tape.save("input", x, x.dtype) if self.saves_input else x
        x = tape.input("x", x) if self.exposes_input else x
        weight = self.variable("base", "weight", jnp.zeros, (self.out_features, self.in_features), x.dtype).value
        trained = None if self.adapter is None else self._trained(x.dtype)
        dropped = None if self.adapter is None else self._dropout(x, self.adapter.dropout)

        over = self.compute.tensor_axis if self.is_summed else None

        def product(x, weight, trained, dropped, lowered):
            return _product(self.adapter, tape, x, weight, trained, dropped, lowered, over)

        if self.compute.remat == "none" and isinstance(weight, quantized.Layer):
            # The sums are saved, and the dequantised matrix is not. A layer that is recomputed as a whole saves no matrix anyway.
            product = jax.checkpoint(product, policy=ONLY_SAVED, prevent_cse=False)
        y = product(x, weight, trained, dropped, lowered)
        if self.use_bias:
            bias = self.variable("base", "bias", jnp.zeros, (self.out_features,), x.dtype).value
            y = y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
        return y

    def shared_factor(self) -> Float[Array, "r I"] | None:
        """A, where it multiplies x itself; with dropout, a start or several adapters it does not."""
        a = self.get_variable("direction", "A") if self.has_variable("direction", "A") else None
        if a is None or a.ndim > 2 or self.adapter is None or self.adapter.starts_nonzero:
            return None
        return None if self.adapter.dropout and self.has_rng("dropout") else a

    def _trained(self, dtype) -> Trained:
        assert self.adapter is not None
        dtype, rank = wide(dtype), self.adapter.rank
        shapes = {"A": (rank, self.in_features), "B": (self.out_features, rank)}

        def pair(group: str, suffix: str = "") -> dora.Direction:
            found = (self.variable(group, name + suffix, jnp.zeros, shape, dtype) for name, shape in shapes.items())
            return dora.Direction(*(variable.value for variable in found))

        direction, magnitude = pair("direction"), self._magnitude(dtype) if self.adapter.magnitude else None
        scale = None if self.adapter.scale is not None else self.variable("base", "scale", jnp.zeros, (), dtype).value
        return Trained(direction, magnitude, scale, pair("base", "0") if self.adapter.starts_nonzero else None)

    def _magnitude(self, dtype):
        if self.has_variable("magnitude", "gain"):
            return self.get_variable("magnitude", "gain")
        names, shape = (("magnitude", "m"), ("base", "norm_sq")), (self.out_features,)
        return tuple(self.variable(group, name, jnp.zeros, shape, dtype).value for group, name in names)

    def _dropout(self, x, rate: float):
        if not rate or not self.has_rng("dropout"):
            return None
        alike = self.compute.tensor_axis
        keep = bernoulli_of_rows(self.make_rng("dropout"), 1 - rate, x, alike, columns_cut=self.is_summed)
        return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def side_by_side(layers: Sequence[Linear], x: Float[Array, "*batch I"]) -> list[Float[Array, "*batch _"]]:
    """Linear layers over the same x. Their products with A are one, x·[A; A'; …]ᵀ, and so are the derivatives of those."""
    x = Tape(layers[0], layers[0].compute).input("x", x)
    factors = [a for layer in layers if (a := layer.shared_factor()) is not None]
    if len(factors) < len(layers):
        return [layer(x) for layer in layers]
    ends = list(accumulate(len(factor) for factor in factors))
    lowered = matmul.product(x.reshape(-1, x.shape[-1]), jnp.concatenate(factors))
    return [layer(x, part) for layer, part in zip(layers, jnp.split(lowered, ends[:-1], axis=-1), strict=True)]


def _product(
    adapter: LayerAdapter | None,
    tape: Tape,
    x,
    weight: quantized.Weight,
    trained: Trained | None,
    dropped,
    lowered,
    over,
) -> Float[Array, "*batch O"]:
    """gain ⊙ (x·W0ᵀ + s·(x·Aᵀ)·Bᵀ); `dropped` is the input of A where it is not x, and `over` an axis that x is cut along."""
    w0, row_scale = quantized.opened(weight)
    w0 = w0.astype(x.dtype)
    if adapter is None or trained is None:
        return tape.save("sum", _whole(dora.frozen(x, w0, row_scale), over), x.dtype)
    scale = trained.scale if adapter.scale is None else adapter.scale
    direction = trained.direction if trained.start is None else lora_init.change_since(trained.direction, trained.start)
    gain = trained.magnitude
    if isinstance(gain, tuple):
        gain = _gain(adapter, w0, row_scale, direction, scale, gain, tape, over)
    a, b = direction.A, scale * direction.B
    given = x if dropped is None else dropped
    if a.ndim > 2:
        update = dora.raised_by_member(given, a, b)
    else:
        lowered = dora.lower(given, a) if lowered is None else lowered
        update = dora.raised(tape.save("low_rank", lowered, x.dtype), b, x.shape)
    y = _whole(dora.frozen(x, w0, row_scale) + update, over)
    return tape.save("sum", y, x.dtype) if gain is None else tape.save_scaled("sum", y, gain, x.dtype)


def _whole(y: Float[Array, "*batch O"], over: str | None) -> Float[Array, "*batch O"]:
    """Σ y over the devices that have some columns each of a weight, in the dtype of sums."""
    return y if over is None else summed(y, over)


def _gain(
    adapter: LayerAdapter, w0, row_scale, direction: dora.Direction, scale: dora.Scale, magnitude, tape=None, over=None
):
    """m / ‖V‖; `magnitude` is (m, ‖W0‖²)."""
    m, norm_sq = magnitude
    norm = dora.row_norm(w0, norm_sq, direction, scale=scale, row_scale=row_scale, over=over)
    if adapter.constant_norm:
        # It drops out of the direction's gradient: DoRA section 4.3.
        norm = jax.lax.stop_gradient(norm)
        norm = norm if tape is None else tape.constant(norm)
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
    """m/‖V‖ as the layer computes it in every pass. It depends on no input, so code that trains nothing can compute it once.

    `direction` is the change since the start, where that is not zero.
    """
    return _gain(adapter, *quantized.opened(weight), direction, scale, (m, norm_sq))
