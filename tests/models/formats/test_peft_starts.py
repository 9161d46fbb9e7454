"""Starts away from zero: the function of PEFT from the same start, in the files of models/formats/peft.py."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from adapter_folders import logits_of
from peft_oracle import DEPRECATED, peft_model

from bidora_jax.errors import InputError
from bidora_jax.models import decoder
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial, merging
from bidora_jax.models.adapters.conversion import converted
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.formats import hf, hf_config, peft

pytestmark = pytest.mark.filterwarnings(f"ignore:{DEPRECATED}:FutureWarning")

UNEVEN = {"rank": 4, "alpha": 6.0, "rank_pattern": (("q_proj", 2), ("layers.1.mlp.down_proj", 7)),
          "target_modules": ("q_proj", "down_proj"), "layers_to_transform": (0, 1)}  # fmt: skip
STARTS = {
    "gaussian": AdapterConfig("dora", rank=3, alpha=2.5, init="gaussian", modules_to_save=("lm_head",)),
    "pissa": AdapterConfig("lora", **UNEVEN, init="pissa"),
    "pissa dora": AdapterConfig("dora", **UNEVEN, rslora=True, init="pissa", modules_to_save=("lm_head",)),
    "olora": AdapterConfig("lora", **UNEVEN, alpha_pattern=(("q_proj", 9.0),), init="olora"),
    "olora rsdora": AdapterConfig(
        "dora",
        rank=3,
        alpha=2.5,
        rslora=True,
        rank_pattern=(("q_proj", 2),),
        init="olora",
        modules_to_save=("lm_head",),
    ),
}


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA with rank_pattern")
@pytest.mark.parametrize("start", STARTS)
def test_trained_from_the_same_start_the_function_is_that_of_peft(tmp_path, start):
    """PEFT holds the residual in its base, we the start beside ours: the same A, B and m give the same logits."""
    import oracle

    settings, ids = STARTS[start], oracle.tokens()
    oracle.qwen3().save_pretrained(tmp_path / "base")
    config = hf_config.read_config(tmp_path / "base")
    adapter = adapters.resolve(settings, config)
    base = initial.prepare_base(hf.load_base(tmp_path / "base", config), adapter)
    fresh = initial.init(adapter, base, jax.random.key(0))
    expected = oracle.logits(oracle.qwen3(), ids)
    at_start = decoder.logits(config, adapter, base, *fresh, jnp.asarray(ids.numpy()))
    np.testing.assert_allclose(at_start, expected, atol=1e-4)

    adapted = peft_model(oracle.qwen3(), settings)
    expected = oracle.logits(adapted, ids)
    theirs = {name.replace(".default", ""): tensor.numpy() for name, tensor in adapted.state_dict().items()}
    trained = [jax.tree.map(np.array, tree) for tree in fresh]
    for site in adapter.sites:
        for layer in site.layers:
            stacks = {
                leaf: adapters.get(trained[leaf == "m"]["layers"], site.path)[leaf]
                for leaf in "ABm"[: 2 + adapter.magnitude]
            }
            for leaf, stack in stacks.items():
                suffix = {"A": "lora_A.weight", "B": "lora_B.weight", "m": "lora_magnitude_vector.weight"}[leaf]
                tensor = theirs[f"base_model.model.model.layers.{layer}.{site.path}.{suffix}"]
                stack[layer][tuple(map(slice, tensor.shape))] = tensor
    if adapter.whole_modules:
        trained[0]["lm_head"]["weight"][:] = theirs["base_model.model.lm_head.modules_to_save.weight"]
    trained = [jax.tree.map(jnp.asarray, tree) for tree in trained]
    found = decoder.logits(config, adapter, base, *trained, jnp.asarray(ids.numpy()))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    merged = merging.merge(adapter, base, *trained)
    np.testing.assert_allclose(
        decoder.logits(config, None, merged, {}, {}, jnp.asarray(ids.numpy())), expected, atol=1e-4
    )

    import peft as oracle_peft

    written, wide, direction = converted(adapter, settings, base, trained[0])
    peft.save_adapter(tmp_path / "a", config, written, wide, direction, trained[1], base_model_name=None)
    on_original = oracle_peft.PeftModel.from_pretrained(oracle.qwen3(), tmp_path / "a").eval()
    np.testing.assert_allclose(oracle.logits(on_original, ids), expected, atol=1e-4)
    loaded = peft.load_adapter(tmp_path / "a", config)
    np.testing.assert_allclose(logits_of(tmp_path / "base", ids.numpy(), *loaded), expected, atol=1e-4)


@pytest.mark.torch
def test_a_randomised_start_fits_the_original_base(tmp_path):
    """Its subspace is its own, so PEFT's factors can't be taken over; what is written has to give our logits in PEFT."""
    import oracle
    import peft as oracle_peft

    oracle.qwen3().save_pretrained(tmp_path / "base")
    settings, ids = AdapterConfig("dora", rank=3, alpha=2.5, rslora=True, init="pissa_niter_2"), oracle.tokens()
    config = hf_config.read_config(tmp_path / "base")
    adapter = adapters.resolve(settings, config)
    base = initial.prepare_base(hf.load_base(tmp_path / "base", config), adapter)
    fresh = initial.init(adapter, base, jax.random.key(0))
    at_start = decoder.logits(config, adapter, base, *fresh, jnp.asarray(ids.numpy()))
    np.testing.assert_allclose(at_start, oracle.logits(oracle.qwen3(), ids), atol=1e-4)
    direction, magnitude = tiny.noisy(adapter, *fresh)
    expected = decoder.logits(config, adapter, base, direction, magnitude, jnp.asarray(ids.numpy()))
    written, wide, direction = converted(adapter, settings, base, direction)
    peft.save_adapter(tmp_path / "a", config, written, wide, direction, magnitude, base_model_name=None)
    on_original = oracle_peft.PeftModel.from_pretrained(oracle.qwen3(), tmp_path / "a").eval()
    np.testing.assert_allclose(oracle.logits(on_original, ids), expected, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_what_peft_converts_loads_here(tmp_path, start):
    import oracle

    oracle.qwen3().save_pretrained(tmp_path / "base")
    settings = replace(STARTS[start], alpha_pattern=())
    adapted = peft_model(oracle.qwen3(), settings, save_start=tmp_path / "start")
    adapted.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    ids = oracle.tokens()
    loaded = peft.load_adapter(tmp_path / "converted", hf_config.read_config(tmp_path / "base"))
    np.testing.assert_allclose(
        logits_of(tmp_path / "base", ids.numpy(), *loaded), oracle.logits(adapted, ids), atol=1e-4
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"init": "pisa"}, "adapter.init: expected kaiming, .* found 'pisa'"), ({"init": "pissa_niter_x"}, "adapter.init"),
     ({"init": "olora", "dropout": 0.1}, "would drop it with them; set adapter.dropout to 0")],
)  # fmt: skip
def test_starts_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        adapters.resolve(AdapterConfig(**settings), tiny.CONFIG)
