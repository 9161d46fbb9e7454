"""Sums of losses over micro-batches, with the gradient of each taken as it passes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bidora_jax.kernels.varying import as_varying


def accumulated(part: Callable[..., Array], trained: PyTree, base: PyTree, parts: PyTree) -> Float[Array, ""]:
    """Σᵢ part(trained, base, i, partsᵢ) over the leading axis of `parts`, differentiable in `trained` alone.

    The gradient of each part is taken while its activations are there and added up with the losses: a derivative of the scan
    would compute every part a second time. What is differentiated again, that gradient, recomputes one part at a time.
    """
    indexed = (jnp.arange(jax.tree.leaves(parts)[0].shape[0]), parts)

    @jax.custom_vjp
    def total(trained):
        return summed(lambda *one: part(trained, *one))

    def forward(trained):
        return summed(jax.checkpoint(lambda *one: jax.value_and_grad(part)(trained, *one)))

    def backward(gradient, cotangent):
        return (jax.tree.map(lambda leaf: cotangent.astype(leaf.dtype) * leaf, gradient),)

    def summed(of):
        like = jax.eval_shape(of, base, *jax.tree.map(lambda stack: stack[0], indexed))
        own = jax.tree.leaves(parts)[0]  # what each device of a mesh has its own rows of
        zero = jax.tree.map(lambda leaf: as_varying(jnp.zeros(leaf.shape, leaf.dtype), own), like)

        def add(sums, one):
            # What a part makes of the base alone, such as the bits of its embedding, must not be held for the whole loop.
            held, one = jax.lax.optimization_barrier((base, one))
            return jax.tree.map(jnp.add, sums, of(held, *one)), None

        return jax.lax.scan(add, zero, indexed)[0]

    total.defvjp(forward, backward)
    return total(trained)
