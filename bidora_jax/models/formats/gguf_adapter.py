"""A LoRA as a GGUF file, which llama.cpp puts on the GGUF file of the base.

    blk.N.attn_q.weight.lora_a  [r, in]     A
    blk.N.attn_q.weight.lora_b  [out, r]    s·B, for q and k of a "llama" with its rows in llama.cpp's order

One rank for all modules and adapter.lora.alpha = r, as llama.cpp multiplies by alpha/r. All float32. Such a file has no place for a
magnitude: DoRA and BiDoRA go into llama.cpp merged. The proof reads the file back onto the base and compares logits.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bidora_jax.errors import InputError, RunError
from bidora_jax.models.architectures.architecture import LAYERS, Place
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.formats import gguf_architecture, gguf_file
from bidora_jax.models.formats.gguf_architecture import Key
from bidora_jax.models.formats.gguf_file import Array

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from bidora_jax.models.adapters.lora_approximation import LoraApproximation
    from bidora_jax.models.formats.export import Trained


def write_adapter(path: Path, name: str, trained: "Trained") -> None:
    """The trained LoRA at `path`, whole or not at all; `name` is llama.cpp's of the architecture."""
    from bidora_jax.machine.files import whole_file
    from bidora_jax.models.adapters.lora_approximation import approximate
    from bidora_jax.models.formats import parity

    config, adapter, base, direction, magnitude, *_ = trained
    assert isinstance(config, DecoderConfig)
    if adapter.magnitude:
        raise InputError(
            "the run trained a magnitude (DoRA, BiDoRA), and a GGUF adapter has none: use --format gguf, the merged model"
        )
    plain = approximate(adapter, config, base, direction, magnitude)
    expected = parity.probe_logits(*trained[:5])
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as fresh:
        gguf_file.write(fresh, name, _keys(path.stem, plain.rank), list(_arrays(config, name, plain)), "f32")
        read = parity.probe_logits(config, plain.adapter, base, read_direction(fresh, config, name, plain), {})
        found = parity.compare(read, expected, "float32")
        said = f"largest logit difference to the trained model {found.largest:.2e} (largest logit {found.scale:.3g})"
        if not found.holds:
            raise RunError(f"the GGUF adapter that was written is not the trained one: {said}; it was removed")
        print(f"GGUF adapter of rank {plain.rank} read back: {said}")
    print(f"GGUF adapter written to {path}")


def read_direction(path: Path, config: DecoderConfig, name: str, plain: "LoraApproximation") -> "PyTree":
    """The factors that a file holds, stacked as in the direction of `plain`."""
    import jax.numpy as jnp

    from bidora_jax.models.adapters.adapter import put

    held, layers = dict(gguf_file.tensors(path)), {}
    for site in plain.adapter.sites:
        heads = gguf_architecture.reordered(config, name, _place(site.path, 0).path)
        names = [_name(site.path, layer) for layer in range(config.num_layers)]
        b = [gguf_architecture.halved(held[f"{one}.lora_b"], heads) for one in names]
        a = [held[f"{one}.lora_a"] for one in names]
        layers = put(layers, site.path, {"A": jnp.asarray(np.stack(a)), "B": jnp.asarray(np.stack(b))})
    return {"layers": layers}


def _keys(name: str, rank: int) -> list[Key]:
    return [
        Key("general.type", "string", "adapter"),
        Key("general.name", "string", name),
        Key("general.file_type", "uint32", gguf_file.file_type("f32")),
        Key("adapter.type", "string", "lora"),
        Key("adapter.lora.alpha", "float32", float(rank)),
    ]


def _arrays(config: DecoderConfig, name: str, plain: "LoraApproximation") -> Iterator[Array]:
    from bidora_jax.models.adapters.adapter import get

    for site in plain.adapter.sites:
        pair = {kind: np.asarray(get(plain.direction["layers"], site.path)[kind]) for kind in ("A", "B")}
        heads = gguf_architecture.reordered(config, name, _place(site.path, 0).path)
        for layer in range(config.num_layers):
            a, b = pair["A"][layer], pair["B"][layer]
            yield Array(f"{_name(site.path, layer)}.lora_a", a.shape, False, partial(np.asarray, a))
            turned = partial(gguf_architecture.interleaved, b, heads)
            yield Array(f"{_name(site.path, layer)}.lora_b", b.shape, False, turned)


def _place(path: str, layer: int) -> Place:
    return Place((LAYERS, *path.split("."), "weight"), layer)


def _name(path: str, layer: int) -> str:
    return gguf_architecture.tensor_name(_place(path, layer))
