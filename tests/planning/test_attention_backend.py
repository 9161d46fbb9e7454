"""planning/attention_backend.py: where cuDNN's attention is taken, and that nothing differentiates it twice.

No cuDNN is here: its place is taken by JAX's own form of the same public function, which refuses a second derivative as
cuDNN's does. What cuDNN computes is not tested; on a GPU `refusals` compares it with the chunked form before a run takes it.
"""

import re
from dataclasses import replace
from functools import partial

import encoders
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import CONFIG, random_base

from bidora_jax.data.settings import DataConfig
from bidora_jax.errors import InputError
from bidora_jax.kernels import attention
from bidora_jax.machine.memory import Memory
from bidora_jax.models import decoder
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.compute import Compute
from bidora_jax.models.settings import ModelConfig
from bidora_jax.planning import attention_backend, footprint, remat_choice
from bidora_jax.planning.footprint import Footprint
from bidora_jax.training import phases, settings
from bidora_jax.training.bilevel import bilevel_step
from bidora_jax.training.loop import PhaseState
from bidora_jax.training.settings import OptimizerConfig, OuterConfig, SearchConfig
from bidora_jax.training.state import init_state

DATA = DataConfig(batch_size=2)
WINDOWED = replace(CONFIG, window=7)
PLAIN = jax.nn.dot_product_attention


def once(function):
    """The function, to be differentiated neither forward nor in reverse."""

    def refuse(*_):
        raise TypeError("there is no second derivative")

    call = jax.custom_vjp(function)
    call.defvjp(refuse, refuse)
    return call


@pytest.fixture
def cudnn(monkeypatch):
    """A GPU with cuDNN, as far as the rules can see. What every call of it was asked for."""
    asked = []

    def stand_in(q, k, v, *, implementation, **settings):
        assert implementation == "cudnn"
        asked.append({"heads": (q.shape[2], k.shape[2]), **settings})
        plain = once(partial(PLAIN, implementation="xla", **settings))

        def pull(q, k, v, g):
            return jax.vjp(partial(PLAIN, implementation="xla", **settings), q, k, v)[1](g)

        attend = jax.custom_vjp(lambda q, k, v: plain(q, k, v))
        attend.defvjp(lambda q, k, v: (plain(q, k, v), (q, k, v)), lambda kept, g: once(pull)(*kept, g))
        return attend(q, k, v)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    return asked


def settle(model=None, config=CONFIG, data=DATA, dtype=jnp.bfloat16):
    return attention_backend.settle(model or ModelConfig(), config, data, dtype, (16, 48))


# What is chosen


def test_a_cpu_has_the_chunked_form_and_says_nothing():
    assert settle() == (ModelConfig(attention="chunked"), "")
    assert settle(ModelConfig(attention="chunked")) == (ModelConfig(attention="chunked"), "")


def test_cudnn_on_a_cpu_is_refused_with_all_that_stands_against_it():
    asked, packed = ModelConfig(attention="cudnn", dtype="float32"), DataConfig(packing=True)
    with pytest.raises(InputError) as error:
        attention_backend.check(asked, packed)
    for part in ("model.attention cudnn is not for this run", "it needs an NVIDIA GPU, and this is a cpu",
                 "it takes bfloat16 and float16, and the base is float32 (model.dtype)",
                 "it can't keep the records of a row apart (data.packing)", "choose auto or chunked"):  # fmt: skip
        assert part in str(error.value)
    attention_backend.check(ModelConfig(), packed)
    with pytest.raises(InputError, match="this is a cpu"):
        settle(asked)


def test_an_encoder_is_attended_in_chunks_and_cudnn_refused_for_it(cudnn):
    config = encoders.config("bert")
    assert settle(config=config) == (ModelConfig(attention="chunked"), "")
    asked = ModelConfig(attention="cudnn")
    for refuse in (lambda: settle(asked, config), lambda: attention_backend.check_family(asked, config)):
        with pytest.raises(InputError, match="the model is an encoder, and those are attended in chunks alone"):
            refuse()
    attention_backend.check_family(asked, CONFIG)


