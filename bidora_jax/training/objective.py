"""Losses of the decoder in the form that the steps take.

A batch holds M micro-batches: tokens (M, B, T) int32 and loss_mask (M, B, T) float32, and segments (M, B, T) int32 where a
row holds several documents. The loss is the mean over all trained tokens of all micro-batches (Σ losses / Σ tokens), made
by a scan that takes each micro-batch's gradient as it passes: gradient accumulation inside the loss, so that gradients and
hypergradients of M micro-batches are exactly those of one large batch, in the memory of one. Attention is cuDNN's, which has
no second derivative, where model.attention says cudnn; an auto that nothing has settled (planning/attention_backend.py) is chunked.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bidora_jax.kernels import dora, hypergrad, losses, quantized
from bidora_jax.models import decoder
from bidora_jax.models.adapters.adapter import Adapter, get, over_layers, update_factors
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.layer_scan import Record
from bidora_jax.models.settings import ModelConfig
from bidora_jax.tasks import language_modeling
from bidora_jax.training.accumulation import accumulated

LevelLoss = Callable[..., Float[Array, ""]]
"""(direction, magnitude, base, batch, key) to the mean loss; of a lower level also (…, record), see models/layer_scan.py"""


def inner_loss(
    config: DecoderConfig, adapter: Adapter, model: ModelConfig, *, gram_weight: float = 0.0, reversible: bool = True
) -> LevelLoss:
    """The lower level's loss(direction, magnitude, base, batch, key): with dropout, and γ times the Gram penalty.

    A gradient that is not `reversible` has derivatives forward alone, and keeps less on a CPU; see models/decoder.py.
    """

    def loss(direction, magnitude, base, batch, key, record=None):
        key = key if adapter.dropout else None
        value = _mean_loss(config, adapter, model, direction, magnitude, base, batch, key, record, reversible)
        if gram_weight:
            value = value + gram_weight * mean_gram_penalty(adapter, base, direction)
        return value

    return loss


def inner_recorded(
    config: DecoderConfig, adapter: Adapter, once: ModelConfig, twice: ModelConfig, *, gram_weight: float = 0.0
) -> hypergrad.TwoPass:
    """The lower level's loss in the two passes of an exact hypergradient, of which the second has the settings `twice`.

    The first hands on what it made of the head and, where it keeps the sums of its products, remat `dots`, of the layers; of
    several micro-batches nothing.
    """
    first, second = (
        inner_loss(config, adapter, model, gram_weight=gram_weight, reversible=False) for model in (once, twice)
    )

    def gradient(direction, magnitude, base, batch, key):
        if batch["tokens"].shape[0] > 1:
            return *jax.value_and_grad(first)(direction, magnitude, base, batch, key), None
        blank = decoder.blank_record(
            config, adapter, base, direction, magnitude, batch["tokens"][0], remat=once.remat,
            fused=once.attention == "cudnn", attention_chunk=once.attention_chunk, reversible=False,
        )  # fmt: skip

        def loss(direction, blank):
            return first(direction, magnitude, base, batch, key, blank)

        value, (g, record) = jax.value_and_grad(loss, argnums=(0, 1))(direction, blank)
        return value, g, Record(*record)

    return hypergrad.TwoPass(gradient, second)


def outer_loss(config: DecoderConfig, adapter: Adapter, model: ModelConfig) -> LevelLoss:
    """The upper level's loss: the model as it will be used, without dropout, with the norm never held constant. It is
    differentiated once, whatever the hypergradient: its gradient has derivatives forward alone."""
    adapter = replace(adapter, constant_norm=False, dropout=0.0)

    def loss(direction, magnitude, base, batch, key):
        del key
        return _mean_loss(config, adapter, model, direction, magnitude, base, batch, None, reversible=False)

    return loss


def mean_gram_penalty(adapter: Adapter, base: PyTree, direction: PyTree) -> Float[Array, ""]:
    """Mean over all adapted layers of ‖D·Dᵀ − I‖_F with D = V/‖V‖, one layer's dense D at a time."""
    total, count = 0.0, 0
    for site in adapter.sites:
        leaf = get(base["layers"], site.path)

        # A scale that is a number stays one.
        @partial(jax.checkpoint, static_argnums=() if site.scale is None else (2,))
        def penalty(weight, pair, scale, norm_sq):
            w0 = quantized.dense(weight)
            norm = dora.row_norm(w0, norm_sq, pair, scale=scale)
            unit = dora.gain(jnp.ones_like(norm), norm)[:, None] * dora.merge(w0, pair, scale=scale)
            return losses.gram_penalty(unit)

        penalties = over_layers(
            penalty, site, leaf["weight"], update_factors(adapter, site, base, direction), leaf["norm_sq"]
        )
        total = total + jnp.sum(penalties[np.array(site.layers)] if len(site.layers) < len(site.ranks) else penalties)
        count += len(site.layers)
    return jnp.asarray(total / count)


def _mean_loss(
    config, adapter, model: ModelConfig, direction, magnitude, base, batch, key, record=None, reversible=True
):
    def part(trained, base, index, micro):
        direction, magnitude = trained
        loss_sum, _ = language_modeling.token_loss_sum(
            config, adapter, base, direction, magnitude, micro["tokens"], micro["loss_mask"],
            None if key is None else jax.random.fold_in(key, index),
            remat=model.remat, fused=model.attention == "cudnn", attention_chunk=model.attention_chunk,
            loss_chunk=model.loss_chunk, segments=micro.get("segments"), record=record, reversible=reversible,
        )  # fmt: skip
        return loss_sum

    parts = {name: batch[name] for name in ("tokens", "loss_mask", "segments") if name in batch}
    tokens = jnp.maximum(jnp.sum(batch["loss_mask"][..., 1:]), 1.0)
    if batch["tokens"].shape[0] == 1:
        total = part((direction, magnitude), base, 0, jax.tree.map(lambda stack: stack[0], parts))
    else:
        total = accumulated(part, (direction, magnitude), base, parts)
    return total / tokens
