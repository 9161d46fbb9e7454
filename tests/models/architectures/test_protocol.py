"""models/architectures/architecture.py, models/base.py: an architecture is data.

A made-up one goes through adapters, files, quantisation and planning by its description alone.
"""

import json
from dataclasses import dataclass, replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from bidora_jax.errors import InputError
from bidora_jax.generation import ensembles
from bidora_jax.kernels import quantized
from bidora_jax.models import decoder, quantization
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import drift, initial, lora_approximation, merging
from bidora_jax.models.adapters.conversion import converted
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures.architecture import (
    Architecture,
    LinearSpec,
    TensorSpec,
    endings,
    linear_names,
    name_table,
)
from bidora_jax.models.architectures.heads import HeadPart, HeadSpec, Kind
from bidora_jax.models.base import dense_shapes, dtype_of, head_of
from bidora_jax.models.formats import hf, peft
from bidora_jax.models.settings import ModelConfig
from bidora_jax.planning import plans


@dataclass(frozen=True)
class Encoder:
    """Names like BERT's, some of them endings of others; q and k in one matrix, five linear layers, and an output of its own."""

    num_layers: int = 3
    vocab_size: int = 37
    hidden_size: int = 22
    max_positions: int = 53
    num_heads: int = 2
    num_kv_heads: int = 2
    head_dim: int = 7
    window: int | None = None
    tied: bool = False
    types: int = 0
    prefix: str = "bert"
    layer_prefix: str = "bert.encoder.layer"

    def untied(self) -> "Encoder":
        return self

    def without_output(self) -> "Encoder":
        return self

    def head(self, kind: Kind, outputs: int) -> HeadSpec:
        return HeadSpec(
            kind, "first" if kind == "sequence" else "each", (HeadPart("out", "classifier", (outputs, 22)),)
        )

    def ignores(self, name: str) -> bool:
        return name.startswith("classifier.")

    def canonical(self, name: str) -> str:
        return name

    @property
    def linears(self) -> tuple[LinearSpec, ...]:
        return (
            LinearSpec("attention.query_key", ("q", "k"), 28, 22),
            LinearSpec("attention.value", ("v",), 14, 22),
            LinearSpec("attention.output.dense", ("o",), 22, 14),
            LinearSpec("intermediate.dense", ("up",), 34, 22),
            LinearSpec("output.dense", ("down",), 22, 34),
        )

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        outside = [
            TensorSpec(("embed_tokens", "weight"), "bert.embeddings.word_embeddings.weight", (37, 22)),
            TensorSpec(("embeddings", "position_embeddings", "weight"), "bert.embeddings.positions.weight", (53, 22)),
            TensorSpec(("lm_head", "weight"), "generator.output.weight", (37, 22)),
            TensorSpec(("pooler", "weight"), "bert.pooler.dense.weight", (22, 22)),
        ]
        inside = {"attention.LayerNorm.weight": (22,)}
        for linear in self.linears:
            inside |= {f"{linear.path}.weight": linear.shape, f"{linear.path}.bias": (linear.out_features,)}
        stacked = [TensorSpec(("layers", *name.split(".")), name, shape) for name, shape in inside.items()]
        return tuple(sorted(outside + stacked, key=lambda one: one.path))


MODEL = Encoder()
ALL = {"target_modules": ("all-linear",)}
SETTINGS = {
    "dora": AdapterConfig(
        "dora", rank=3, alpha=4.5, target_modules=("query_key", "output.dense"), layers_to_transform=(0, 2),
        rank_pattern=((r"layer.2.*query_key", 5),), modules_to_save=("word_embeddings",),
    ),
    "lora": AdapterConfig("lora", rank=3, alpha=4.5, rslora=True, init="pissa", **ALL),
}  # fmt: skip


@pytest.fixture(scope="module")
def base():
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), dense_shapes(MODEL, "float32")
    )