def test_auto_takes_cudnn_where_it_compiles_and_agrees(cudnn):
    model, said = settle(config=WINDOWED)
    assert model == ModelConfig(attention="cudnn")
    assert said.startswith("attention cudnn: ") and said.endswith("has it at these sizes")
    assert {call["heads"] for call in cudnn} == {(6, 2)}
    # Both padded lengths, and the comparison, in which the window takes part.
    assert [call["local_window_size"] for call in cudnn] == [(6, 0), (6, 0), (attention_backend.TRIED // 3 - 1, 0)]
    assert settle(ModelConfig(attention="cudnn"), WINDOWED) == (ModelConfig(attention="cudnn"), "")


@pytest.mark.parametrize(
    ("dtype", "packing", "said"),
    [(jnp.float32, False, "and the base is float32"), (jnp.bfloat16, True, "can't keep the records of a row apart")],
)
def test_auto_stays_with_chunks_where_the_rules_say_so(cudnn, dtype, packing, said):
    model, line = settle(data=DataConfig(packing=packing), dtype=dtype)
    assert model.attention == "chunked" and line.startswith("attention chunked: cuDNN's won't do, ") and said in line
    assert cudnn == []


def test_what_jax_raises_is_said_and_chunks_are_taken(monkeypatch):
    """This installation has no cuDNN: what it raises is real, with JAX's plugin for CUDA or without; only the GPU is not."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model, line = settle()
    assert model.attention == "chunked"
    said = re.escape("attention chunked: cuDNN's won't do, at heads of 10 it says: cuDNN ")
    assert re.fullmatch(said + r"(is not detected|not found)\.", line)
    with pytest.raises(InputError, match=r"at heads of 10 it says: cuDNN (is not detected|not found)"):
        settle(ModelConfig(attention="cudnn"))


def test_a_kernel_that_is_wrong_is_not_taken(cudnn, monkeypatch):
    assert attention_backend.difference(CONFIG, jnp.bfloat16) < attention_backend.TOLERANCE / 4
    right = jax.nn.dot_product_attention

    def blind(*rows, local_window_size, **settings):
        return right(*rows, local_window_size=None, **settings)

    monkeypatch.setattr(jax.nn, "dot_product_attention", blind)
    assert attention_backend.difference(WINDOWED, jnp.bfloat16) > 3 * attention_backend.TOLERANCE
    model, line = settle(config=WINDOWED)
    assert model.attention == "chunked" and "off the chunked form's" in line


def test_the_choice_is_made_before_remat_and_both_are_said(monkeypatch):
    monkeypatch.setattr(
        attention_backend, "settle", lambda model, *_: (replace(model, attention="chunked"), "attention: so")
    )
    monkeypatch.setattr(remat_choice, "first_phase", lambda *_: (None, PhaseState(None, (None, None))))
    counts = {"dots": 900, "layer": 300}
    monkeypatch.setattr(remat_choice, "largest", lambda phase: None)
    monkeypatch.setattr(
        footprint, "of", lambda problem, *_: Footprint(0, 0, 0, 0, 0, 0, counts[problem.model.remat], 0)
    )
    problem = search_problem("auto", remat="auto")
    levels = remat_choice.MethodSettings("bidora", SearchConfig(hypergradient="auto"), OptimizerConfig(), OuterConfig())
    settled = remat_choice.choose_remat(problem, levels, Memory(1000, "this"))
    assert settled.problem.model == replace(problem.model, attention="chunked", remat="layer")
    first, second = settled.reason.splitlines()
    assert first == "attention: so" and second.startswith("remat layer, hypergradient exact: the fastest that fits")


# Where it goes


def search_problem(kind, remat="layer", **settings):
    model = ModelConfig(attention=kind, remat=remat, attention_chunk=5, loss_chunk=16)
    adapter = adapters.resolve(AdapterConfig(rank=3, target_modules=("q_proj",), **settings), CONFIG)
    return remat_choice.synthetic(CONFIG, model, adapter, random_base(), DATA, 16)


def step_of(problem, form):
    """A bilevel step by plain descent, and its arguments."""
    search, tx = SearchConfig(hypergradient=form), optax.sgd(0.1)
    step = partial(bilevel_step, **phases.level_losses(problem, search), inner_tx=tx, outer_tx=optax.sgd(1.0),
                   hypergradient=phases.HYPERGRADIENTS[form])  # fmt: skip
    random = np.random.default_rng(0)
    batches = [
        {"tokens": random.integers(97, size=(1, 2, 16), dtype=np.int32), "loss_mask": np.ones((1, 2, 16), np.float32)}
        for _ in range(2)
    ]
    direction, magnitude = problem.fresh_adapter()
    direction = jax.tree.map(lambda leaf: leaf + 0.1 * random.normal(size=leaf.shape).astype(np.float32), direction)
    return step, (init_state(direction, magnitude, tx, optax.sgd(1.0), jax.random.key(1)), problem.base, *batches)


@pytest.mark.parametrize("form", ["exact", "reverse", "direct", "finite-difference"])
def test_no_form_differentiates_cudnn_twice(cudnn, form):
    step, arguments = step_of(search_problem("cudnn"), form)
    jax.eval_shape(step, *arguments)  # a second derivative would be refused here
    assert cudnn
    if form == "exact":
        first, _ = step.keywords["inner_loss"]
        with pytest.raises(TypeError):  # and it is, where the mixed product is left to the first pass
            jax.eval_shape(partial(step, inner_loss=lambda *at: first(*at)[0]), *arguments)


def test_what_goes_through_cudnn_and_the_mixed_product_are_of_one_function(cudnn):
    """Dropout, too, is the same in both."""
    problem = search_problem("cudnn", dropout=0.3)
    _, (state, base, train, _) = step_of(problem, "exact")
    losses = phases.level_losses(problem, SearchConfig(hypergradient="exact", gram_penalty=0.1))
    first, second = losses["inner_loss"]
    point = state.direction, state.magnitude, base, train, jax.random.key(2)
    found, expected = jax.jit(first)(*point)[:2], jax.jit(jax.value_and_grad(second))(*point)
    assert cudnn and all(call["is_causal"] and call["scale"] == 10**-0.5 for call in cudnn)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_one_level_and_retrain_go_through_cudnn(cudnn):
    problem = search_problem("cudnn")
    for phase, start in (
        phases.one_level(problem, SearchConfig(steps=1), OptimizerConfig()),
        phases.retrain(problem, settings.RetrainConfig(steps=1), OptimizerConfig(), problem.fresh_adapter(), 0),
    ):
        program, length = remat_choice.largest(phase)
        jax.eval_shape(program.step, start.state, program.frozen, *program.like(length))
        assert cudnn, phase.name
        cudnn.clear()


def test_packed_rows_never_get_there():
    tokens = jnp.zeros((2, 16), jnp.int32)
    batch = {"tokens": tokens, "segments": tokens}
    with pytest.raises(ValueError, match="fused attention can't tell the documents of a row apart"):
        decoder.hidden(CONFIG, None, Compute(attention="cudnn"), random_base(), ({}, {}), batch)


# The call itself, by JAX's own form of it


@pytest.mark.parametrize("window", [None, 3])
def test_the_call_is_the_chunked_form_with_its_gradients(window):
    random = np.random.default_rng(0)
    q, k, v = (jnp.asarray(random.normal(size=(2, 11, heads, 10)), jnp.float32) for heads in (6, 2, 2))
    forms = (partial(attention.fused_attention, implementation="xla"), partial(attention.causal_attention, chunk=4))

    def real(form, q, k, v):
        """What stands in the last two columns is padding: no other column may see it."""
        return form(q, k, v, window=window)[:, :9]

    @partial(jax.jit, static_argnums=0)
    def gradients(form, *rows):
        out, pull = jax.vjp(partial(real, form), *rows)
        return out, *pull(jnp.sin(7 * out))

    first, second = (gradients(form, q, k, v) for form in forms)
    for found, expected in zip(first, second, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    padded = [np.concatenate([row[:, :9], np.full_like(row[:, 9:], 100)], axis=1) for row in (q, k, v)]
    np.testing.assert_array_equal(gradients(forms[0], *padded)[0], first[0])


@pytest.mark.parametrize(("window", "sides"), [(None, None), (1, (0, 0)), (10, (9, 0)), (11, None), (50, None)])
def test_a_window_is_named_as_jax_names_it(cudnn, window, sides):
    """t − w < u ≤ t: w − 1 keys before a query's own and none after it; none that is as long as the row."""
    rows = [jax.ShapeDtypeStruct((2, 11, heads, 10), jnp.bfloat16) for heads in (6, 2, 2)]
    jax.eval_shape(partial(attention.fused_attention, window=window), *rows)
    assert cudnn == [{"heads": (6, 2), "scale": 10**-0.5, "is_causal": True, "local_window_size": sides}]
