"""Each family on the one decoder: transformers is the oracle for logits, greedy text and files, PEFT for adapters.

A family is an entry of models/architectures/families.py with the shapes of models/architectures/decoder.py.
"""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.generation import answers, decoding
from bidora_jax.models import decoder
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.compute import Compute
from bidora_jax.models.formats import bnb, export, hf, hf_config, peft
from bidora_jax.models.settings import ModelConfig

pytestmark = pytest.mark.torch

# A width that the heads divide, as Llama's config wants it, with heads that do not make it up; and no multiple of 16:
# bitsandbytes 0.50's CPU kernel opens NF4 rows of 48, 80 or 96 with a neighbour's scale.
WIDTH = {"hidden_size": 60}
MODELS = {
    "llama": ("llama", WIDTH),
    "llama, biases, tied": ("llama", {**WIDTH, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama, no groups": ("llama", {**WIDTH, "num_key_value_heads": 6, "head_dim": None}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", {"sliding_window": 7, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {**WIDTH, "tie_word_embeddings": True, "head_dim": None}),
    "qwen2, window": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
}
STRETCHES = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": {
        "rope_type": "llama3", "factor": 3.0, "low_freq_factor": 1.0, "high_freq_factor": 2.5,
        "original_max_position_embeddings": 29,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 29},
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(transformers' model, its folder, its config and base here) of a kind, made once."""
    made = {}

    def of(kind):
        if kind not in made:
            import oracle

            family, overrides = MODELS[kind]
            model, folder = oracle.random(family, **overrides), tmp_path_factory.mktemp("family")
            model.save_pretrained(folder)
            config = hf_config.read_config(folder)
            made[kind] = model, folder, config, hf.load_base(folder, config)
        return made[kind]

    return of


def _logits(config, base, ids, **how):
    return np.asarray(decoder.logits(config, None, base, {}, {}, jnp.asarray(ids), Compute(**how)))


def _greedy(config, base, ids) -> list[list[int]]:
    how = {"max_new_tokens": 32, "ends": [10**6]}
    return [piece.tokens for piece in answers.complete(decoding.assemble(config, base), ids.tolist(), **how)]


# Logits and text


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_those_of_transformers(saved, kind):
    import oracle

    model, _, config, base = saved(kind)
    ids = oracle.tokens()
    # 1e-4 is float32's share: logits reach 10 and pass through 3 layers.
    np.testing.assert_allclose(_logits(config, base, ids.numpy()), oracle.logits(model, ids), atol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if "window" in kind])
def test_a_window_holds_in_chunks_and_matters(saved, kind):
    import oracle

    model, _, config, base = saved(kind)
    ids = oracle.tokens()
    expected = oracle.logits(model, ids)
    np.testing.assert_allclose(_logits(config, base, ids.numpy(), attention_chunk=4), expected, atol=1e-4)
    free = DecoderConfig(**(vars(config) | {"window": None}))
    difference = np.abs(_logits(free, base, ids.numpy()) - expected).max(axis=(0, 2))
    assert difference[: config.window].max() < 1e-4 < 0.1 < difference[config.window :].min()


@pytest.mark.parametrize("kind", [kind for kind in MODELS if "no groups" not in kind])
def test_greedy_text_is_that_of_transformers(saved, kind):
    import oracle

    model, _, config, base = saved(kind)
    ids = oracle.tokens(batch=2, length=11)
    np.testing.assert_array_equal(_greedy(config, base, ids), oracle.greedy(model, ids, 32))


# Positions


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("stretch", STRETCHES)
def test_stretched_positions_give_the_logits_of_transformers(tmp_path, stretch, spelling):
    import oracle

    model = oracle.random("llama", **WIDTH, rope=STRETCHES[stretch])
    model.save_pretrained(tmp_path)
    if spelling == "rope_scaling":  # as transformers 4 wrote it, and before that
        settings = json.loads((tmp_path / "config.json").read_text())
        rope = settings.pop("rope_parameters")
        settings |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope | {"type": rope.pop("rope_type")}}
        (tmp_path / "config.json").write_text(json.dumps(settings))
    config = hf_config.read_config(tmp_path)
    ids = oracle.tokens(length=67)  # past the 29 of pretraining
    found = _logits(config, hf.load_base(tmp_path, config), ids.numpy())
    np.testing.assert_allclose(found, oracle.logits(model, ids), atol=1e-4)