def trained(kind: str, base):
    adapter = adapters.resolve(SETTINGS[kind], MODEL)
    base = initial.prepare_base(base, adapter)
    return adapter, base, *tiny.noisy(adapter, *initial.init(adapter, base, jax.random.key(0)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base):
    """The model as files that this package did not write."""
    folder = tmp_path_factory.mktemp("encoder")
    tensors = {}
    for one in MODEL.tensors:
        leaf = np.asarray(adapters.get(base, ".".join(one.path)))
        if one.stacked:
            tensors |= {f"bert.encoder.layer.{layer}.{one.name}": leaf[layer] for layer in range(3)}
        else:
            tensors[one.name] = leaf
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def test_both_are_architectures():
    assert isinstance(MODEL, Architecture) and isinstance(tiny.CONFIG, Architecture)


def declared(config, dtype):
    """The base tree with the variables that the modules of a decoder declare."""
    x = jax.ShapeDtypeStruct((1, 2, config.hidden_size), dtype)
    angle = jax.ShapeDtypeStruct((2, config.head_dim), dtype)
    layer = jax.eval_shape(decoder.DecoderLayer(config, None).init, jax.random.key(0), x, angle, angle)["base"]
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((config.num_layers, *leaf.shape), leaf.dtype), layer)
    vocabulary = {"weight": jax.ShapeDtypeStruct((config.vocab_size, config.hidden_size), dtype)}
    norm = {"weight": jax.ShapeDtypeStruct((config.hidden_size,), dtype)}
    base = {"embed_tokens": vocabulary, "layers": stacked, "norm": norm}
    return base if config.tie_word_embeddings else {**base, "lm_head": vocabulary}


@pytest.mark.parametrize("flags", list(product((False, True), repeat=5)))
def test_the_table_of_a_decoder_is_the_tree_that_its_layers_ask_for(flags):
    names = ("tie_word_embeddings", "qk_norm", "qkv_bias", "o_bias", "mlp_bias")
    config = replace(tiny.CONFIG, **dict(zip(names, flags, strict=True)))
    assert dense_shapes(config, jnp.bfloat16) == declared(config, jnp.bfloat16)
    assert config.untied() == replace(config, tie_word_embeddings=False)


def test_an_ending_selects_one_linear_layer_of_each_layer_and_nothing_else():
    found = {linear.path: endings(MODEL, linear.path) for linear in MODEL.linears}
    assert found.pop("output.dense") == tuple(f"bert.encoder.layer.{layer}.output.dense" for layer in range(3))
    assert found == {
        "attention.query_key": ("query_key",), "attention.value": ("value",),
        "attention.output.dense": ("attention.output.dense",), "intermediate.dense": ("intermediate.dense",),
    }  # fmt: skip
    assert linear_names(MODEL) == ("query_key", "value", "dense")
    assert all(endings(tiny.CONFIG, linear.path) == (linear.name,) for linear in tiny.CONFIG.linears)


def test_settings_mean_the_modules_of_this_model():
    sites = {site.path: site for site in adapters.resolve(SETTINGS["dora"], MODEL).sites}
    assert {path: site.ranks for path, site in sites.items()} == {
        "attention.query_key": (3, 0, 5), "attention.output.dense": (3, 0, 3), "output.dense": (3, 0, 3)
    }  # fmt: skip
    assert adapters.resolve(SETTINGS["dora"], MODEL).whole_modules == ("embed_tokens",)
    assert len(adapters.resolve(SETTINGS["lora"], MODEL).sites) == 5
    with pytest.raises(InputError, match=r"matches 'qkv'.*expected some of dense, query_key, value, longer"):
        adapters.resolve(AdapterConfig(target_modules=("qkv",)), MODEL)
    with pytest.raises(InputError, match="modules_to_save: expected output or word_embeddings, found 'lm_head'"):
        adapters.resolve(AdapterConfig(**ALL, modules_to_save=("lm_head",)), MODEL)
    with pytest.raises(InputError, match=r"has to match all of a name, such as bert\.encoder\.layer\.0\.attention"):
        adapters.resolve(AdapterConfig(target_modules=r"x\.y"), MODEL)


def test_what_is_trained_is_counted():
    found = adapters.trainable(adapters.resolve(SETTINGS["dora"], MODEL), MODEL)
    direction = (3 + 5) * (28 + 22) + 6 * (22 + 14) + 6 * (22 + 34)
    assert found == {"direction": direction, "magnitude": 2 * (28 + 22 + 22), "embed_tokens": 37 * 22}


def test_an_adapter_starts_as_the_model_and_merges_to_its_formula(base):
    adapter, prepared, direction, magnitude = trained("dora", base)
    fresh = initial.init(adapter, prepared, jax.random.key(0))
    same = merging.merge(adapter, prepared, *fresh)
    jax.tree.map(lambda found, expected: np.testing.assert_allclose(found, expected, atol=2e-6), same, base)
    merged = merging.merge(adapter, prepared, direction, magnitude)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    for site in adapter.sites:
        w0, pair = adapters.get(base["layers"], site.path)["weight"], adapters.get(direction["layers"], site.path)
        m = adapters.get(magnitude["layers"], site.path)["m"]
        for layer, scale in enumerate(site.scales):
            v = w0[layer] + scale * pair["B"][layer] @ pair["A"][layer]
            expected = m[layer][:, None] * v / jnp.linalg.norm(v, axis=1, keepdims=True) if scale else w0[layer]
            found = adapters.get(merged["layers"], site.path)["weight"][layer]
            np.testing.assert_allclose(found, expected, atol=5e-6)
    np.testing.assert_array_equal(merged["embed_tokens"]["weight"], direction["embed_tokens"]["weight"])
    assert {one.module for one in drift.drift(adapter, prepared, direction, magnitude)} == set(adapter.targets)


