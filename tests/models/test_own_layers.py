"""models/own_layers.py: the layer of one's own model is the formula, on every form of the base, to second order."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bidora_jax
from bidora_jax.kernels import dora, quantized
from bidora_jax.models import own_layers

SCALE = 1.7
PAGE = Path(bidora_jax.__file__).parent / "guides" / "own_models.md"


def case(quantization: str = "none", bias: bool = True):
    random = np.random.default_rng(0)
    weight, offset = random.normal(size=(11, 130)), random.normal(size=11)
    layer = own_layers.freeze(weight, offset if bias else None, quantization=quantization)
    direction, magnitude = own_layers.start(jax.random.key(0), layer, rank=3)
    direction = dora.Direction(direction.A, jnp.asarray(random.normal(size=(11, 3))))
    return (
        layer,
        jnp.asarray(random.normal(size=(2, 5, 130))),
        direction,
        magnitude * jnp.asarray(random.uniform(0.5, 2, 11)),
    )


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_the_start_changes_nothing(x64, quantization):
    layer, x, direction, _ = case(quantization)
    untouched, magnitude = own_layers.start(jax.random.key(1), layer, rank=3)
    expected = x @ quantized.dense(layer.weight).T + layer.bias[None, None]
    np.testing.assert_allclose(
        own_layers.apply(layer, x, untouched, magnitude, scale=SCALE), expected, rtol=1e-6, atol=1e-6
    )
    assert np.abs(own_layers.apply(layer, x, direction, magnitude, scale=SCALE) - expected).max() > 0.1


@pytest.mark.parametrize("lora", [False, True], ids=["dora", "lora"])
@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_a_layer_is_the_product_with_its_merged_weight(x64, quantization, lora):
    layer, x, direction, magnitude = case(quantization)
    magnitude = None if lora else magnitude
    w = own_layers.merged(layer, direction, magnitude, scale=SCALE)
    found = own_layers.apply(layer, x, direction, magnitude, scale=SCALE)
    np.testing.assert_allclose(
        found, x @ w.T + layer.bias[None, None], rtol=2e-5, atol=2e-5 if quantization != "none" else 1e-10
    )
    v = quantized.dense(layer.weight) + SCALE * direction.B @ direction.A
    by_hand = v if magnitude is None else magnitude[:, None] * v / jnp.linalg.norm(v, axis=1, keepdims=True)
    np.testing.assert_allclose(w, by_hand, rtol=1e-5, atol=1e-6)


def test_without_a_bias_there_is_none_and_the_dtype_is_that_of_x():
    layer, x, direction, magnitude = case(bias=False)
    plain = own_layers.apply(layer, jnp.zeros_like(x, jnp.bfloat16), direction, magnitude, scale=SCALE)
    assert plain.dtype == jnp.bfloat16 and not np.asarray(plain, np.float32).any()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_hypergradient_through_an_update_is_the_central_difference(x64, quantization):
    layer, x, direction, magnitude = case(quantization)

    def loss(d, m, rows):
        return jnp.mean(jnp.sin(own_layers.apply(layer, rows, d, m, scale=SCALE)))

    def after(m):
        slope = jax.grad(loss)(direction, m, x[0])
        moved = jax.tree.map(lambda d, g: d - 0.3 * g, direction, slope)
        return loss(moved, m, x[1])

    found = jax.grad(after)(magnitude)
    way = jnp.asarray(np.random.default_rng(1).normal(size=11))
    step = 1e-5
    expected = (after(magnitude + step * way) - after(magnitude - step * way)) / (2 * step)
    np.testing.assert_allclose(found @ way, expected, rtol=1e-6)


def test_a_kernel_of_another_shape_and_an_unknown_form_are_refused():
    with pytest.raises(ValueError, match=r"one weight of shape \(out, in\), found \(2, 3, 4\)"):
        own_layers.freeze(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="quantization is none, int8 or nf4, found 'int4'"):
        own_layers.freeze(np.zeros((2, 3)), quantization="int4")


def test_the_page_runs_as_it_stands_and_learns(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    held: dict = {}
    exec(compile(example, "own_models.md", "exec"), held)
    lines = [list(map(float, line.split())) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1][1] < 0.5 * lines[0][1] and lines[-1][2] < lines[0][2]
    assert {type(layer.weight) for layer in held["base"].values()} == {quantized.NF4}
    assert held["weights"]["hidden"].shape == (96, 64)
