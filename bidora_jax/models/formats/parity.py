"""The proof of an export: the files are read back, and their logits are compared with those of the model in memory.

Both sides run in float32 on the same fixed tokens, whatever dtype was written. The stored weights are widened exactly, so
the difference is the rounding of W' to the stored dtype and nothing else; in bfloat16 arithmetic the noise of the
activations would hide it. The reference is the trained function, the model with its adapter unmerged; it is not the merged
tree that went into the file, so that an error of the merge shows. Weights are widened and dequantised one layer at a time,
so that a proof needs little more memory than the model.

A short run changes little, and the base itself may be within what rounding allows. So the files must also hold the change: with
the logits y of the trained model, y₀ of its base and ŷ of the files, all of the probe's tokens in one vector,

    kept = ⟨ŷ − y₀, y − y₀⟩ / ‖y − y₀‖²        1 for y, 0 for y₀; noise that does not go along the change leaves it as it is
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bidora_jax.models import backbone, decoder, heads, stacks
from bidora_jax.models.adapters.adapter import Adapter
from bidora_jax.models.adapters.initial import prepare_base
from bidora_jax.models.architectures.architecture import Architecture
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.architectures.heads import HEAD_TREE, HeadSpec
from bidora_jax.models.compute import Compute
from bidora_jax.models.formats import hf, hf_config, hf_head, peft

PROBE_SHAPE = (2, 32)

# Largest difference of a logit allowed, by the dtype written, as a share of the largest |logit|: 2 to 6 times the worst
# that random models of 2 to 64 layers showed (LoRA and DoRA, CPU, 2026-11-23). Rounding W' to bf16 moved a logit by up
# to 0.027 = 3.4 eps, to float16 by 0.0027 = 2.8 eps: 8 eps are allowed. In float32 nothing is rounded but the sums,
# which the adapter takes in another order than the merged weight: up to 3.2e-6.
TOLERANCE = {
    jnp.dtype(jnp.float32): 2e-5,
    jnp.dtype(jnp.bfloat16): 8 * 2.0**-7,
    jnp.dtype(jnp.float16): 8 * 2.0**-10,
}


LEAST_KEPT = 0.5
"""Share of the change below which an export is refused. A merge that is rounded on average (models/rounded_merge.py) keeps
nearly all of it, and the nearest values of bfloat16 kept 52 % of a short run's change of the weights (2026-11-30)."""


class Agreement(NamedTuple):
    """How far the logits of an export are from the model in memory."""

    largest: float
    """Largest |difference| of a logit."""
    scale: float
    """Largest |logit| of the model in memory."""
    tolerance: float
    """Largest difference allowed."""
    kept: float = 1.0
    """Share of the change since the base; 1 where there is none to keep, or none was asked for."""

    @property
    def holds(self) -> bool:
        return self.largest <= self.tolerance and self.kept >= LEAST_KEPT  # False for NaN


def probe_logits(
    config: Architecture,
    adapter: Adapter | None,
    base: PyTree,
    direction: PyTree,
    magnitude: PyTree,
    head: HeadSpec | None = None,
) -> Float[np.ndarray, "B _ C"]:
    """Logits of a model on the probe tokens, computed in float32 from a base of any dtype, quantised or prepared or not.

    Over the vocabulary; of a classifier those of its `head`, with one row shorter than the other so that padding is met; of an
    encoder without a head its last hidden states.
    """
    base, tokens = base if adapter is None else prepare_base(base, adapter), _probe_tokens(config)
    if head is None and isinstance(config, DecoderConfig):
        return np.asarray(_logits(config, adapter, base, direction, magnitude, tokens))
    return np.asarray(_outputs(config, adapter, head, base, (direction, magnitude), tokens))


def before_training(
    config: Architecture, base: PyTree, direction: PyTree, head: HeadSpec | None = None
) -> Float[np.ndarray, "B _ C"]:
    """`probe_logits` of the base without its adapter; a classifier's with the head that was trained."""
    own = {HEAD_TREE: direction[HEAD_TREE]} if HEAD_TREE in direction else {}
    return probe_logits(config, None, base, own, {}, head)


