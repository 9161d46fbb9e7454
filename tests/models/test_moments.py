"""The moments are those of what transformers' linear layers are really given, padding apart."""

import jax.numpy as jnp
import numpy as np
import pytest
from random_adapters import KINDS, random_adapter

from bidora_jax.models import moments
from bidora_jax.models.adapters import initial
from bidora_jax.models.architectures.architecture import module_name
from bidora_jax.models.formats import hf, hf_config

pytestmark = pytest.mark.torch
LENGTHS = (23, 9, 17)


def of_transformers(model, run) -> dict[str, np.ndarray]:
    """Σ x·xᵀ of every linear layer by its name; `run` calls the model row by row."""
    import torch

    found: dict[str, np.ndarray] = {}

    def add(name):
        def hook(module, given):
            x = given[0].detach().double().reshape(-1, given[0].shape[-1]).numpy()
            found[name] = found.get(name, 0) + x.T @ x

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(add(name))
    with torch.no_grad():
        run(model)
    return found


def batches(tokens, lengths, rows: int = 2):
    """Two batches, the second of which has a row of padding alone."""
    filled = np.zeros((4, tokens.shape[1]), np.int32)
    segments = np.zeros_like(filled)
    for row, length in enumerate(lengths):
        filled[row, :length], segments[row, :length] = tokens[row, :length], 1
    return [
        {"tokens": jnp.asarray(filled[at : at + rows]), "segments": jnp.asarray(segments[at : at + rows])}
        for at in (0, 2)
    ]


def test_of_a_decoder(tmp_path):
    import oracle

    model, ids = oracle.qwen3(), oracle.tokens()
    model.save_pretrained(tmp_path)
    wanted = of_transformers(model.model, lambda m: [m(ids[n : n + 1, :size]) for n, size in enumerate(LENGTHS)])
    config = hf_config.read_config(tmp_path)
    each = moments.of_layers(config, None, hf.load_base(tmp_path, config), ({}, {}), batches(np.asarray(ids), LENGTHS))
    found = {module_name(config, n, path): one for n, layer in enumerate(each) for path, one in layer.items()}
    assert {name.removeprefix("model.") for name in found} == wanted.keys()
    for name, one in found.items():
        reference = wanted[name.removeprefix("model.")]
        np.testing.assert_allclose(one, reference, atol=1e-5 * np.abs(reference).max(), rtol=0, err_msg=name)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_of_an_encoder(kind, tmp_path):
    import encoder_oracle
    import torch

    model = encoder_oracle.random(kind)
    model.save_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(5, 101, (3, max(LENGTHS)))
    wanted = of_transformers(
        model, lambda m: [m(torch.tensor(tokens[n : n + 1, :size])) for n, size in enumerate(LENGTHS)]
    )
    config = hf_config.read_config(tmp_path).without_output()
    each = moments.of_layers(config, None, hf.load_base(tmp_path, config), ({}, {}), batches(tokens, LENGTHS))
    found = {}
    for n, layer in enumerate(each):
        for path, one in layer.items():
            found[module_name(config, n, path).removeprefix(config.prefix + ".")] = one
    assert found
    for name, one in found.items():
        np.testing.assert_allclose(one, wanted[name], atol=1e-5 * np.abs(wanted[name]).max(), rtol=0, err_msg=name)


def test_an_adapter_changes_what_the_layers_after_it_are_given(tmp_path):
    import oracle

    oracle.qwen3().save_pretrained(tmp_path)
    config, given = hf_config.read_config(tmp_path), batches(np.asarray(oracle.tokens()), LENGTHS)
    base = hf.load_base(tmp_path, config)
    adapter, *trees = random_adapter(KINDS["dora"], config, base)
    plain = list(moments.of_layers(config, None, base, ({}, {}), given))
    found = list(moments.of_layers(config, adapter, initial.prepare_base(base, adapter), tuple(trees), given))
    np.testing.assert_allclose(found[0]["self_attn.v_proj"], plain[0]["self_attn.v_proj"], rtol=1e-5)
    for layer, path in ((0, "mlp.up_proj"), (2, "self_attn.v_proj")):
        assert np.abs(found[layer][path] - plain[layer][path]).max() > 0.01 * np.abs(plain[layer][path]).max()
