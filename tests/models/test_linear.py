"""The linear layer on a quantised base: the same function as on the dense weights it stands for, in the memory of the codes.

kernels/save_for_backward.py names the sums that are saved, kernels/xla_cpu/weights.py holds 16-bit stacks as integers.
"""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import hlo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bilevel_problem import MODEL, OPTIMIZERS, batch, dot
from environment import AS_USERS
from forms import FORMS, as_bits, quantised
from tiny import CONFIG, random_base

from bidora_jax.generation import answers, decoding
from bidora_jax.kernels import hypergrad, quantized
from bidora_jax.kernels.cuda import ops
from bidora_jax.models import decoder
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial, merging
from bidora_jax.models.adapters.adapter import LayerAdapter
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.linear import Linear, side_by_side
from bidora_jax.training import objective, optim
from bidora_jax.training.bilevel import bilevel_step
from bidora_jax.training.state import init_state

# Every side its own, and weights that outweigh the activations of eight tokens.
DEEP = replace(CONFIG, num_layers=28, hidden_size=192, intermediate_size=448, head_dim=34)


def adapted(base, method, config=CONFIG, **settings):
    """(adapter, prepared base, direction away from 0, magnitude)"""
    adapter = adapters.resolve(AdapterConfig(method=method, rank=3, **settings), config)
    base = initial.prepare_base(base, adapter)
    direction, magnitude = initial.init(adapter, base, jax.random.key(0))
    noise = np.random.default_rng(3)
    direction = jax.tree.map(lambda d: d + jnp.asarray(0.1 * noise.normal(size=d.shape), d.dtype), direction)
    return adapter, base, direction, magnitude


def dense_twin(base):
    """The same model with the weights that the codes stand for."""

    def dense(leaf):
        if not quantized.is_quantised(leaf):
            return leaf
        return quantized.over_layers(quantized.dense, leaf) if len(leaf.shape) == 3 else quantized.dense(leaf)

    return jax.tree.map(dense, base, is_leaf=quantized.is_quantised)


def assert_close(found, expected, tolerance):
    """By the length of the difference of each leaf."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize(
    ("form", "method", "remat", "gram"),
    [("int8", "lora", "none", 0.0), ("int8", "bidora", "layer", 0.1), ("nf4", "dora", "layer", 0.0),
     ("nf4", "bidora", "none", 0.0), ("nf4 nested", "lora", "layer", 0.0), ("nf4 nested", "dora", "none", 0.1)],
)  # fmt: skip
def test_loss_and_gradients_are_those_of_the_dense_twin(form, method, remat, gram):
    adapter, base, direction, magnitude = adapted(quantised(random_base(), form), method)
    loss = objective.inner_loss(CONFIG, adapter, replace(MODEL, remat=remat), gram_weight=gram)
    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    arguments = (batch(1, 1, np.float32), jax.random.key(0))
    found, expected = (both(direction, magnitude, b, *arguments) for b in (base, dense_twin(base)))
    # float32 rounding: int8 scales rows after the dot, and matrix products differ with their fusion
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize(
    ("name", "form"), [("exact", "int8"), ("exact", "nf4 nested"), ("reverse", "int8"), ("reverse", "nf4")]
)
def test_hypergradients_are_those_of_the_dense_twin(name, form):
    """Forward over reverse and reverse over reverse, inside the scan over layers and its remat."""
    base = quantised(random_base(), form)
    adapter, base, direction, magnitude = adapted(base, "bidora", target_modules=("q_proj", "down_proj"))
    losses = {"inner_loss": objective.inner_loss(CONFIG, adapter, MODEL),
              "outer_loss": objective.outer_loss(CONFIG, adapter, MODEL)}  # fmt: skip
    inner_tx, outer_tx = optim.transformation(OPTIMIZERS["momentum"], 10), optax.sgd(1.0)
    state = init_state(direction, magnitude, inner_tx, outer_tx, jax.random.key(1))
    step = jax.jit(partial(bilevel_step, **losses, inner_tx=inner_tx, outer_tx=outer_tx,
                           hypergradient=getattr(hypergrad, name)))  # fmt: skip
    batches = batch(1, 1, np.float32), batch(2, 1, np.float32)
    found, expected = (step(state, b, *batches)[0] for b in (base, dense_twin(base)))
    h = [jax.tree.map(jnp.subtract, magnitude, after.magnitude) for after in (found, expected)]
    assert dot(h[1], h[1]) > 0
    assert_close(found.direction, expected.direction, 1e-5)
    difference = jax.tree.map(jnp.subtract, *h)
    assert dot(difference, difference) ** 0.5 <= 1e-5 * dot(h[1], h[1]) ** 0.5


def compiled(method, base, remat):
    """One training step on eight tokens, compiled."""
    adapter, base, direction, magnitude = adapted(base, method, DEEP)
    model = replace(MODEL, remat=remat, attention_chunk=64, loss_chunk=64)
    inner = objective.inner_loss(DEEP, adapter, model)
    micro = {"tokens": jnp.zeros((1, 1, 8), jnp.int32), "loss_mask": jnp.ones((1, 1, 8))}
    if method != "bidora":

        def gradient(parameters, base):
            return jax.grad(lambda p: inner(*p, base, micro, jax.random.key(0)))(parameters)

        return jax.jit(gradient), ((direction, magnitude), base)
    tx = optim.transformation(OPTIMIZERS["adamw"], 10)
    state = init_state(direction, magnitude, tx, tx, jax.random.key(0))
    outer = objective.outer_loss(DEEP, adapter, model)

    def step(state, base):
        return bilevel_step(state, base, micro, micro, inner_loss=inner, outer_loss=outer, inner_tx=tx, outer_tx=tx)

    return jax.jit(step), (state, base)


def temporaries(method, base, remat="layer"):
    function, arguments = compiled(method, base, remat)
    return function.lower(*arguments).compile(AS_USERS).memory_analysis().temp_size_in_bytes


@pytest.fixture(scope="module")
def deep():
    return random_base(DEEP)


@pytest.mark.parametrize(("method", "form"), [("lora", "nf4"), ("dora", "int8"), ("bidora", "nf4 nested")])
def test_no_dense_copy_of_the_base_lives_in_a_step(deep, method, form):
    """At 28 layers, within 1.3 layers' dense weights of what the step on the dense base takes."""
    layer = sum(leaf.nbytes for leaf in jax.tree.leaves(deep["layers"])) / DEEP.num_layers
    extra = temporaries(method, quantised(deep, form)) - temporaries(method, deep)
    assert extra <= 1.3 * layer


