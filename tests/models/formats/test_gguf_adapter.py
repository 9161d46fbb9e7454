"""A LoRA as a GGUF file: llama.cpp, with it on the base, computes what was trained."""

import gguf_models
import jax
import numpy as np
import pytest
from gguf import GGUFReader
from llama_cpp import engine
from random_adapters import random_adapter

from bidora_jax.errors import InputError, RunError
from bidora_jax.models.adapters.initial import prepare_base
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.formats import gguf_adapter, gguf_architecture, hf, parity
from bidora_jax.models.formats.export import Trained
from bidora_jax.models.settings import ModelConfig
from bidora_jax.runs.gguf_exporting import export_model

SETTINGS = {
    "llama": AdapterConfig(method="lora", rank=5, alpha=7.0, rank_pattern=(("1.self_attn.q_proj", 3),)),
    "qwen3": AdapterConfig(method="lora", rank=3, alpha=9.0, rslora=True, layers_to_transform=(1,)),
    "qwen2": AdapterConfig(method="lora", rank=4, alpha=5.0, init="pissa", target_modules=("k_proj", "down_proj")),
}


def trained(folder, family: str, settings: AdapterConfig) -> Trained:
    """A random base, in a folder with a tokenizer, under a random adapter."""
    size = gguf_models.byte_level(folder)
    config = gguf_models.decoder(folder, family, size, **({"head_dim": 24} if family == "qwen3" else {}))
    base = hf.load_base(folder, config)
    adapter, direction, magnitude = random_adapter(settings, config, base)
    return Trained(config, adapter, prepare_base(base, adapter), direction, magnitude)


@pytest.mark.engine
@pytest.mark.parametrize("family", SETTINGS)
def test_llama_cpp_with_the_adapter_computes_the_trained_model(family, tmp_path):
    model = trained(tmp_path / "model", family, SETTINGS[family])
    export_model(ModelConfig(path=str(tmp_path / "model")), tmp_path / "base.gguf", quantize="f32")
    gguf_adapter.write_adapter(tmp_path / "lora.gguf", gguf_architecture.ARCHITECTURES[family], model)
    wanted = np.asarray(jax.nn.log_softmax(parity.probe_logits(*model[:5])))[0]
    tokens = np.random.default_rng(0).integers(model.config.vocab_size, size=parity.PROBE_SHAPE)[0].tolist()
    found = {}
    for name, adapter in (("with", tmp_path / "lora.gguf"), ("without", None)):
        with engine(tmp_path / "base.gguf", adapter) as llama:
            found[name] = np.array(llama.log_probabilities(tokens, model.config.vocab_size, printable=20))
    # Both add in float32, in another order.
    np.testing.assert_allclose(found["with"], wanted[-1], atol=5e-4, rtol=0)
    assert np.max(np.abs(found["without"] - wanted[-1])) > 0.1


def test_the_keys_and_the_names(tmp_path):
    gguf_adapter.write_adapter(tmp_path / "lora.gguf", "qwen2", trained(tmp_path / "model", "qwen2", SETTINGS["qwen2"]))
    file = GGUFReader(tmp_path / "lora.gguf")
    fields = {name: field.contents() for name, field in file.fields.items() if not name.startswith("GGUF.")}
    assert fields == {
        "general.architecture": "qwen2", "general.type": "adapter", "general.name": "lora", "general.file_type": 0,
        "adapter.type": "lora", "adapter.lora.alpha": 8.0,
    }  # fmt: skip
    assert {one.name: tuple(one.shape) for one in file.tensors} == {
        f"blk.{layer}.{module}.weight.lora_{kind}": shape
        for layer in range(2)
        for module, into, out in (("attn_k", 96, 32), ("ffn_down", 160, 96))
        for kind, shape in (("a", (into, 8)), ("b", (8, out)))  # PiSSA's change has twice the rank; ggml turns shapes
    }


def test_a_magnitude_is_refused(tmp_path):
    model = trained(tmp_path / "model", "llama", AdapterConfig(method="dora", rank=3))
    with pytest.raises(InputError, match="a GGUF adapter has none: use --format gguf"):
        gguf_adapter.write_adapter(tmp_path / "lora.gguf", "llama", model)


def test_a_file_that_is_not_the_adapter_is_removed(tmp_path, monkeypatch):
    model = trained(tmp_path / "model", "llama", SETTINGS["llama"])
    monkeypatch.setattr(gguf_architecture, "interleaved", lambda rows, heads: rows)
    with pytest.raises(RunError, match="the GGUF adapter that was written is not the trained one"):
        gguf_adapter.write_adapter(tmp_path / "lora.gguf", "llama", model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