def verify_saved(
    folder: Path | str,
    expected: Float[np.ndarray, "B _ C"],
    head: HeadSpec | None = None,
    before: Float[np.ndarray, "B _ C"] | None = None,
) -> Agreement:
    """Reads a model folder back and compares its logits with `probe_logits` of the model in memory, and of `before_training`."""
    architecture, dtype = hf_config.read_config(folder), hf.source_dtype(folder)
    if head is None:
        found = probe_logits(architecture, None, hf.load_base(folder, architecture), {}, {})
        return compare(found, expected, dtype, before)
    inside = architecture.without_output()
    base = {**hf.load_base(folder, inside), HEAD_TREE: hf_head.load(folder, inside, head)}
    return compare(probe_logits(inside, None, base, {}, {}, head), expected, dtype, before)


def verify_adapter(
    folder: Path | str,
    config: Architecture,
    base: PyTree,
    expected: Float[np.ndarray, "B _ C"],
    head: HeadSpec | None = None,
    before: Float[np.ndarray, "B _ C"] | None = None,
) -> Agreement:
    """Reads an adapter folder back onto its base and compares its logits as `verify_saved` does."""
    found = probe_logits(config, *_on(base, *peft.load_adapter(folder, config)), head=head)
    return compare(found, expected, jnp.dtype(jnp.float32), before)


def _on(base: PyTree, adapter: Adapter, direction: PyTree, magnitude: PyTree):
    return adapter, base, direction, magnitude


def compare(found: np.ndarray, expected: np.ndarray, dtype, before: np.ndarray | None = None) -> Agreement:
    """The largest difference between two sets of logits, the largest that rounding weights to `dtype` explains, and how much is
    kept of the change since the logits `before`."""
    scale = float(np.max(np.abs(expected)))
    kept = 1.0 if before is None else _kept(found, expected, before, TOLERANCE[jnp.dtype(jnp.float32)] * scale)
    return Agreement(float(np.max(np.abs(found - expected))), scale, TOLERANCE[jnp.dtype(dtype)] * scale, kept)


def _kept(found: np.ndarray, expected: np.ndarray, before: np.ndarray, noise: float) -> float:
    """1 for a change that is within the noise of float32 sums."""
    changed = (expected - before).astype(np.float64)
    if np.max(np.abs(changed)) <= noise:
        return 1.0
    return float(np.vdot(found - before, changed) / np.vdot(changed, changed))


def _probe_tokens(config: Architecture) -> Int[np.ndarray, "B T"]:
    rows, columns = PROBE_SHAPE
    shape = rows, min(columns, config.max_positions)
    return np.random.default_rng(0).integers(config.vocab_size, size=shape, dtype=np.int32)


@partial(jax.jit, static_argnums=(0, 1))
def _logits(config, adapter, base, direction, magnitude, tokens):
    with jax.default_matmul_precision("highest"):  # a GPU would multiply float32 in TF32, with 10 bits of mantissa
        return decoder.logits(config, adapter, base, direction, magnitude, tokens, Compute(dtype=jnp.float32))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _outputs(config, adapter, head: HeadSpec | None, base, trained, tokens) -> Float[Array, "B _ C"]:
    with jax.default_matmul_precision("highest"):
        lengths = jnp.asarray([tokens.shape[1], *[tokens.shape[1] - 1] * (tokens.shape[0] - 1)], jnp.int32)
        batch = {"tokens": tokens, "lengths": lengths, "types": jnp.zeros_like(tokens)}
        x = backbone.hidden(config, adapter, Compute(dtype=jnp.float32), base, trained, batch)
        segments = stacks.segments_of(batch)
        found = x if head is None else heads.outputs(head, base, trained[0], x, segments, 1)
        return jnp.where(segments[..., None] > 0, found, 0.0) if found.shape[1] == tokens.shape[1] else found
