"""The hypergradient: how the outer loss changes with the magnitude m when the direction d answers with one update.

    d' = U(d, g(d, m)),   g = ∇_d L_inner(d, m)          U: one step of the inner optimiser, all of it
    h  = d/dm L_outer(d', m) = ∂_m L_outer + (∂g/∂m)ᵀ · (∂U/∂g)ᵀ · ∂_d L_outer

`exact` and `reverse` are this quantity. They differ in the mixed product (∂g/∂m)ᵀ·v = ∂_m ⟨g, v⟩:
`exact` takes it forward over reverse (one `jvp` of a gradient along v, Kemaev et al., arXiv:2505.00793), which keeps about
the memory of a gradient; `reverse` lets `jax.grad` pass through the gradient, the slow twin. The gradient that `exact`
differentiates has just been taken at the same point. A `TwoPass` loss hands values from the first pass to the second.

The other two are different quantities, kept for experiments:
`finite_difference` is what the released BiDoRA code computes (Betty's "darts"): ∂_m L_outer − (∂_m L_inner(d' + εv) −
∂_m L_inner(d' − εv)) / 2ε with v = ∂_d L_outer at d' and ε = 0.01/‖v‖: the implicit-function form with the inverse Hessian
taken as 1, at d', without learning rate or optimiser. `direct` is ∂_m L_outer alone.

Every function here takes `inner` and `outer`, losses of (direction, magnitude), and `update`, which maps (direction,
gradient) to (new direction, anything to keep). Nothing is known of models or optimisers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Loss = Callable[[PyTree, PyTree], Float[Array, ""]]
Update = Callable[[PyTree, PyTree], tuple[PyTree, Any]]


class Unrolled(NamedTuple):
    """One inner update and the hypergradient through it."""

    direction: PyTree
    opt: Any
    """What `update` returns beside the direction: the optimiser's state."""
    hypergradient: PyTree
    direction_gradient: PyTree
    inner_loss: Float[Array, ""]
    outer_loss: Float[Array, ""]


class TwoPass(NamedTuple):
    """The inner loss in two passes. The second may take values from the first, and have other kernels.

    Both are functions of (direction, magnitude); a bilevel step's are of (direction, magnitude, base, batch, key).
    """

    first: Callable[..., tuple[Float[Array, ""], PyTree, PyTree]]
    """The loss, its gradient in the direction, and a tape: any tree of values for the second pass."""
    second: Callable[..., Float[Array, ""]]
    """The same loss, to rounding, with the tape as one more argument. It is differentiated twice."""


def exact(inner: Loss | TwoPass, outer: Loss, update: Update, direction: PyTree, magnitude: PyTree) -> Unrolled:
    """h through the unrolled update; the mixed product forward over reverse.

    With a `TwoPass` the second pass need not compute again what the first one did, and it can do without kernels that have
    no second derivative.
    """
    passes = inner if isinstance(inner, TwoPass) else _without_tape(inner)
    return _unrolled(_forward_over_reverse(passes, direction), outer, update, direction, magnitude)


def _without_tape(inner: Loss) -> TwoPass:
    return TwoPass(lambda d, m: (*jax.value_and_grad(inner)(d, m), None), lambda d, m, tape: inner(d, m))


def reverse(inner: Loss, outer: Loss, update: Update, direction: PyTree, magnitude: PyTree) -> Unrolled:
    """The same h, with plain reverse-over-reverse differentiation."""

    def gradient(m):
        return jax.value_and_grad(inner)(direction, m)

    return _unrolled(gradient, outer, update, direction, magnitude)


def direct(inner: Loss, outer: Loss, update: Update, direction: PyTree, magnitude: PyTree) -> Unrolled:
    """∂_m L_outer at the updated direction: the direction's answer to the magnitude is left out."""
    inner_loss, gradient = jax.value_and_grad(inner)(direction, magnitude)
    updated, opt = update(direction, gradient)
    outer_loss, h = jax.value_and_grad(outer, argnums=1)(updated, magnitude)
    return Unrolled(updated, opt, h, gradient, inner_loss, outer_loss)


def finite_difference(
    inner: Loss, outer: Loss, update: Update, direction: PyTree, magnitude: PyTree, *, radius: float = 0.01
) -> Unrolled:
    """The hypergradient of the released BiDoRA code, see above; `radius` is ε·‖v‖."""
    inner_loss, gradient = jax.value_and_grad(inner)(direction, magnitude)
    updated, opt = update(direction, gradient)
    outer_loss, (v, h) = jax.value_and_grad(outer, argnums=(0, 1))(updated, magnitude)
    length = global_norm(v)
    epsilon = radius / jnp.where(length > 0, length, 1.0)

    def shifted(sign):
        moved = jax.tree.map(lambda d, dv: d + sign * epsilon * dv, updated, v)
        return jax.grad(inner, argnums=1)(moved, magnitude)

    h = jax.tree.map(lambda part, up, down: part - (up - down) / (2 * epsilon), h, shifted(1), shifted(-1))
    return Unrolled(updated, opt, h, gradient, inner_loss, outer_loss)


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """Euclidean length of all leaves together."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def _forward_over_reverse(inner: TwoPass, direction: PyTree):
    """m ↦ (loss, ∇_d loss), whose cotangent v on the gradient is pulled back by ∂_m∂_v = jvp of ∂_m along v of the second pass.

    The loss itself is returned as a metric: it has no cotangent here.
    """

    @jax.custom_vjp
    def gradient(m):
        return inner.first(direction, m)[:2]

    def forward(m):
        loss, g, tape = inner.first(direction, m)
        return (loss, g), (m, tape)

    def backward(residuals, cotangents):
        m, tape = residuals
        _, v = cotangents

        # The gradient in d is taken too, and dropped. Without it, a product of d alone would stay outside of the gradient, and the
        # jvp would meet its custom_vjp, which has no forward derivative.
        def magnitude_gradient(d):
            return jax.grad(inner.second, argnums=(0, 1))(d, m, tape)[1]

        return (jax.jvp(magnitude_gradient, (direction,), (v,))[1],)

    gradient.defvjp(forward, backward)
    return gradient


def _unrolled(gradient, outer: Loss, update: Update, direction: PyTree, magnitude: PyTree) -> Unrolled:
    def upper(m):
        inner_loss, g = gradient(m)
        updated, opt = update(direction, g)
        return outer(updated, m), (updated, opt, g, inner_loss)

    (outer_loss, (updated, opt, g, inner_loss)), h = jax.value_and_grad(upper, has_aux=True)(magnitude)
    return Unrolled(updated, opt, h, g, inner_loss, outer_loss)
