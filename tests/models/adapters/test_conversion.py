"""The conversion to an ordinary adapter: the same weights on every base, whatever the ranks and the form of the base."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import quantised
from tiny import CONFIG, noisy, random_base

from bidora_jax.models import decoder
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.conversion import converted
from bidora_jax.models.adapters.settings import AdapterConfig

RAGGED = {"rank": 4, "alpha": 6.0, "rank_pattern": (("layers.1.self_attn.q_proj", 2), ("layers.0.mlp.up_proj", 0)),
          "alpha_pattern": (("q_proj", 9.0),), "target_modules": ("q_proj", "up_proj")}  # fmt: skip
TOKENS = jnp.arange(22).reshape(2, 11) % 97


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    ("method", "init", "form"),
    [("lora", "pissa", None), ("dora", "olora", None), ("dora", "pissa", "nf4"), ("lora", "olora", "int8"),
     ("dora", "pissa_niter_1", "nf4 nested")],
)  # fmt: skip
def test_an_adapter_on_any_base_becomes_one_of_twice_the_rank(method, init, form, rslora):
    base = random_base() if form is None else quantised(random_base(), form)
    settings = AdapterConfig(method, init=init, rslora=rslora, **RAGGED)
    adapter = adapters.resolve(settings, CONFIG)
    prepared = initial.prepare_base(base, adapter)
    direction, magnitude = noisy(adapter, *initial.init(adapter, prepared, jax.random.key(0)))
    expected = decoder.logits(CONFIG, adapter, prepared, direction, magnitude, TOKENS)
    written, wide, twice = converted(adapter, settings, prepared, direction)
    assert [site.ranks for site in written.sites] == [(8, 4), (0, 8)]
    np.testing.assert_allclose(
        [site.scales for site in adapters.resolve(wide, CONFIG, strict=False).sites],
        [site.scales for site in adapter.sites],
    )
    for site in written.sites:  # each layer's own rows first
        a = adapters.get(twice["layers"], site.path)["A"]
        assert [bool(np.any(row)) for layer in a for row in layer] == [n < r for r in site.ranks for n in range(8)]
    found = decoder.logits(CONFIG, written, initial.prepare_base(base, written), twice, magnitude, TOKENS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert np.abs(found - decoder.logits(CONFIG, None, base, {}, {}, TOKENS)).max() > 0.1


def test_a_start_from_zero_comes_back_as_it_is():
    settings = AdapterConfig("lora", init="gaussian", rank=3)
    adapter = adapters.resolve(settings, CONFIG)
    direction, _ = initial.init(adapter, random_base(), jax.random.key(0))
    assert converted(adapter, settings, {}, direction) == (adapter, settings, direction)
    a = direction["layers"]["mlp"]["up_proj"]["A"]
    np.testing.assert_allclose(jnp.std(a), 1 / 3, rtol=0.15)  # 156 numbers


def test_a_step_from_a_start_leaves_the_start():
    """The direction is a copy: a step that takes its buffers over must not take the base's."""
    adapter = adapters.resolve(AdapterConfig("lora", rank=3, init="olora", target_modules=("q_proj",)), CONFIG)
    base = initial.prepare_base(random_base(), adapter)
    direction, _ = initial.init(adapter, base, jax.random.key(0))
    jax.tree.map(lambda leaf: leaf.delete(), direction)
    assert np.isfinite(base["layers"]["self_attn"]["q_proj"]["A0"]).all()
