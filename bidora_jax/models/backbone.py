"""The last hidden states of any model: which file computes them is the kind of its architecture.

A batch has tokens (B, T), and of its documents either nothing (a decoder, one document a row), lengths (B,) for one document a row,
padded on the right, or segments (B, T) for rows of several: 0 is padding, 1, 2, … are the documents. An encoder needs one of
the two, as it looks at what comes after a token; types (B, T) are its token types where it has a table of them.
"""

from jaxtyping import Array, Float, PyTree

from bidora_jax.models import decoder, encoder
from bidora_jax.models.adapters.adapter import Adapter
from bidora_jax.models.architectures.architecture import Architecture
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.architectures.encoder import EncoderConfig
from bidora_jax.models.compute import Compute
from bidora_jax.models.decoder import Batch
from bidora_jax.models.layer_scan import Layer
from bidora_jax.models.stacks import Stacks, Trained
from bidora_jax.models.tape import EmptyTape, TapeValues


def hidden(
    architecture: Architecture,
    adapter: Adapter | None,
    compute: Compute,
    base: PyTree,
    trained: Trained,
    batch: Batch,
    key: Array | None = None,
    tape: EmptyTape | TapeValues | None = None,
) -> Float[Array, "B T D"]:
    """The last hidden states, after the model's own last norm. A `key` switches the adapter's dropout on; `tape` as in tape.py."""
    if isinstance(architecture, DecoderConfig):
        return decoder.hidden(architecture, adapter, compute, base, trained, batch, key, tape)
    assert isinstance(architecture, EncoderConfig)
    return encoder.hidden(architecture, adapter, compute, base, trained, batch, key, tape)


def parts(
    architecture: Architecture,
    adapter: Adapter | None,
    compute: Compute,
    base: PyTree,
    trained: Trained,
    batch: Batch,
) -> tuple[Stacks, Layer]:
    """What the scan over layers takes of this batch, and the layer that it applies."""
    if isinstance(architecture, DecoderConfig):
        return decoder.parts(architecture, adapter, compute, base, trained, batch)
    assert isinstance(architecture, EncoderConfig)
    return encoder.parts(architecture, adapter, compute, base, trained, batch)


def empty_tape(
    architecture: Architecture,
    adapter: Adapter | None,
    compute: Compute,
    base: PyTree,
    trained: Trained,
    batch: Batch,
    means: Array | None,
) -> EmptyTape:
    """The empty tape of a pass over this batch, with the zeros of a head that has `means`."""
    if isinstance(architecture, DecoderConfig):
        return decoder.empty_tape(architecture, adapter, compute, base, trained, batch, means)
    assert isinstance(architecture, EncoderConfig)
    return encoder.empty_tape(architecture, adapter, compute, base, trained, batch, means)
