"""Heads on a decoder against transformers, exact sums, and hypergradients through the whole step.

tasks/classification.py, tasks/task.py, models/heads.py, models/architectures/heads.py, models/backbone.py
"""

from functools import partial

import encoders
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from bilevel_problem import MODEL, OPTIMIZERS, dot
from labelled_problems import CONFIG, labelled, problem

from bidora_jax.models import backbone, heads, stacks
from bidora_jax.models.architectures.heads import HEAD_TREE, HeadPart, HeadSpec
from bidora_jax.models.compute import Compute
from bidora_jax.training import objective, optim
from bidora_jax.training.bilevel import bilevel_step
from bidora_jax.training.state import init_state

TYPES = ("classification", "multilabel", "regression", "tokens")


@pytest.mark.parametrize(
    ("type", "micro", "packed", "kind", "form"),
    [
        ("classification", 1, True, "bert", "nf4"),
        ("multilabel", 3, True, "", None),
        ("regression", 1, False, "bert", None),
        ("regression", 3, True, "", "nf4"),
        ("tokens", 3, False, "", None),
    ],
)
def test_the_exact_hypergradient_is_the_central_difference_of_the_whole_step(x64, type, micro, packed, kind, form):
    config = encoders.config(kind) if kind else CONFIG
    weights = (0.5, 2.0, 1.25) if type != "regression" else None
    task, adapter, base, direction, magnitude = problem(type, weights=weights, config=config, form=form)
    tx = optim.transformation(OPTIMIZERS["adamw"], 10)
    inner = objective.inner_two_pass(config, adapter, MODEL, MODEL, task=task)
    losses = {"inner_loss": inner, "outer_loss": objective.outer_loss(config, adapter, MODEL, task=task)}
    how = {"micro": micro, "packed": packed, "vocabulary": config.vocab_size}
    train, val = (jax.tree.map(jnp.asarray, labelled(type, 3, seed, **how)) for seed in (1, 2))
    step = jax.jit(partial(bilevel_step, **losses, inner_tx=tx, outer_tx=optax.sgd(1.0)))
    plain = objective.inner_loss(config, adapter, MODEL, task=task)

    @jax.jit
    def whole_map(state, magnitude):
        gradient = jax.grad(lambda d: plain(d, magnitude, base, train, state.key))(state.direction)
        updates, _ = tx.update(gradient, state.inner_opt, state.direction)
        moved = optax.apply_updates(state.direction, updates)
        return losses["outer_loss"](moved, magnitude, base, val, state.key)

    state = init_state(direction, magnitude, tx, optax.sgd(1.0), jax.random.key(1))
    for _ in range(3):
        after, _ = step(state, base, train, val)
        state = after._replace(magnitude=state.magnitude)
    after, _ = step(state, base, train, val)
    h = jax.tree.map(jnp.subtract, state.magnitude, after.magnitude)
    random = np.random.default_rng(7)
    along = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), magnitude)

    def shifted(t):
        return float(whole_map(state, jax.tree.map(lambda m, v: m + t * v, state.magnitude, along)))

    width = 1e-4
    difference = (8 * (shifted(width) - shifted(-width)) - (shifted(2 * width) - shifted(-2 * width))) / (12 * width)
    np.testing.assert_allclose(dot(h, along), difference, rtol=1e-6)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.direction[HEAD_TREE], direction[HEAD_TREE])
    assert all(move > 0 for move in jax.tree.leaves(moved))  # the head is trained on the direction's level


@pytest.mark.parametrize("type", TYPES)
def test_micro_batches_give_the_loss_and_gradient_of_one_large_batch(x64, type):
    weights = (0.5, 2.0, 1.25) if type != "regression" else None
    task, adapter, base, *trained = problem(type, weights=weights)
    small = labelled(type, 3, 5, micro=3)
    large = {name: part.reshape(1, -1, *part.shape[2:]) for name, part in small.items()}
    loss = objective.inner_loss(CONFIG, adapter, Compute(), task=task)
    found, wanted = (
        jax.value_and_grad(loss)(trained[0], trained[1], base, jax.tree.map(jnp.asarray, one), None)
        for one in (small, large)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), found, wanted)


