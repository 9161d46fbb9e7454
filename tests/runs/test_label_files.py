"""The head of a regression in its files, and turned back for a run that goes on from it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.data.labels import Labels
from bidora_jax.models.architectures.heads import HEAD_TREE, HeadPart, HeadSpec
from bidora_jax.models.formats.export import Trained
from bidora_jax.runs import label_files

LABELS = Labels("regression", ("a", "b"), (3.0, -1.0), (2.0, 0.5))


def written(bias):
    random = np.random.default_rng(0)
    spec = HeadSpec("sequence", "first", (HeadPart("out", "classifier", (2, 5), bias),))
    out = {"weight": jnp.asarray(random.normal(size=(2, 5)), jnp.float32)}
    out |= {"bias": jnp.asarray(random.normal(size=2), jnp.float32)} if bias else {}
    nothing: Any = None
    trained = Trained(nothing, nothing, {}, {HEAD_TREE: {"out": out}}, {})
    return out, label_files.as_written(trained, label_files.Labelled(LABELS, spec), 0)


def test_the_files_give_values_as_they_are_in_the_data():
    out, found = written(bias=True)
    x = np.random.default_rng(1).normal(size=5)
    values = (np.asarray(out["weight"]) @ x + np.asarray(out["bias"])) * LABELS.std + LABELS.mean
    of_file = found.direction[HEAD_TREE]["out"]
    np.testing.assert_allclose(np.asarray(of_file["weight"]) @ x + np.asarray(of_file["bias"]), values, rtol=1e-5)
    assert found.classes is not None
    assert (found.classes.labels["mean"], found.classes.labels["std"]) == ([0.0, 0.0], [1.0, 1.0])


def test_a_head_without_a_bias_leaves_the_mean_to_the_labels():
    out, found = written(bias=False)
    scaled = out["weight"] * np.array([[2.0], [0.5]])
    np.testing.assert_allclose(found.direction[HEAD_TREE]["out"]["weight"], scaled, rtol=1e-6)
    assert found.classes is not None and found.classes.labels["mean"] == [3.0, -1.0]


@pytest.mark.parametrize("bias", [True, False])
def test_a_run_that_goes_on_from_a_file_begins_with_the_same_head(bias):
    out, found = written(bias)
    direction, _ = label_files.standardised_start(LABELS, (found.direction, {}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), direction[HEAD_TREE]["out"], out)


def test_classes_have_no_scale():
    labels = Labels("classification", ("x", "y"))
    out = {"weight": jnp.ones((2, 3)), "bias": jnp.ones(2)}
    assert label_files.standardised(labels, out) is out
