"""The table of derivatives in kernels/__init__.py, cell by cell, against JAX's own derivatives of each function's formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax import kernels
from bidora_jax.kernels import (
    activations,
    attention,
    class_losses,
    disentangled,
    dora,
    encoder_attention,
    losses,
    matmul,
    norms,
    rope,
    row_gain,
    swiglu,
)
from bidora_jax.kernels.xla_cpu import bfloat16, outline, reductions, transpose

WAYS = ("reverse", "forward", "fwd over rev", "rev over rev", "vmap")
BF16 = jnp.dtype(jnp.bfloat16)


def table() -> dict[str, dict[str, str]]:
    rows = [line.split() for line in (kernels.__doc__ or "").splitlines() if line.split()[-1:] in (["yes"], ["wide"])]
    return {name: dict(zip(WAYS, cells, strict=True)) for name, *cells in rows}


def numbers(seed: int, *shape: int):
    """As wide as the test has it; the cases cast it."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def attend(q, k, v):
    """Causal grouped-query attention written out."""
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(part, groups, axis=2) for part in (k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(seen[None, None], scores, -jnp.inf), axis=-1), v)


def attend_both_ways(q, k, v, seen):
    """Attention written out, over the tokens that are seen."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1), v)


def layer_normed(x, w, b):
    centred = x - jnp.mean(x, -1, keepdims=True)
    row = (1,) * (x.ndim - 1) + w.shape
    return centred * jax.lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-6) * w.reshape(row) + b.reshape(row)


def by_position(q, k, key_rows, query_rows):
    """Both position terms of DeBERTa's scores, row by row."""
    difference = jnp.arange(6)[None, :] - jnp.arange(6)[:, None] + 6
    return 0.3 * (
        jnp.einsum("bqhd,qkhd->bhqk", q, key_rows[difference])
        + jnp.einsum("bkhd,qkhd->bhqk", k, query_rows[difference])
    )


def rotated(x, cos, sin):
    half = x.shape[-1] // 2
    turned = jnp.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return x * cos[None, :, None] + turned * sin[None, :, None]


