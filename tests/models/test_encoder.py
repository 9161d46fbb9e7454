"""models/encoder.py, models/encoder_inputs.py, models/stacks.py: laws that hold whatever the weights are, and PEFT's gradients.

transformers is the oracle of the hidden states in models/architectures/test_encoder.py.
"""

from dataclasses import replace
from functools import partial

import encoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import as_bits, quantised
from tiny import noisy

from bidora_jax.errors import InputError
from bidora_jax.kernels import quantized
from bidora_jax.models import encoder, quantization
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial, merging
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures.architecture import module_name
from bidora_jax.models.compute import DEFAULT, Compute
from bidora_jax.models.settings import ModelConfig
from bidora_jax.models.tape import TapeValues

KEY = jax.random.key(3)
ALL = {"target_modules": ("all-linear",)}
SLOW = pytest.mark.slow
MANY_FORMS = [pytest.param(kind, marks=SLOW) for kind in ("modernbert", "deberta-v3", "deberta-v2")]
"""Kinds whose gradients of second order take long to compile."""
DOTS = Compute(remat="dots", reverse_differentiable=False)


def plain(config, base, batch, compute=DEFAULT):
    return _hidden(config, compute, base, batch)


@partial(jax.jit, static_argnums=(0, 1))
def _hidden(config, compute, base, batch):
    return encoder.hidden(config, None, compute, base, ({}, {}), batch)