@pytest.mark.parametrize("stretch", STRETCHES)
def test_stretched_positions_hold_in_cached_decoding(tmp_path, stretch):
    import oracle

    model = oracle.random("qwen2", rope=STRETCHES[stretch], num_hidden_layers=2)
    model.save_pretrained(tmp_path)
    config, ids = hf_config.read_config(tmp_path), oracle.tokens(batch=2, length=11)
    base = hf.load_base(tmp_path, config)
    np.testing.assert_array_equal(_greedy(config, base, ids), oracle.greedy(model, ids, 32))


# Files and adapters


@pytest.mark.parametrize("kind", ["llama, biases, tied", "mistral", "qwen2"])
def test_a_saved_model_is_the_same_in_transformers(saved, tmp_path, kind):
    import oracle
    import transformers

    model, folder, config, base = saved(kind)
    hf.save_model(tmp_path / "out", folder, config, base, dtype="float32", max_shard_bytes=60_000)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[wrong] for wrong in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(again) is type(model)
    np.testing.assert_array_equal(oracle.logits(again, oracle.tokens()), oracle.logits(model, oracle.tokens()))
    assert hf_config.read_config(tmp_path / "out") == config


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["llama, biases, tied", "mistral, window", "qwen2"])
def test_adapters_go_to_peft_and_merged_to_transformers(saved, tmp_path, kind):
    import oracle
    import peft as oracle_peft
    import transformers

    _, folder, config, base = saved(kind)
    settings = AdapterConfig(method="bidora", rank=5, alpha=7.0)
    adapter = adapters.resolve(settings, config)
    base = initial.prepare_base(base, adapter)
    random = np.random.default_rng(1)
    direction, magnitude = jax.tree.map(
        lambda leaf: (leaf + 0.1 * random.normal(size=leaf.shape)).astype(np.float32),
        initial.init(adapter, base, jax.random.key(0)),
    )
    trained = (adapter, base, direction, magnitude)
    ids = oracle.tokens()
    ours = np.asarray(decoder.logits(config, *trained, jnp.asarray(ids.numpy())))
    scale = np.abs(ours).max()

    peft.save_adapter(
        tmp_path / "adapter", config, adapter, settings, direction, magnitude, base_model_name=str(folder)
    )
    _, *again = peft.load_adapter(tmp_path / "adapter", config)
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves([direction, magnitude])))
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert np.abs(oracle.logits(plain, ids) - ours).max() > 0.1 * scale  # the adapter does something
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapted = oracle_peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    np.testing.assert_allclose(oracle.logits(adapted, ids), ours, atol=2e-5 * scale)

    export.write_merged(tmp_path / "merged", folder, export.Trained(config, *trained), dtype="float32")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager")
    np.testing.assert_allclose(oracle.logits(merged, ids), ours, atol=2e-5 * scale)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama, biases, tied", "qwen2"])
def test_what_bitsandbytes_quantised_is_read(saved, tmp_path, kind):
    import oracle
    import torch
    import transformers

    _, folder, config, _ = saved(kind)
    four = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    quantised = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=four, dtype=torch.float32, attn_implementation="eager"
    ).train()  # in evaluation its CPU kernels for 4 bits round the scales to bfloat16
    quantised.save_pretrained(tmp_path / "quantised")
    ids = oracle.tokens()
    expected = oracle.logits(quantised, ids)
    entries = hf.read_entries(tmp_path / "quantised")
    packed = [weight for weight in bnb.grouped(entries).values() if isinstance(weight, bnb.Packed)]
    assert len(packed) == 7 * config.num_layers
    here = ModelConfig(quantization="nf4", double_quant=False)
    for asked, source in ((ModelConfig(), tmp_path / "quantised"), (here, folder)):
        found = _logits(config, hf.load(asked, source, config), ids.numpy())
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