def cases(dtype):
    """Of each function: itself, its formula, and arguments. Frozen ones are closed over."""
    w, a0 = numbers(5, 7, 8).astype(dtype), numbers(6, 7, 8).astype(dtype)
    norm_w, embedding = numbers(7, 8).astype(dtype), numbers(9, 17, 8).astype(dtype)
    cos, sin = rope.rope_angles(jnp.arange(6), np.linspace(0.3, 1, 3), dtype=dtype)
    targets, weights = jnp.array([3, 0, 16, 5, 5]), jnp.array([1.0, 0.0, 2.0, 1.0, 1.0])
    heads = numbers(1, 2, 6, 4, 6), numbers(2, 2, 6, 2, 6), numbers(3, 2, 6, 2, 6)
    both_ways = numbers(1, 2, 6, 4, 6), numbers(2, 2, 6, 4, 6), numbers(3, 2, 6, 4, 6)
    segments = jnp.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    apart = jnp.abs(jnp.arange(6)[:, None] - jnp.arange(6)[None, :])
    seen = (segments[:, :, None] == segments[:, None, :]) & (apart <= 3)[None]
    wide = jnp.promote_types(dtype, jnp.float32)
    hard, by_class = jnp.eye(5, dtype=wide)[jnp.array([3, 0, 4])], numbers(4, 5).astype(wide) ** 2

    def narrow(*arrays):
        return tuple(array.astype(dtype) for array in arrays)

    def floats(*arrays):
        return tuple(array.astype(wide) for array in arrays)

    def loss(x, e):
        logits = x @ e.T
        return jnp.sum(weights.astype(logits.dtype) * (jax.nn.logsumexp(logits, 1) - logits[jnp.arange(5), targets]))

    def scaled(y, gain):
        return row_gain.scaled(y, gain, row_gain.save_scaled(y, gain, wide))

    def norm(a, b):
        return dora.row_norm(a0, dora.square_norm(a0), dora.Direction(a, b), scale=2.0)

    return {
        "matmul.frozen_dot": (lambda x: matmul.frozen_dot(x, w), lambda x: x @ w.T, narrow(numbers(1, 3, 8))),
        "matmul.frozen_times": (lambda a: matmul.frozen_times(w, a), lambda a: w @ a.T, narrow(numbers(1, 3, 8))),
        "matmul.product": (matmul.product, lambda x, y: x @ y.T, narrow(numbers(1, 3, 8), numbers(2, 5, 8))),
        "matmul.matmul": (matmul.matmul, jnp.matmul, narrow(numbers(1, 3, 8), numbers(2, 8, 5))),
        "matmul.matmul_transposed_left": (
            matmul.matmul_transposed_left, lambda x, y: x.T @ y, narrow(numbers(1, 6, 4), numbers(2, 6, 8)),
        ),
        "dora.row_norm": (
            norm, lambda a, b: jnp.linalg.norm(a0.astype(wide) + 2 * b @ a, axis=1),
            floats(numbers(1, 3, 8), numbers(2, 7, 3)),
        ),
        "dora.gain": (dora.gain, jnp.divide, floats(numbers(1, 7) ** 2 + 1, numbers(2, 7) ** 2 + 1)),
        "row_gain.save_scaled": (
            lambda y, g: row_gain.save_scaled(y, g, wide), lambda y, g: y * g[None], floats(numbers(1, 3, 7), numbers(2, 7)),
        ),
        "row_gain.scaled": (scaled, lambda y, g: y * g[None], floats(numbers(1, 3, 7), numbers(2, 7))),
        "norms.rms_norm": (
            lambda x: norms.rms_norm(x, norm_w, eps=1e-6),
            lambda x: x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * norm_w[None, None],
            narrow(numbers(1, 2, 3, 8)),
        ),
        "norms.layer_norm": (
            lambda x, w, b: norms.layer_norm(x, w, b, eps=1e-6), layer_normed,
            narrow(numbers(1, 2, 3, 8), numbers(2, 8), numbers(3, 8)),
        ),
        "activations.activate": (
            lambda x: activations.activate(x, "gelu"), lambda x: x * jax.scipy.stats.norm.cdf(x), narrow(numbers(1, 3, 8)),
        ),
        "activations.gated": (
            lambda a, g: activations.gated(a, g, "gelu_tanh"),
            lambda a, g: a * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3))) / 2 * g,
            narrow(numbers(1, 3, 8), numbers(2, 3, 8)),
        ),
        "encoder_attention.segment_attention": (
            lambda *rows: encoder_attention.segment_attention(*rows, segments, chunk=64, window=3),
            lambda *rows: attend_both_ways(*rows, seen), narrow(*both_ways),
        ),
        "disentangled.position_scores": (
            lambda q, k, *rows: disentangled.position_scores(k, *rows, chunk=64, scale=0.3)(0, q), by_position,
            narrow(*both_ways[:2], numbers(4, 13, 4, 6), numbers(5, 13, 4, 6)),
        ),
        "rope.rope": (lambda x: rope.rope(x, cos, sin), lambda x: rotated(x, cos, sin), narrow(heads[0])),
        "swiglu.swiglu": (
            swiglu.swiglu, lambda g, u: jax.nn.silu(g) * u, narrow(numbers(1, 3, 8), numbers(2, 3, 8)),
        ),
        "attention.causal_attention": (
            lambda *rows: attention.causal_attention(*rows, chunk=64), attend, narrow(*heads),
        ),
        "losses.cross_entropy_sum": (
            lambda x: losses.cross_entropy_sum(x, embedding, targets, weights, chunk=4),
            lambda x: loss(x, embedding), narrow(numbers(1, 5, 8)),
        ),
        "losses.trained_cross_entropy_sum": (
            lambda x, e: losses.trained_cross_entropy_sum(x, e, targets, weights, chunk=4), loss,
            floats(numbers(1, 5, 8), numbers(9, 17, 8)),
        ),
        "losses.gram_penalty": (
            lambda x: losses.gram_penalty(x / jnp.linalg.norm(x, axis=1, keepdims=True)),
            lambda x: jnp.linalg.norm(
                (u := x / jnp.linalg.norm(x, axis=1, keepdims=True)) @ u.T - jnp.eye(5, dtype=x.dtype)
            ),
            floats(numbers(1, 5, 8)),
        ),
        "class_losses.cross_entropy": (
            lambda x: class_losses.cross_entropy(x, hard, by_class, 0.1)[0],
            lambda x: -jnp.sum(by_class[None] * (0.9 * hard + 0.02) * jnp.log(jax.nn.softmax(x.astype(wide))), -1),
            narrow(numbers(1, 3, 5)),
        ),
        "class_losses.token_cross_entropy": (
            lambda x: class_losses.token_cross_entropy(x, jnp.array([[2, -1, 0]]), by_class)[0],
            lambda x: -jnp.log(jax.nn.softmax(x.astype(wide)))[:, jnp.arange(3), jnp.array([2, 0, 0])]
            * jnp.array([[by_class[2], 0, by_class[0]]]),
            narrow(numbers(1, 1, 3, 5)),
        ),
        "class_losses.binary_cross_entropy": (
            lambda x: class_losses.binary_cross_entropy(x, hard, by_class)[0],
            lambda x: jnp.mean(
                hard * by_class[None] * jnp.log1p(jnp.exp(-x.astype(wide))) + (1 - hard) * jnp.log1p(jnp.exp(x.astype(wide))), -1
            ),
            narrow(numbers(1, 3, 5)),
        ),
        "class_losses.mean_square": (
            lambda x: class_losses.mean_square(x, hard)[0],
            lambda x: jnp.sum((x.astype(wide) - hard) ** 2, -1) / 5, narrow(numbers(1, 3, 5)),
        ),
        "xla_cpu.reductions.row_sums": (
            reductions.row_sums, lambda x: jnp.sum(x, -1, keepdims=True), narrow(numbers(1, 3, 64)),
        ),
        "xla_cpu.reductions.row_dots": (
            reductions.row_dots, lambda x, y: jnp.sum(x * y, -1, keepdims=True),
            narrow(numbers(1, 3, 64), numbers(2, 3, 64)),
        ),
        "xla_cpu.reductions.token_dots": (
            reductions.token_dots, lambda x, y: jnp.sum(x * y, 0), narrow(numbers(1, 64, 3), numbers(2, 64, 3)),
        ),
        "xla_cpu.transpose.transpose": (
            lambda x: transpose.transpose(x, 0, 1), lambda x: x.swapaxes(0, 1), narrow(numbers(1, 4, 6)),
        ),
        "xla_cpu.outline.outlined": (outline.outlined(jnp.sin), jnp.sin, narrow(numbers(1, 4, 5))),
        "xla_cpu.bfloat16.to_float32": (bfloat16.to_float32, lambda x: x.astype(wide), narrow(numbers(1, 4, 5))),
        "xla_cpu.bfloat16.to_bfloat16": (
            lambda x: bfloat16.to_bfloat16(x, dtype), lambda x: x.astype(dtype), floats(numbers(1, 4, 5)),
        ),
    }  # fmt: skip