def test_packed_rows_have_the_loss_of_their_documents_apart():
    task, adapter, base, *trained = problem("classification", jnp.float32)
    trained = tiny.noisy(adapter, *trained)
    packed = {name: jnp.asarray(part[0]) for name, part in labelled("classification", 3, 5, packed=True).items()}
    together = task.loss_sum(CONFIG, adapter, Compute(), base, trained, packed)
    apart = 0.0
    for row, slot in np.argwhere(np.asarray(packed["weights"]) > 0):
        own = np.asarray(packed["segments"][row] == slot + 1)
        one = {"tokens": np.asarray(packed["tokens"])[row, own][None], "lengths": np.array([own.sum()], np.int32),
               "labels": packed["labels"][row, slot][None, None], "weights": np.ones((1, 1), np.float32)}  # fmt: skip
        apart += task.loss_sum(CONFIG, adapter, Compute(), base, trained, jax.tree.map(jnp.asarray, one))
    np.testing.assert_allclose(together, apart, rtol=1e-5)
    assert float(task.weight(packed)) == packed["weights"].sum() == 3


def test_a_head_pools_the_first_the_last_or_the_mean_and_applies_its_parts():
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 7, 5)).astype(np.float32)
    segments = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1]], np.int32)
    by_hand = {"first": x[0, [0, 3]], "last": x[0, [2, 4]], "mean": np.stack([x[0, :3].mean(0), x[0, 3:5].mean(0)])}
    parts = (HeadPart("dense", "head.dense", (3, 5)), HeadPart("norm", "head.norm", (3,), bias=False),
             HeadPart("out", "classifier", (2, 3)))  # fmt: skip
    weights = {"dense": {"weight": random.normal(size=(3, 5)), "bias": random.normal(size=3)},
               "norm": {"weight": random.normal(size=3)},
               "out": {"weight": random.normal(size=(2, 3)), "bias": random.normal(size=2)}}  # fmt: skip
    weights = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), weights)
    for pool, wanted in by_hand.items():
        spec = HeadSpec("sequence", pool, parts, "relu", eps=0.1)
        held, trained = (
            {HEAD_TREE: {"dense": weights["dense"], "norm": weights["norm"]}},
            {HEAD_TREE: {"out": weights["out"]}},
        )
        found = heads.outputs(spec, held, trained, jnp.asarray(x), jnp.asarray(segments), 2)
        by = jax.tree.map(np.asarray, weights)
        z = np.maximum(wanted @ by["dense"]["weight"].T + by["dense"]["bias"], 0)
        z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 0.1) * by["norm"]["weight"]
        np.testing.assert_allclose(found[0], z @ by["out"]["weight"].T + by["out"]["bias"], rtol=1e-4, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_a_decoder_as_a_classifier_is_transformers(tmp_path, kind):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    from bidora_jax.models.formats import hf, hf_config, hf_head

    folder = tiny.write_model_folder(tmp_path / "model")
    auto = AutoModelForSequenceClassification if kind == "sequence" else AutoModelForTokenClassification
    theirs = auto.from_pretrained(folder, num_labels=5, pad_token_id=0, dtype="float32").eval()
    theirs.save_pretrained(tmp_path / "classifier")
    config = hf_config.read_config(tmp_path / "classifier").without_output()
    spec = config.head(kind, 5)
    assert hf_head.outputs_in(tmp_path / "classifier", config, kind) == 5
    base = {
        **hf.load_base(tmp_path / "classifier", config),
        HEAD_TREE: hf_head.load(tmp_path / "classifier", config, spec),
    }
    lengths = np.array([11, 7, 3], np.int32)
    tokens = np.where(np.arange(11) < lengths[:, None], np.random.default_rng(1).integers(1, 97, size=(3, 11)), 0)
    batch = {"tokens": jnp.asarray(tokens, jnp.int32), "lengths": jnp.asarray(lengths)}
    x = backbone.hidden(config, None, Compute(), base, ({}, {}), batch)
    found = np.asarray(heads.outputs(spec, base, {}, x, stacks.segments_of(batch), 1))
    with torch.no_grad():
        mask = torch.tensor(np.arange(11) < lengths[:, None]).long()
        wanted = theirs(input_ids=torch.tensor(tokens), attention_mask=mask).logits.numpy()
    if kind == "sequence":
        np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    else:
        own = mask.numpy() > 0
        np.testing.assert_allclose(found[own], wanted[own], rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
