"""Losses of classes, labels and values, one a document or token: the sum and the weight that its mean is made of.

    cross entropy         l = −Σ_c w_c·((1 − ε)·t_c + ε/C)·log softmax(x)_c             weight  Σ_c w_c·t_c
    binary cross entropy  l = −1/C·Σ_c (p_c·t_c·log σ(x_c) + (1 − t_c)·log σ(−x_c))     weight  1
    mean square           l = 1/K·Σ_k (y_k − t_k)²                                      weight  1

A mean is Σ l / Σ weight over all items of all micro-batches, so that accumulation is exact whatever classes they hold. For hard
labels (t is 0 but for one 1) it is torch's CrossEntropyLoss(weight=w, label_smoothing=ε), and the others are BCEWithLogitsLoss(
pos_weight=p) and MSELoss. Of soft labels with class weights torch divides by the number of items, which this does not.

Losses are float32 (float64 for float64), whatever the logits are. Every function is a formula of JAX's own operations and has its
derivatives of any order. An item whose target is all zeros has no loss and no weight under cross entropy; of the other losses the
caller leaves it out.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bidora_jax.kernels.precision import wide


def cross_entropy(
    logits: Float[Array, "*items C"],
    target: Float[Array, "*items C"],
    class_weights: Float[Array, " C"] | None = None,
    smoothing: float = 0.0,
) -> tuple[Float[Array, "*items"], Float[Array, "*items"]]:
    """Losses and weights of distributions over classes: hard labels as one-hot, or soft ones."""
    log_p = jax.nn.log_softmax(logits.astype(wide(logits.dtype)), axis=-1)
    target = target.astype(log_p.dtype)
    total = jnp.sum(target, axis=-1, keepdims=True)  # 1, or 0 of an item that does not count
    smooth = (1 - smoothing) * target + smoothing / target.shape[-1] * total
    if class_weights is not None:
        by_class = jnp.broadcast_to(class_weights.astype(log_p.dtype), target.shape)
        smooth, target = by_class * smooth, by_class * target
    return -jnp.sum(smooth * log_p, axis=-1), jnp.sum(target, axis=-1)


def token_cross_entropy(
    logits: Float[Array, "B T C"],
    labels: Int[Array, "B T"],
    class_weights: Float[Array, " C"] | None = None,
    smoothing: float = 0.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The same of class numbers, one a token; a token whose label is −1 has no loss and no weight."""
    target = jax.nn.one_hot(labels, logits.shape[-1], dtype=wide(logits.dtype))  # −1 is no class: a row of zeros
    return cross_entropy(logits, target, class_weights, smoothing)


def binary_cross_entropy(
    logits: Float[Array, "*items C"], targets: Float[Array, "*items C"], pos_weight: Float[Array, " C"] | None = None
) -> tuple[Float[Array, "*items"], Float[Array, "*items"]]:
    """Losses, means over C labels that are each there (1) or not (0), or there with a probability; `pos_weight` multiplies what a
    label that is there costs."""
    logits = logits.astype(wide(logits.dtype))
    targets = targets.astype(logits.dtype)
    there = (
        targets if pos_weight is None else jnp.broadcast_to(pos_weight.astype(logits.dtype), targets.shape) * targets
    )
    losses = -(there * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits))
    return jnp.mean(losses, axis=-1), jnp.ones(losses.shape[:-1], losses.dtype)


def mean_square(
    values: Float[Array, "*items K"], targets: Float[Array, "*items K"]
) -> tuple[Float[Array, "*items"], Float[Array, "*items"]]:
    """Losses, means over K targets."""
    values = values.astype(wide(values.dtype))
    losses = jnp.square(values - targets.astype(values.dtype))
    return jnp.mean(losses, axis=-1), jnp.ones(losses.shape[:-1], losses.dtype)