def test_without_remat_the_codes_are_opened_anew(deep):
    """The residuals of 28 layers would otherwise hold 28 layers' dense weights; what is kept is the dots' sums."""
    layer = sum(leaf.nbytes for leaf in jax.tree.leaves(deep["layers"])) / DEEP.num_layers
    extra = temporaries("dora", quantised(deep, "nf4"), "none") - temporaries("dora", deep, "none")
    assert extra <= 0.1 * DEEP.num_layers * layer


@pytest.mark.parametrize(
    ("form", "method", "passes", "remat"),
    [("int8", "lora", 2, "none"), ("nf4", "dora", 2, "layer"), ("nf4 nested", "dora", 2, "none"),
     ("nf4 nested", "bidora", 6, "layer")],
)  # fmt: skip
def test_a_step_on_cuda_opens_each_weight_twice_a_gradient(monkeypatch, deep, form, method, passes, remat):
    """Once forward and once backward; the bilevel step has three gradients. Lowered for CUDA, where the ops are calls."""
    monkeypatch.setattr(ops, "available", lambda: True)
    function, arguments = compiled(method, quantised(deep, form), remat)
    program = function.trace(*arguments).lower(lowering_platforms=("cuda",))
    target = {"int8": "bidora_int8", "nf4": "bidora_nf4", "nf4 nested": "bidora_nf4_nested"}[form]
    assert len(hlo.foreign_calls(program, target)) == passes * 7


@pytest.mark.parametrize("form", FORMS)
def test_generation_runs_on_the_codes(form):
    base = quantised(random_base(), form)
    prompts = [[*range(5)], [*range(11, 22)]]
    found, expected = (
        answers.complete(decoding.assemble(CONFIG, b), prompts, max_new_tokens=6, ends=[96])
        for b in (base, dense_twin(base))
    )
    assert found == expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_can_be_quantised_too(form, tied):
    config = replace(CONFIG, tie_word_embeddings=tied)
    base = random_base(config)
    for name in {"embed_tokens", "lm_head"} & base.keys():
        weight = jax.tree.map(jnp.asarray, FORMS[form](np.asarray(base[name]["weight"]), jnp.float32))
        base[name] = {"weight": weight}
    twin = dense_twin(base)
    tokens = jnp.arange(22).reshape(2, 11) % 97
    found, expected = (decoder.logits(config, None, b, {}, {}, tokens) for b in (base, twin))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("remat", ["layer", "dots", "none"])
