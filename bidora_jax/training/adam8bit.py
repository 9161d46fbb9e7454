"""Adam's preconditioner with moments stored in 8 bits (Dettmers et al., arXiv:2110.02861), for optax chains.

    m = b1·m⁻ + (1 − b1)·g          v = b2·v⁻ + (1 − b2)·g²          m⁻, v⁻: the stored moments, read back
    u = m / (1 − b1^t) / (√(v / (1 − b2^t) + eps_root) + eps)
    stored: Q±(m), Q₊(v)            Q±, Q₊: the dynamic 8-bit map with and without sign, in blocks of the flattened leaf

The update sees the new moments before they are rounded; only what is stored is rounded, as in bitsandbytes' AdamW8bit. So
∂u/∂g is exactly that of Adam at the moments read back, and no derivative goes through the stored codes. Two bytes and
two float32 scales a block make 2.03 bytes a parameter for both moments, where optax.scale_by_adam keeps 8.

A leaf below `min_size` elements keeps plain moments and follows optax.scale_by_adam bit for bit. The moments of a large one
are computed in float32, or in the gradient's dtype where that is wider.
Rounding is to the nearest: a second moment below 1.6e-7 of the largest in its block (a gradient below 4e-4 of the largest)
reads back as zero. Where that happens |u| can reach 1 / √(1 − b2), 32 at the default, and more where the gradient has just
become smaller; a larger eps bounds it.
A leaf that is spread over devices is not kept in place: the blocks run across its rows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Float32, PyTree, UInt8

from bidora_jax.kernels import dynamic_8bit


class Stored(NamedTuple):
    """One moment of one leaf, as `dynamic_8bit.quantise` gives it."""

    codes: UInt8[Array, "blocks block"]
    absmax: Float32[Array, " blocks"]


Moment = Float[Array, "..."] | Stored


def scale_by_adam_8bit(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    *,
    block: int = 256,
    min_size: int = 4096,
) -> optax.GradientTransformation:
    """optax.scale_by_adam, and its state, in which the moments of a leaf of `min_size` elements or more are `Stored`.

    `block` and `min_size` are bitsandbytes' own.
    """
    adam = optax.scale_by_adam(b1, b2, eps, eps_root)

    def store(moments: PyTree, *, signed: bool) -> PyTree:
        return jax.tree.map(lambda m: m if m.size < min_size else _store(m, signed, block), moments)

    def load(moments: PyTree, gradients: PyTree, *, signed: bool) -> PyTree:
        return jax.tree.map(lambda g, m: _load(m, g, signed, block), gradients, moments)

    def stored(state: Any) -> optax.ScaleByAdamState:
        return state._replace(mu=store(state.mu, signed=True), nu=store(state.nu, signed=False))

    def init(params: PyTree) -> optax.ScaleByAdamState:
        return stored(adam.init(params))

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, optax.ScaleByAdamState]:
        mu, nu = load(state.mu, updates, signed=True), load(state.nu, updates, signed=False)
        updates, new = adam.update(updates, state._replace(mu=mu, nu=nu), params)
        return updates, stored(new)

    return optax.GradientTransformation(init, update)


def _store(moment: Float[Array, "..."], signed: bool, block: int) -> Stored:
    return Stored(*dynamic_8bit.quantise(jax.lax.stop_gradient(moment), signed=signed, block=block))


def _load(moment: Moment, gradient: Float[Array, "..."], signed: bool, block: int) -> Float[Array, "..."]:
    if not isinstance(moment, Stored):
        return moment
    read = dynamic_8bit.dequantise(moment.codes, moment.absmax, gradient.shape, signed=signed, block=block)
    return read.astype(jnp.promote_types(gradient.dtype, jnp.float32))
