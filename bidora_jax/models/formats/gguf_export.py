"""Writes a model with its adapter folded in as one GGUF file for llama.cpp and Ollama, proved before it gets its name.

The proof reads the file back, turns the rows of q and k to where they were, and compares
the logits with those of the model that was trained.
"""

from collections.abc import Iterator, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bidora_jax.errors import InputError, RunError
from bidora_jax.kernels.xla_cpu import weights
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.formats import gguf_architecture, gguf_file, gguf_tokenizer
from bidora_jax.models.formats.gguf_architecture import Key, Tensor
from bidora_jax.models.formats.gguf_file import Array, Quantize

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from bidora_jax.models.formats.export import Trained

ENDING = ".gguf"
Q8_TOLERANCE = 0.1
"""Largest difference of a logit allowed for q8_0, as a share of the largest |logit|; the other types have parity's."""


def check_output(path: Path, *beside: Path) -> None:
    """InputError for a file that can't be written, or one `beside` it, before any work is done."""
    if path.suffix != ENDING:
        raise InputError(f"--output {path}: a GGUF export is one file, whose name ends in {ENDING}")
    for taken in (path, *beside):
        if taken.exists():
            raise InputError(f"{taken} is there already; remove it, or choose another name")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise InputError(f"cannot write {path}: {parent} is a file, not a folder; choose another name")
    gguf_file.package()


class Model(NamedTuple):
    """What is written, and what it has to compute."""

    name: str
    """llama.cpp's architecture."""
    config: DecoderConfig
    weights: "PyTree"
    expected: np.ndarray
    """Its logits on the tokens of the proof."""
    before: np.ndarray | None = None
    """Those of the base that was trained."""


def of_run(name: str, trained: "Trained", quantize: Quantize) -> Model:
    """The merge in float32, from which a matrix is rounded once; for bf16, in which nearest values lose most of a short run,
    the one that is rounded on average (models/rounded_merge.py)."""
    from bidora_jax.models.formats import export, parity

    assert isinstance(trained.config, DecoderConfig)
    expected, before = parity.probe_logits(*trained[:5]), parity.before_training(*trained[:1], *trained[2:4])
    dtype = "bfloat16" if quantize == "bf16" else "float32"
    return Model(name, trained.config, export.merged_model(trained, dtype), expected, before)


def of_base(name: str, config: DecoderConfig, base: "PyTree") -> Model:
    """A model without an adapter."""
    from bidora_jax.models.formats import parity

    return Model(name, config, base, parity.probe_logits(config, None, base, {}, {}))


def write_model(path: Path, model: Model, tokenizer: gguf_tokenizer.Written, quantize: Quantize) -> None:
    """The file at `path`, whole or not at all."""
    from bidora_jax.machine.files import whole_file
    from bidora_jax.models.adapters import merging
    from bidora_jax.models.formats import parity

    name, config, weights, expected, before = model
    dense, config = merging.dequantise(weights, "float32"), config_of(model)
    keys = [*_general(path.stem, quantize), *gguf_architecture.keys(config, name), *tokenizer.keys]
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as fresh:
        gguf_file.write(fresh, name, keys, list(_arrays(config, name, dense)), quantize)
        del dense
        _prove(quantize, parity.probe_logits(config, None, read_base(fresh, config, name), {}, {}), expected, before)
    for note in tokenizer.notes:
        print(f"note: {note}")
    print(f"GGUF file written to {path}")


def config_of(model: Model) -> DecoderConfig:
    """The architecture as it is written: embeddings that came apart in training are no longer tied."""
    from bidora_jax.models.architectures.architecture import HEAD

    return model.config.untied() if HEAD in model.weights else model.config


def read_base(path: Path, config: DecoderConfig, name: str) -> "PyTree":
    """The base tree that a file holds, in float32."""
    import jax
    import jax.numpy as jnp

    from bidora_jax.models.base import dense_shapes

    shapes = dense_shapes(config, jnp.float32)
    base = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    held = dict(gguf_file.tensors(path))
    for tensor in gguf_architecture.tensors(config, name):
        leaf = _leaf(base, tensor.place.path)
        slot = leaf if tensor.place.layer is None else leaf[tensor.place.layer]
        slot[...] = gguf_architecture.halved(held[tensor.name], tensor.heads)
    return jax.tree.map(jnp.asarray, base)


def _general(name: str, quantize: Quantize) -> list[Key]:
    """What says of the file what it is. Some names switch a special treatment of tokens on in llama.cpp; such a one is left out."""
    special = any(part in name.lower() for part in ("phi-3", "phi3", "modern-bert"))
    return [
        Key("general.type", "string", "model"),
        *([] if special else [Key("general.name", "string", name)]),
        Key("general.file_type", "uint32", gguf_file.file_type(quantize)),
        Key("general.quantization_version", "uint32", gguf_file.package().GGML_QUANT_VERSION),
    ]


def _arrays(config: DecoderConfig, name: str, merged: "PyTree") -> Iterator[Array]:
    """What is written, and how each is made when it is its turn."""
    factors = gguf_architecture.frequency_factors(config)
    if factors is not None:
        yield Array(gguf_architecture.FREQUENCIES, factors.shape, False, lambda: factors)
    for tensor in gguf_architecture.tensors(config, name):
        yield Array(tensor.name, tensor.spec.shape, tensor.narrow, partial(_values, merged, tensor))


def _values(merged: "PyTree", tensor: Tensor) -> np.ndarray:
    leaf, layer = _leaf(merged, tensor.place.path), tensor.place.layer
    leaf = np.asarray(leaf.bits).view(leaf.dtype) if isinstance(leaf, weights.Bits) else leaf
    # A layer is cut out first: of a whole leaf jax would keep the host copy alive.
    values = np.asarray(leaf if layer is None else leaf[layer]).astype(np.float32)
    return gguf_architecture.interleaved(values, tensor.heads)


def _leaf(tree: Any, path: Sequence[str]) -> Any:
    return reduce(lambda node, key: node[key], path, tree)


def _prove(quantize: Quantize, found: np.ndarray, expected: np.ndarray, before: np.ndarray | None) -> None:
    """RunError where the file's logits differ by more than rounding explains, or lack what training changed."""
    from bidora_jax.models.formats import parity

    dtypes = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "float16"}
    agreement = parity.compare(found, expected, dtypes[quantize], before)
    if quantize == "q8_0":
        agreement = agreement._replace(tolerance=Q8_TOLERANCE * agreement.scale)
    said = (f"largest logit difference to the trained model {agreement.largest:.2e} "
            f"(largest logit {agreement.scale:.3g}, {agreement.tolerance:.1e} allowed for {quantize})"
            + ("" if before is None else f"; {agreement.kept:.1%} of what the adapter changes is kept"))  # fmt: skip
    if not agreement.holds:
        raise RunError(f"the GGUF file that was written is not the trained model: {said}; it was removed")
    print(f"GGUF file read back: {said}")