def test_sixteen_bit_stacks_held_as_integers_are_the_same_weights(remat):
    plain = random_base(dtype=jnp.bfloat16)
    found, expected = [], []
    for base, out in ((as_bits(plain), found), (plain, expected)):
        adapter, base, direction, magnitude = adapted(base, "dora")
        loss = objective.inner_loss(CONFIG, adapter, replace(MODEL, remat=remat))
        both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        out.append(both(direction, magnitude, base, batch(1, 1, np.float32), jax.random.key(0)))
        out.append(merging.merge(adapter, base, direction, magnitude)["layers"]["mlp"]["up_proj"]["weight"])
    # The programs differ in where they round activations to 8 bits, which moves a gradient by a share of its length.
    assert_close(found[0], expected[0], 3e-2)
    assert jnp.array_equal(found[1], expected[1])


@pytest.mark.parametrize("remat", ["layer", "none"])
def test_no_second_copy_of_a_sixteen_bit_base_lives_in_a_step(remat):
    base = random_base(DEEP, dtype=jnp.bfloat16)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(base["layers"]))
    held, plain = temporaries("dora", as_bits(base), remat), temporaries("dora", base, remat)
    if remat == "layer":  # without remat a plain base is read back from its bits in the backward pass too
        assert plain - held > 0.8 * weights
    assert held < weights


def test_kept_products_are_not_computed_again(deep):
    """Remat makes the four x·A of LoRA's seven again, which are in B's derivative, and the two other products of six: the sum
    of the last one is in no derivative."""
    counts = {}
    for remat in ("layer", "dots"):
        function, arguments = compiled("lora", as_bits(jax.tree.map(lambda w: w.astype(jnp.bfloat16), deep)), remat)
        counts[remat] = hlo.bfloat16_products(function.lower(*arguments))
    assert counts["layer"] - counts["dots"] == 4 + 2 * 6


ONE_PRODUCT = LayerAdapter(rank=3, scale=0.7, magnitude=True, dropout=0.0, constant_norm=False, starts_nonzero=False)


class Pair(nn.Module):
    """Two linear layers of the same x, of which the second may have another adapter, or none."""

    second: LayerAdapter | None
    together: bool

    @nn.compact
    def __call__(self, x):
        layers = [Linear(6, 5, adapter=ONE_PRODUCT, name="one"), Linear(6, 4, adapter=self.second, name="other")]
        return side_by_side(layers, x) if self.together else [layer(x) for layer in layers]


@pytest.mark.parametrize(
    ("second", "shared"),
    [
        (ONE_PRODUCT, True),
        (replace(ONE_PRODUCT, rank=2, magnitude=False, scale=None), True),
        (replace(ONE_PRODUCT, dropout=0.5), False),
        (replace(ONE_PRODUCT, starts_nonzero=True), False),
        (None, False),
    ],
    ids=["the same", "another rank and scale", "dropout", "a start", "no adapter"],
)
def test_layers_side_by_side_are_the_same_layers(x64, second, shared):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(2, 7, 6)))
    rngs = {"dropout": jax.random.key(1)}
    variables = jax.eval_shape(Pair(second, together=False).init, {"params": jax.random.key(0), **rngs}, x)
    trees = [jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.5, 1, leaf.shape)), variables) for _ in range(2)]

    def gradient(together):
        def loss(variables):
            return sum(jnp.sum(jnp.sin(y)) for y in Pair(second, together).apply(variables, x, rngs=rngs))

        return jax.value_and_grad(loss)

    # The gradient, and forward over it.
    found, expected = (jax.jvp(gradient(together), trees[:1], trees[1:]) for together in (True, False))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12), found, expected)
    products = [
        str(jax.make_jaxpr(lambda v, t=together: Pair(second, t).apply(v, x, rngs=rngs))(trees[0])).count("dot_general")
        for together in (True, False)
    ]
    assert products[1] - products[0] == shared
