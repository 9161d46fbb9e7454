"""The formats as pytrees: what a stack, a slice, a scan and a jit see, and that all forms of one weight are one weight."""

import os
import subprocess
import sys
from pathlib import Path

import forms
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import FORMS, SHAPE, weights

from bidora_jax.kernels import quantized


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64])
def test_a_layer_of_a_stack_is_the_weight_alone(form, dtype, x64):
    each, stack = weights(form, dtype=dtype)
    assert (stack.shape, stack.dtype) == ((3, *SHAPE), dtype)
    for index, alone in enumerate(each):
        layer = quantized.Layer(stack, jnp.int32(index))
        for function in (quantized.dense, lambda weight: quantized.opened(weight)[0]):
            np.testing.assert_array_equal(function(layer), function(alone))


@pytest.mark.parametrize("form", FORMS)
def test_opened_stands_for_dense(form):
    each, _ = weights(form, dtype=jnp.bfloat16)
    matrix, row_scale = quantized.opened(each[0])
    assert matrix.dtype == jnp.bfloat16
    assert (row_scale is None) == (form != "int8")
    product = matrix.astype(jnp.float32) * (1.0 if row_scale is None else row_scale[:, None])
    # (C·absmax)/127 and C·(absmax/127) round differently, by one bit.
    np.testing.assert_allclose(product, quantized.dense(each[0]), rtol=2**-23)


@pytest.mark.parametrize("form", FORMS)
def test_over_layers_is_the_loop(form):
    each, stack = weights(form)
    shifts = jnp.arange(3.0)
    mapped = jax.jit(lambda s: quantized.over_layers(lambda w, shift: quantized.dense(w) + shift, s, shifts))(stack)
    np.testing.assert_array_equal(mapped, [quantized.dense(weight) + i for i, weight in enumerate(each)])
    dense = jnp.stack([quantized.dense(weight) for weight in each])
    np.testing.assert_array_equal(
        mapped, quantized.over_layers(lambda w, shift: quantized.dense(w) + shift, dense, shifts)
    )


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_those_of_the_whole(form):
    each, _ = weights(form, dtype=jnp.bfloat16)
    tokens = jnp.array([[12, 0], [5, 5], [7, 1]])
    whole = quantized.dense(each[0]).astype(jnp.bfloat16)
    np.testing.assert_array_equal(jax.jit(quantized.rows)(each[0], tokens), whole[tokens])
    np.testing.assert_array_equal(quantized.rows(whole, tokens), whole[tokens])


def test_a_dense_weight_is_itself():
    weight = jnp.arange(6.0).reshape(2, 3)
    assert quantized.opened(weight) == (weight, None)
    assert quantized.dense(weight) is weight
    assert not quantized.is_quantised(weight)


@pytest.mark.parametrize("form", FORMS)
def test_a_stack_goes_through_jit_and_back_as_it_is(form):
    _, stack = weights(form)
    again = jax.jit(lambda tree: tree)(stack)
    assert jax.tree.structure(again) == jax.tree.structure(stack)
    assert quantized.tree_bytes(jax.eval_shape(lambda tree: tree, stack)) == sum(
        a.nbytes for a in jax.tree.leaves(stack)
    )
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(stack), strict=True):
        np.testing.assert_array_equal(a, b)


SHARDED = """
import jax, numpy as np
from forms import FORMS, weights

from bidora_jax.kernels import quantized

mesh = jax.make_mesh((2,), ("layers",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("layers"))
for form in FORMS:
    _, stack = weights(form, count=4)
    sharded = jax.device_put(stack, sharding)
    assert all(len(leaf.addressable_shards) == 2 and leaf.addressable_shards[0].data.shape[0] == 2
               for leaf in jax.tree.leaves(sharded))
    every = jax.jit(lambda s: quantized.over_layers(quantized.dense, s))
    np.testing.assert_array_equal(every(sharded), every(stack))
"""


def test_a_stack_is_sharded_over_its_layers():
    """Two devices hold two layers each of every leaf and compute the same weights."""
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": str(Path(forms.__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=os.environ | devices, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_a_weight_is_differentiated(form):
    """A derivative with respect to the scales would keep them; products see a constant."""
    each, _ = weights(form)

    def loss(x, absmax):
        weight = jax.tree.unflatten(jax.tree.structure(each[0]), [*jax.tree.leaves(each[0])[:1], *absmax])
        matrix, row_scale = quantized.opened(weight)
        return jnp.sum(jnp.square(x @ matrix.T * (1.0 if row_scale is None else row_scale[None])))

    scales = [jnp.asarray(leaf) for leaf in jax.tree.leaves(each[0])[1:]]
    floats = [leaf for leaf in scales if leaf.dtype == jnp.float32]
    x = jnp.ones((2, SHAPE[1]))

    def of(x, floats):
        values = iter(floats)
        return loss(x, [next(values) if leaf.dtype == jnp.float32 else leaf for leaf in scales])

    gradients = jax.grad(of, argnums=1)(x, floats)
    assert not any(np.asarray(gradient).any() for gradient in gradients)
    assert np.asarray(jax.grad(of)(x, floats)).any()