def derivative(way: str, function, arguments):
    def total(*at):
        return jnp.sum(jnp.sin(function(*at).astype(jnp.promote_types(arguments[0].dtype, jnp.float32))))

    gradient = jax.grad(total, argnums=tuple(range(len(arguments))))
    if way == "reverse":
        return gradient(*arguments)
    if way == "forward":
        return jax.jvp(function, arguments, arguments)[1]
    if way == "fwd over rev":
        return jax.jvp(gradient, arguments, arguments)[1]
    if way == "rev over rev":
        return jax.grad(lambda *at: sum(jnp.sum(jnp.cos(g)) for g in gradient(*at)), tuple(range(len(arguments))))(
            *arguments
        )
    return jax.vmap(function)(*(jnp.stack([one, 2 * one]) for one in arguments))


NAMES = sorted(cases(jnp.float32))


def test_the_table_holds_every_function_that_is_tried_and_one_that_needs_a_gpu():
    assert sorted(table()) == sorted([*NAMES, "attention.fused_attention"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_a_cell_of_float64_is_the_derivative_of_the_formula_or_an_error(x64, name, way):
    function, formula, arguments = cases(jnp.float64)[name]
    if table()[name][way] == "no":
        with pytest.raises(TypeError, match="forward-mode"):
            jax.block_until_ready(derivative(way, function, arguments))
        return
    found, expected = (derivative(way, one, arguments) for one in (function, formula))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_a_cell_of_bfloat16_is_finite_or_an_error(name, way):
    function, _, arguments = cases(BF16)[name]
    if table()[name][way] == "yes":
        leaves = jax.tree.leaves(derivative(way, function, arguments))
        assert leaves and all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in leaves)
        return
    kind = TypeError if table()[name][way] == "no" else NotImplementedError
    with pytest.raises(kind):
        jax.block_until_ready(derivative(way, function, arguments))