def test_a_peft_folder_holds_this_models_names(base, tmp_path):
    adapter, _, direction, magnitude = trained("dora", base)
    peft.save_adapter(tmp_path / "a", MODEL, adapter, SETTINGS["dora"], direction, magnitude, base_model_name=None)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert len(tensors) == 3 * 2 * 3 + 1
    assert tensors["base_model.model.bert.encoder.layer.2.attention.query_key.lora_A.weight"].shape == (5, 22)
    assert tensors["base_model.model.bert.encoder.layer.0.output.dense.lora_magnitude_vector"].shape == (22,)
    assert tensors["base_model.model.bert.embeddings.word_embeddings.weight"].shape == (37, 22)
    again, *trees = peft.load_adapter(tmp_path / "a", MODEL)
    assert again == replace(adapter, constant_norm=True)
    jax.tree.map(np.testing.assert_array_equal, trees, [direction, magnitude])
    settings = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    patterns = {"layer": False, "layers": True, ("x", "layer"): False, ("x",): True, 7: True, True: True}
    for pattern, refused in patterns.items():
        file = tmp_path / "a" / "adapter_config.json"
        file.write_text(json.dumps(settings | {"layers_pattern": pattern}))
        if refused:
            with pytest.raises(InputError, match=r"layers_pattern: .* \(here it is 'layer'\)"):
                peft.load_adapter(tmp_path / "a", MODEL)
        else:
            peft.load_adapter(tmp_path / "a", MODEL)