def assert_close(found, expected, tolerance):
    """By the largest number of each leaf."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


# Hidden states


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "electra", "distilbert", "esm-2", "esm-1b", "modernbert", "deberta-v3", "deberta-v2"]
)
def test_a_text_is_the_same_alone_padded_packed_and_in_chunks(x64, kind):
    config = encoders.config(kind)
    base = encoders.random_base(config, jnp.float64)
    texts = encoders.texts(config)
    alone = []
    for text in texts:
        batch = encoders.padded([text], width=len(text["tokens"]))
        alone += encoders.of_texts(plain(config, base, batch), batch)
    first, second, third = alone
    for batch, chunk, expected in (
        (encoders.padded(texts), 1024, alone),
        (encoders.padded(texts, width=43, pad=7), 5, alone),
        (encoders.packed(texts), 5, [first, second, third, second, first, second]),
    ):
        x = plain(config, base, batch, Compute(attention_chunk=chunk))
        assert np.isfinite(x).all()
        assert_close(encoders.of_texts(x, batch), expected, 1e-12)


def test_types_are_zero_where_none_are_given_and_of_no_use_to_a_table_of_one_row():
    for kind in ("bert", "roberta", "distilbert"):
        config = encoders.config(kind)
        base, batch = encoders.random_base(config), encoders.padded(encoders.texts(config))
        zeros = {**batch, "types": jnp.zeros_like(batch["types"])}
        without = {name: part for name, part in batch.items() if name != "types"}
        np.testing.assert_array_equal(plain(config, base, zeros), plain(config, base, without))
        ones = plain(config, base, {**batch, "types": jnp.ones_like(batch["types"])})
        assert np.array_equal(ones, plain(config, base, zeros)) == (kind != "bert")


def test_fused_attention_is_refused():
    config = encoders.config("bert")
    with pytest.raises(ValueError, match="encoders have no fused attention"):
        plain(config, encoders.random_base(config), encoders.padded(encoders.texts(config)), Compute(attention="cudnn"))


# Bases


@pytest.mark.parametrize("form", ["int8", "nf4", "nf4 nested", "bits"])
@pytest.mark.parametrize("kind", ["bert", "esm-2", "modernbert", "deberta-v2"])
def test_a_packed_base_is_the_dense_one_that_it_stands_for(kind, form):
    config = encoders.config(kind)
    base, batch = encoders.random_base(config), encoders.padded(encoders.texts(config))
    if form == "bits":
        base = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base)
        packed, dense = as_bits(base), base
    else:
        packed = quantised(base, form)
        dense = jax.tree.map(
            lambda leaf: quantized.over_layers(quantized.dense, leaf) if quantized.is_quantised(leaf) else leaf,
            packed, is_leaf=quantized.is_quantised,
        )  # fmt: skip
    found, expected = (encoders.of_texts(plain(config, tree, batch), batch) for tree in (packed, dense))
    assert {x.dtype for x in found} == {jnp.dtype(jnp.bfloat16 if form == "bits" else jnp.float32)}
    rounding = 1.5e-6 * config.num_layers
    assert_close([x.astype(np.float32) for x in found], [x.astype(np.float32) for x in expected], rounding)


@pytest.mark.parametrize("names", [("all-linear",), ModelConfig().quantized_modules], ids=["all-linear", "roles"])
def test_the_linear_layers_are_quantised_and_nothing_else(names):
    settings = ModelConfig(quantization="nf4", quantized_modules=names)
    for kind in ("bert", "distilbert"):
        config = encoders.config(kind)
        chosen = quantization.resolve(settings, config)
        assert chosen.modules == tuple(f"layers.{linear.path}" for linear in config.linears)
        shapes = quantization.base_shapes(settings, config, jnp.float32)
        packed = [leaf for leaf in jax.tree.leaves(shapes, is_leaf=quantized.is_packed) if quantized.is_packed(leaf)]
        assert len(packed) == 6
    with pytest.raises(InputError, match="expected some of query, key, value, dense, word_embeddings, or all-linear"):
        quantization.resolve(replace(settings, quantized_modules=("qkv",)), encoders.config("bert"))


def test_a_bfloat16_base_rounds_and_no_more():
    for kind in ("bert", "esm-2"):
        config = encoders.config(kind)
        base, batch = encoders.random_base(config), encoders.padded(encoders.texts(config))
        narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base)
        states = plain(config, narrow, batch), plain(config, narrow, batch, Compute(dtype=jnp.float32))
        assert [x.dtype for x in states] == [jnp.bfloat16, jnp.float32]
        found, wide, expected = (
            np.concatenate(encoders.of_texts(x.astype(jnp.float32), batch))
            for x in (*states, plain(config, base, batch))
        )
        assert np.linalg.norm(found - wide) < 0.03 * np.linalg.norm(wide)
        assert np.linalg.norm(wide - expected) < 0.03 * np.linalg.norm(expected)


# Adapters


def problem(kind="bert", dtype=jnp.float64, form=None, **settings):
    """The architecture, an adapter, its base and factors away from zero."""
    config = encoders.config(kind)
    adapter = adapters.resolve(AdapterConfig(**{"rank": 3, **ALL} | settings), config)
    base = encoders.random_base(config, dtype)
    base = initial.prepare_base(base if form is None else quantised(base, form), adapter)
    wide = jnp.promote_types(dtype, jnp.float32)
    trees = noisy(adapter, *initial.init(adapter, base, jax.random.key(0)))
    return config, adapter, base, *jax.tree.map(lambda leaf: leaf.astype(wide), trees)


def rows(config, pack=True):
    texts = encoders.texts(config, lengths=(17, 11, 5))
    return encoders.packed(texts, width=41) if pack else encoders.padded(texts, width=19)


def loss(case, batch, compute, direction, magnitude, tape=None):
    """Some function of the hidden states of all texts."""
    config, adapter, base, *_ = case
    x = encoder.hidden(config, adapter, compute, base, (direction, magnitude), batch, KEY, tape)
    real = encoder.stacks.segments_of(batch) > 0
    weights = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    return jnp.sum(
        jnp.where(real[..., None], jnp.sin(x.astype(weights.dtype)) * weights, 0).astype(
            jnp.float32 if x.dtype == jnp.bfloat16 else x.dtype
        )
    )


@pytest.mark.parametrize(("kind", "method"), [("bert", "lora"), ("bert", "bidora"), ("deberta-v3", "bidora")])
def test_merged_is_adapted(x64, kind, method):
    """In DeBERTa, whose projections of x project relative positions too, only if the adapter acts on both."""
    config, adapter, base, direction, magnitude = problem(kind, method=method)
    batch = rows(config)
    merged = merging.merge(adapter, base, direction, magnitude)
    found = encoder.hidden(config, adapter, Compute(), base, (direction, magnitude), batch)
    assert_close(encoders.of_texts(plain(config, merged, batch), batch), encoders.of_texts(found, batch), 1e-12)
    assert np.abs(found - plain(config, base, batch)).max() > 0.1


def test_an_embedding_that_is_trained_whole_has_a_gradient_through_the_projection(x64):
    case = config, _, _, direction, magnitude = problem("electra", method="lora", modules_to_save=("word_embeddings",))
    batch = rows(config)
    slope = jax.grad(lambda d: loss(case, batch, DOTS, d, magnitude))(direction)["embed_tokens"]["weight"]
    assert (np.abs(slope).max(axis=1) > 0).sum() == len(
        np.unique(np.asarray(batch["tokens"])[np.asarray(batch["segments"]) > 0])
    )


@pytest.mark.parametrize("kind", ["bert", "esm-2", *MANY_FORMS])
def test_gradients_are_the_same_with_every_remat_and_in_chunks_and_right(x64, kind):
    case = config, _, _, direction, magnitude = problem(kind, dropout=0.3)
    batch = rows(config)

    def value(compute, d, m):
        return loss(case, batch, compute, d, m)

    expected, *others = (
        jax.jit(jax.grad(partial(value, compute), argnums=(0, 1)))(direction, magnitude)
        for compute in (Compute(), Compute(remat="none", attention_chunk=7), Compute(remat="dots", attention_chunk=7))
    )
    for found in others:
        assert_close(found, expected, 1e-11)
    move = jax.tree.map(lambda g: jnp.cos(jnp.arange(g.size, dtype=g.dtype)).reshape(g.shape), expected)
    jitted = jax.jit(partial(value, Compute()))
    ends = [jitted(*jax.tree.map(lambda p, v, e=e: p + e * v, (direction, magnitude), move)) for e in (1e-7, -1e-7)]
    slope = sum(jnp.vdot(g, v) for g, v in zip(*map(jax.tree.leaves, (expected, move)), strict=True))
    np.testing.assert_allclose((ends[0] - ends[1]) / 2e-7, slope, rtol=1e-6)


def two_passes(case, batch, compute=DOTS):
    """What the first pass of a batch makes, and the mixed product as a function of its record."""
    config, adapter, base, direction, magnitude = case
    empty = encoder.empty_tape(config, adapter, compute, base, (direction, magnitude), batch, None)

    def first(direction, empty):
        return loss(case, batch, compute, direction, magnitude, empty)

    _, record = jax.jit(jax.grad(first, argnums=(0, 1)))(direction, empty)
    move = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), direction)

    def mixed(record):
        def gradient(d):
            return jax.grad(lambda m: loss(case, batch, compute, d, m, record))(magnitude)

        return jax.jvp(gradient, (direction,), (move,))[1]

    return move, TapeValues(*record), mixed


@pytest.mark.parametrize(
    ("kind", "pack"),
    [
        ("bert", True),
        ("esm-2", True),
        ("distilbert", False),
        *(pytest.param(*kind.values, True, marks=SLOW) for kind in MANY_FORMS),
    ],
)
def test_a_mixed_product_from_the_record_is_the_one_without_and_the_central_difference(x64, kind, pack):
    case = config, _, _, direction, magnitude = problem(kind, dropout=0.3)
    batch = rows(config, pack)
    move, record, mixed = two_passes(case, batch, replace(DOTS, attention_chunk=7))
    found = jax.jit(mixed)(record)
    assert_close(found, jax.jit(mixed)(None), 1e-11)

    slope = jax.jit(jax.grad(lambda d, m: loss(case, batch, Compute(), d, m), argnums=1))

    def gradient(step):
        return slope(jax.tree.map(lambda p, v: p + step * v, direction, move), magnitude)

    difference = jax.tree.map(lambda a, b: (a - b) / 2e-6, gradient(1e-6), gradient(-1e-6))
    assert_close(found, difference, 1e-6)


def test_a_mixed_product_over_a_quantised_base(x64):
    case = problem(form="nf4 nested")
    _, record, mixed = two_passes(case, rows(case[0]))
    assert_close(jax.jit(mixed)(record), jax.jit(mixed)(None), 1e-11)


def test_every_part_of_the_record_is_read_and_spares_two_products_of_four_with_the_frozen_matrices():
    case = problem(dtype=jnp.float32)
    batch = rows(case[0])
    _, record, mixed = two_passes(case, batch)
    mixed = jax.jit(mixed)
    expected = mixed(record)
    assert record.means is None
    for field in ("inputs", "saved", "cotangents"):
        doubled = record._replace(**{field: jax.tree.map(lambda leaf: 2 * leaf, getattr(record, field))})
        change = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), expected, mixed(doubled))
        assert min(jax.tree.leaves(change)) > 1e-3, field
    operations = [mixed.lower(given).compile().cost_analysis()["flops"] for given in (None, record)]
    frozen = sum(linear.out_features * linear.in_features for linear in case[0].linears)
    # The loop over layers stands once in the program.
    assert operations[0] - operations[1] > 2 * batch["tokens"].size * 2 * frozen


def test_a_bfloat16_gradient_is_the_same_saved_as_bits_or_not():
    case = config, _, _, direction, magnitude = problem(dtype=jnp.bfloat16)
    batch = rows(config)
    found, expected = (
        jax.jit(jax.grad(lambda d, compute=compute: loss(case, batch, compute, d, magnitude)))(direction)
        for compute in (DOTS, replace(DOTS, reverse_differentiable=True))
    )
    assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(expected)))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("kind", ["bert", "esm-2", "modernbert", "deberta-v3", "deberta-v2"])
def test_the_gradients_of_an_adapter_are_pefts(tmp_path, kind, method):
    import encoder_oracle
    import peft as oracle_peft
    import torch

    from bidora_jax.models.formats import hf

    model = encoder_oracle.random(kind)
    model.save_pretrained(tmp_path)
    config = encoders.config(kind)
    settings = AdapterConfig(method=method, rank=3, alpha=7.0, **ALL)
    wanted = oracle_peft.LoraConfig(
        r=3, lora_alpha=7.0, use_dora=method == "dora",
        target_modules=rf"{config.names.layers}\.\d+\.({'|'.join(linear.path for linear in config.linears)})",
    )  # fmt: skip
    adapted = oracle_peft.get_peft_model(model, wanted).eval()
    generator = torch.Generator().manual_seed(0)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapted.double()  # the same numbers, and an oracle without rounding of its own
    batch = rows(config, pack=False)
    given = {"input_ids": batch["tokens"]} | ({"token_type_ids": batch["types"]} if config.types > 1 else {})
    shape = *batch["tokens"].shape, config.hidden_size
    weights = np.cos(np.arange(np.prod(shape))).reshape(shape).astype(np.float32)
    for row, length in enumerate(batch["lengths"].tolist()):  # alone: ModernBERT's masks make NaN of padding in float64
        one = {name: torch.tensor(np.asarray(part)[row : row + 1, :length]).long() for name, part in given.items()}
        x = adapted(**one).last_hidden_state[0]
        torch.sum(torch.sin(x) * torch.tensor(weights[row, :length])).backward()

    def tree(leaf, kinds):
        """The tensors of PEFT, stacked."""
        found = {}
        for linear in config.linears:
            parts = {}
            for key, ending in kinds.items():
                names = [module_name(config, layer, linear.path) for layer in range(config.num_layers)]
                names = [f"base_model.model.{name.removeprefix(config.prefix + '.')}.{ending}" for name in names]
                parts[key] = np.stack([leaf(trained[name]).numpy() for name in names])
            found = adapters.put(found, linear.path, parts)
        return {"layers": found}

    pairs = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}
    gains = {"m": "lora_magnitude_vector.default.weight"}
    (values, m_values), (slopes, m_slopes) = (
        (tree(leaf, pairs), tree(leaf, gains) if method == "dora" else {})
        for leaf in (lambda p: p.detach().float(), lambda p: p.grad.float())
    )
    adapter = adapters.resolve(settings, config)
    base = initial.prepare_base(hf.load_base(tmp_path, config), adapter)
    case = config, adapter, base, values, m_values
    found = jax.grad(lambda d, m: loss(case, batch, Compute(), d, m), argnums=(0, 1))(values, m_values)
    assert_close(found, (slopes, m_slopes), 1e-5)
