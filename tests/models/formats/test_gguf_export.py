"""GGUF files: what is in them is the model, and llama.cpp computes it.

models/formats/gguf_export.py writes and proves, models/formats/gguf_file.py has the types, models/formats/gguf_architecture.py the
names, the order of rows and the keys. llama.cpp is the package xllamacpp, which here answers from a file in float32.
"""

from pathlib import Path

import gguf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from llama_cpp import engine

from bidora_jax.errors import InputError, RunError
from bidora_jax.models.formats import gguf_architecture, gguf_export, gguf_file, hf, hf_config, parity
from bidora_jax.models.formats.gguf_tokenizer import Written
from bidora_jax.models.settings import ModelConfig
from bidora_jax.runs.gguf_exporting import export_model

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
MODELS = {
    "llama": ("llama", {}),
    "llama, tied, every bias": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama, its rope": ("llama", {"rope_scaling": LLAMA3}),
    "llama, a yarn of its own": (
        "llama",
        {"rope_scaling": YARN | {"beta_fast": 0.5, "beta_slow": 0.01, "truncate": False, "attention_factor": 1.3}},
    ),
    "mistral, heads of their own size": ("mistral", {"head_dim": 20}),
    "qwen2": ("qwen2", {}),
    "qwen2, linear rope": ("qwen2", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    "qwen2, yarn with a gain": ("qwen2", {"rope_scaling": YARN | {"attention_factor": 0.8}}),
    "qwen3": ("qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3, biases and yarn": ("qwen3", {"head_dim": 24, "rope_scaling": YARN}),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder with a byte-level tokenizer, and how many tokens it has."""
    folder = tmp_path_factory.mktemp("tokenizer")
    return folder, gguf_models.byte_level(folder)


def model(folder: Path, tokenizer, family: str, **overrides) -> Path:
    """A random model with that tokenizer."""
    source, size = tokenizer
    gguf_models.decoder(folder, family, size, **overrides)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def exported(folder: Path, quantize: gguf_file.Quantize) -> Path:
    file = folder.parent / f"{folder.name}-{quantize}.gguf"
    export_model(ModelConfig(path=str(folder)), file, quantize=quantize)
    return file


@pytest.mark.engine
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_the_model(name, tokenizer, tmp_path):
    family, overrides = MODELS[name]
    folder = model(tmp_path / "model", tokenizer, family, **overrides)
    file, config = exported(folder, "f32"), hf_config.read_decoder(folder)
    wanted = jax.nn.log_softmax(parity.probe_logits(config, None, hf.load_base(folder, config), {}, {}))
    tokens = (
        np.random.default_rng(0).integers(config.vocab_size, size=parity.PROBE_SHAPE).tolist()
    )  # those of the probe
    assert np.ptp(wanted[0, -1]) > 5  # a model that says something
    with engine(file) as llama:
        for row, length in ((0, 1), (1, 2), (0, 9), (1, 32)):  # short of the context of pretraining, and past it
            found = llama.log_probabilities(tokens[row][:length], config.vocab_size, printable=20)
            # Both add in float32, in another order; the largest seen was 1e-4.
            np.testing.assert_allclose(found, wanted[row, length - 1], atol=5e-4, rtol=0)


@pytest.mark.parametrize("quantize", ["f16", "bf16", "q8_0", "f32"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_file_holds_every_tensor_rounded_once(family, quantize, tokenizer, tmp_path):
    folder = model(tmp_path / "model", tokenizer, family, attention_bias=family == "llama", head_dim=20)
    config, name = hf_config.read_decoder(folder), gguf_architecture.ARCHITECTURES[family]
    found = gguf_export.read_base(file := exported(folder, quantize), config, name)
    held = dict(gguf_file.tensors(file))
    assert set(held) == {one.name for one in gguf_architecture.tensors(config, name)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(hf.load_base(folder, config)):
        wanted, read = np.asarray(leaf), found
        for key in path:
            read = read[key.key]
        names = [key.key for key in path]
        matrix = wanted.ndim - (names[0] == "layers") > 1
        if not matrix or quantize == "f32":
            np.testing.assert_array_equal(read, wanted, err_msg=str(names))
        elif quantize == "f16":
            np.testing.assert_array_equal(read, wanted.astype(np.float16).astype(np.float32), err_msg=str(names))
        elif quantize == "bf16":
            np.testing.assert_array_equal(read, wanted.astype(jnp.bfloat16).astype(np.float32), err_msg=str(names))
        else:
            assert_rounded_to_8_bits(np.asarray(read), wanted)


def assert_rounded_to_8_bits(read: np.ndarray, wanted: np.ndarray) -> None:
    if wanted.shape[-1] % 32:  # o_proj has rows of 120
        np.testing.assert_array_equal(read, wanted.astype(np.float16).astype(np.float32))
        return
    blocks = wanted.reshape(-1, 32)
    step = np.abs(blocks).max(axis=1, keepdims=True) / 127
    # Half a step; the scale is rounded to float16, which moves 127 steps by up to 127·2^-11 of one.
    assert np.all(np.abs(read.reshape(-1, 32) - blocks) <= (0.5 + 127 * 2.0**-11) * step + 1e-7)
    assert np.any(read.reshape(-1, 32) != blocks)


def test_the_keys_say_what_the_model_is(tokenizer, tmp_path):
    from gguf import GGUFReader

    folder = model(tmp_path / "model", tokenizer, "mistral", head_dim=20, rope_scaling=YARN)
    fields = {name: field.contents() for name, field in GGUFReader(exported(folder, "q8_0")).fields.items()}
    wanted = {
        "general.architecture": "llama", "general.type": "model", "general.name": "model-q8_0", "general.file_type": 7,
        "general.quantization_version": 2, "llama.block_count": 2, "llama.context_length": 256, "llama.embedding_length": 96,
        "llama.feed_forward_length": 160, "llama.attention.head_count": 6, "llama.attention.head_count_kv": 2,
        "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0, "llama.rope.scaling.attn_factor": 1.0,
        "llama.rope.scaling.original_context_length": 8, "llama.rope.freq_base": 5000.0,
        "llama.attention.layer_norm_rms_epsilon": np.float32(1e-6), "llama.attention.key_length": 20,
        "llama.attention.value_length": 20, "llama.vocab_size": tokenizer[1], "llama.rope.dimension_count": 20,
    }  # fmt: skip
    assert {name: fields[name] for name in fields if name.startswith(("general.", "llama."))} == wanted


def test_heads_are_turned_and_turned_back():
    rows = np.arange(6 * 5).reshape(6, 5)  # one head of six rows
    assert gguf_architecture.interleaved(rows, 1)[:, 0].tolist() == [0, 15, 5, 20, 10, 25]
    two = np.arange(12)
    assert gguf_architecture.interleaved(two, 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    np.testing.assert_array_equal(gguf_architecture.halved(gguf_architecture.interleaved(two, 2), 2), two)
    np.testing.assert_array_equal(gguf_architecture.interleaved(two, 0), two)


@pytest.mark.parametrize(("family", "overrides", "said"), [
    ("mistral", {"sliding_window": 64}, "a sliding window of 64 tokens in a context of 256"),
    ("qwen3", {"head_dim": 24, "rope_scaling": LLAMA3}, "rope scaling llama3 with these settings"),
    ("qwen2", {"rope_scaling": YARN | {"beta_slow": 2}}, "rope scaling yarn with these settings"),
    ("qwen2", {"head_dim": 20}, "heads x head_dim is 120 and hidden_size 96"),
    ("qwen3", {"head_dim": 24, "attention_bias": True}, "a bias of o_proj (llama.cpp's qwen3 has none)"),
])  # fmt: skip
def test_what_llama_cpp_does_not_compute_is_refused(family, overrides, said, tokenizer, tmp_path):
    folder = model(tmp_path / "model", tokenizer, family, **overrides)
    with pytest.raises(InputError, match=r"llama.cpp can't express this model") as refused:
        exported(folder, "f16")
    assert said in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_window_as_long_as_the_context_is_none(tokenizer, tmp_path):
    assert exported(model(tmp_path / "model", tokenizer, "mistral", sliding_window=256), "f16").is_file()


def test_a_value_that_float16_does_not_hold_is_refused_and_bfloat16_holds_it(tokenizer, tmp_path):
    folder = model(tmp_path / "model", tokenizer, "qwen2")
    config = hf_config.read_decoder(folder)
    base = hf.load_base(folder, config)
    weight = base["layers"]["mlp"]["up_proj"]["weight"].at[1, 2, 3].set(1e5)
    large = {**base, "layers": {**base["layers"], "mlp": {**base["layers"]["mlp"], "up_proj": {"weight": weight}}}}
    with pytest.raises(
        InputError, match=r"blk.1.ffn_up.weight holds 1e.05, and float16 at most 65504.*--quantize bf16"
    ):
        gguf_export.write_model(
            tmp_path / "a.gguf", gguf_export.of_base("qwen2", config, large), Written([], []), "f16"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    array = gguf_file.Array("blk.1.ffn_up.weight", weight[1].shape, True, lambda: np.asarray(weight[1]))
    gguf_file.write(tmp_path / "a.gguf", "qwen2", [], [array], "bf16")
    assert dict(gguf_file.tensors(tmp_path / "a.gguf"))["blk.1.ffn_up.weight"][2, 3] == np.float32(jnp.bfloat16(1e5))


def test_a_file_that_is_not_the_model_is_removed(tokenizer, tmp_path, monkeypatch):
    folder = model(tmp_path / "model", tokenizer, "llama")
    monkeypatch.setattr(gguf_architecture, "interleaved", lambda rows, heads: rows)
    with pytest.raises(
        RunError, match="the GGUF file that was written is not the trained model: largest logit difference"
    ):
        exported(folder, "f16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