@pytest.mark.torch
@pytest.mark.parametrize("chosen", [("all-linear",), r".*layer.*"])
def test_the_names_that_are_written_mean_the_same_modules_to_peft(base, tmp_path, chosen):
    """Every linear layer of the layers, and not the pooler, whose name ends like theirs."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    settings = AdapterConfig("lora", rank=3, target_modules=chosen)
    adapter = adapters.resolve(settings, MODEL)
    trees = initial.init(adapter, initial.prepare_base(base, adapter), jax.random.key(0))
    peft.save_adapter(tmp_path / "a", MODEL, adapter, settings, *trees, base_model_name=None)
    written = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"]
    modules = sorted({name.rpartition(".")[0] for name in name_table(MODEL)})
    meant = [name for name in modules if check_target_module_exists(LoraConfig(target_modules=written), name)]
    linears = {f"bert.encoder.layer.{layer}.{linear.path}" for layer in range(3) for linear in MODEL.linears}
    assert set(meant) == linears and len(modules) > len(linears) + 3


def test_a_folder_is_read_and_written(base, folder, tmp_path):
    read = hf.load_base(folder, MODEL)
    jax.tree.map(np.testing.assert_array_equal, read, base)
    hf.save_model(tmp_path / "out", folder, MODEL, read, dtype="float32")
    written, given = load_file(tmp_path / "out" / "model.safetensors"), load_file(folder / "model.safetensors")
    assert written.keys() == given.keys()
    jax.tree.map(np.testing.assert_array_equal, written, given)


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_a_quantised_base_keeps_its_shapes_and_lists_what_is_dense(folder, tmp_path, form):
    settings = ModelConfig(quantization=form, quantized_modules=("query_key", "value", "output"))
    read = hf.load(settings, folder, MODEL)
    shapes = quantization.base_shapes(settings, MODEL, jnp.float32)
    assert jax.tree.structure(read) == jax.tree.structure(shapes)
    assert jax.tree.map(jnp.shape, read) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert dtype_of(read) == jnp.float32 and head_of(read).shape == (37, 22)
    hf.save_model(tmp_path / "out", folder, MODEL, read, dtype="float32")
    listed = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert listed["llm_int8_skip_modules"] == [
        "attention.output.dense", "intermediate.dense", *(f"bert.encoder.layer.{layer}.output.dense" for layer in range(3))
    ]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, hf.load_base(tmp_path / "out", MODEL, "float32"), read)
    with pytest.raises(InputError, match="expected some of query_key, value, dense, output, word_embeddings"):
        quantization.resolve(replace(settings, quantized_modules=("qkv",)), MODEL)


def test_all_linear_quantises_the_layers_and_an_adapter_goes_on_top(folder):
    settings = ModelConfig(quantization="nf4", quantized_modules=("all-linear",))
    packed = hf.load(settings, folder, MODEL)
    leaves = jax.tree.leaves(packed, is_leaf=quantized.is_quantised)
    assert sum(map(quantized.is_quantised, leaves)) == 5
    adapter, prepared, *trees = trained("dora", packed)
    merged = merging.dequantise(merging.merge(adapter, prepared, *trees))
    dense = merging.merge(adapter, initial.prepare_base(merging.dequantise(packed), adapter), *trees)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), merged, dense)


def test_a_start_away_from_zero_is_converted_and_approximated_by_name(base, tmp_path):
    adapter, prepared, direction, magnitude = trained("lora", base)
    expected = merging.merge(adapter, prepared, direction, magnitude)
    wide, settings, factors = converted(adapter, SETTINGS["lora"], prepared, direction)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        merging.merge(wide, base, factors, magnitude),
        expected,
    )
    peft.save_adapter(tmp_path / "a", MODEL, wide, settings, factors, magnitude, base_model_name=None)
    again = peft.load_adapter(tmp_path / "a", MODEL)[0]
    assert [(site.path, site.ranks) for site in again.sites] == [(site.path, site.ranks) for site in wide.sites]
    # alpha is written times √2 and divided by √6 again, which rounds.
    np.testing.assert_allclose([s.scales for s in again.sites], [s.scales for s in wide.sites], rtol=1e-15)
    found = lora_approximation.approximate(adapter, MODEL, prepared, direction, magnitude)
    assert (found.rank, found.error) == (6, 0.0) and "intermediate.dense" in found.settings.target_modules
    assert adapters.resolve(found.settings, MODEL).sites == found.adapter.sites
    merged = merging.merge(found.adapter, base, found.direction, {})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), merged, expected)


def test_the_errors_of_an_approximation_are_by_module_name(base):
    settings = replace(SETTINGS["dora"], modules_to_save=())
    adapter = adapters.resolve(settings, MODEL)
    prepared = initial.prepare_base(base, adapter)
    trees = tiny.noisy(adapter, *initial.init(adapter, prepared, jax.random.key(0)))
    found = lora_approximation.approximate(adapter, MODEL, prepared, *trees, rank=4)
    assert set(found.errors) == {
        f"bert.encoder.layer.{layer}.{site.path}" for site in adapter.sites for layer in (0, 2)
    }


def test_adapters_of_this_model_are_averaged(base):
    given = []
    for kind in ("dora", "lora"):
        adapter = adapters.resolve(replace(SETTINGS[kind], modules_to_save=()), MODEL)
        prepared = initial.prepare_base(base, adapter)
        trees = tiny.noisy(adapter, *initial.init(adapter, prepared, jax.random.key(0)))
        given.append((ensembles.Member(adapter, *trees), merging.merge(adapter, prepared, *trees)))
    ready = ensembles.inference_form(base, [member for member, _ in given])
    mean = ensembles.average(ready)
    assert mean.adapter.targets == ready[0].adapter.targets and len(mean.adapter.targets) == 5
    for path in mean.adapter.targets:
        weights = [adapters.get(merged["layers"], path)["weight"] for _, merged in given]
        pair, gain = adapters.get(mean.direction["layers"], path), adapters.get(mean.magnitude["layers"], path)["gain"]
        found = gain[..., None] * (adapters.get(base["layers"], path)["weight"] + pair["B"] @ pair["A"])
        np.testing.assert_allclose(found, (weights[0] + weights[1]) / 2, atol=1e-5)


def test_bytes_and_arithmetic_are_counted():
    plan = plans.Plan()
    assert plans.base_bytes(MODEL, replace(plan, model=ModelConfig(quantized_modules=("all-linear",))), jnp.float32) == 4 * (
        3 * sum(out * (inside + 1) for out, inside in ((28, 22), (14, 22), (22, 14), (34, 22), (22, 34))) + 3 * 22
        + 37 * 22 * 2 + 53 * 22 + 22 * 22
    )  # fmt: skip
    plan = replace(plan, adapter=AdapterConfig(method="lora"), model=ModelConfig(remat="dots"))
    tokens = plan.data.batch_size * plan.data.accumulation * plan.data.max_length
    linears = 3 * (28 * 22 + 14 * 22 + 22 * 14 + 34 * 22 + 22 * 34)
    assert plans.arithmetic(MODEL, plan) == 2 * tokens * (2 * linears + 2 * 37 * 22)
