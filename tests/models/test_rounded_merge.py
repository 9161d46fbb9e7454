"""A merge into 16 bits keeps what a short run has learned, where the nearest value gives the base back."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from random_adapters import KINDS

from bidora_jax.models import decoder, rounded_merge
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial, merging
from bidora_jax.models.compute import Compute

CONFIG = replace(tiny.CONFIG, hidden_size=62, intermediate_size=74)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(9, size=(10, 41), dtype=np.int32))


def short_run(kind: str, by: float = 2e-4):
    """(adapter, prepared base on the grid of bfloat16, direction, magnitude) after a change of 3e-4 of the weights."""
    adapter = adapters.resolve(KINDS[kind], CONFIG)
    base = initial.prepare_base(tiny.random_base(CONFIG, dtype=jnp.bfloat16, spread=0.1), adapter)
    random = np.random.default_rng(1)

    def leaf(path, stack):
        stack = stack.astype(jnp.float32)
        used = stack != 0 if path[-1].key == "A" else np.ones(stack.shape, np.float32)
        step = {"A": 0.0, "B": by, "m": 0.0}[path[-1].key] * used * random.normal(size=stack.shape)
        return stack + step.astype(np.float32)

    return adapter, base, *jax.tree_util.tree_map_with_path(leaf, initial.init(adapter, base, jax.random.key(0)))


def judged(trained, *merged) -> list[tuple[float, float]]:
    """(share of the change of the logits that is kept, error as a share of that change) of each model."""
    wide = Compute(dtype=jnp.float32)
    adapter, base, *trees = trained
    logits = jax.jit(lambda base: decoder.logits(CONFIG, None, base, {}, {}, TOKENS, wide))
    y, before = decoder.logits(CONFIG, adapter, base, *trees, TOKENS, wide), logits(base)
    found = []
    for one in map(logits, merged):
        kept = float(jnp.vdot(one - before, y - before) / jnp.vdot(y - before, y - before))
        found.append((kept, float(jnp.linalg.norm(one - y) / jnp.linalg.norm(y - before))))
    return found


@pytest.mark.parametrize("kind", ["lora", "bidora"])
def test_what_a_short_run_has_learned_is_kept(kind):
    trained = short_run(kind)
    nearest, ours = merging.merge(*trained, "bfloat16"), rounded_merge.merge(*trained, "bfloat16")
    (kept, error), (ours_kept, _) = judged(trained, nearest, ours)
    assert kept < 0.5 and error > 0.5
    assert abs(ours_kept - 1) < 0.5  # a layer of 62 x 62 averages over few entries; the error of float32 below does not


def test_what_is_drawn_has_the_merged_weights_as_its_mean():
    """The error of all entries together is that of a mean of independent draws, so that ΔW is whole in it."""
    trained = short_run("bidora")
    exact, ours = (rounded_merge.merge(*trained, dtype) for dtype in ("float32", "bfloat16"))
    along = whole = spread = 0.0
    for site in trained[0].sites:
        w, q = (np.asarray(adapters.get(one["layers"], site.path)["weight"], np.float64) for one in (exact, ours))
        change = w - np.asarray(dense(trained[1], site.path), np.float64)
        along, whole = along + np.vdot(q - w, change), whole + np.vdot(change, change)
        spread += np.sum(np.square((q - w) * change))
    assert abs(along) < 4 * np.sqrt(spread)
    assert np.sqrt(spread) < 0.1 * whole


def test_a_change_that_the_nearest_values_keep_is_rounded_to_them():
    trained = short_run("lora", by=0.3)
    wanted, found = merging.merge(*trained, "bfloat16"), rounded_merge.merge(*trained, "bfloat16")
    for site in trained[0].sites:
        near, ours = (adapters.get(one["layers"], site.path)["weight"] for one in (wanted, found))
        assert np.mean(np.asarray(near) != ours) < 0.02  # a row of B may be near zero by chance


def test_it_is_a_neighbour_of_what_was_trained_and_the_same_every_time():
    trained = short_run("bidora")
    exact = merging.merge(*trained, "float32")
    first, second = (rounded_merge.merge(*trained, "bfloat16") for _ in range(2))
    for site in trained[0].sites:
        w, found, again = (adapters.get(one["layers"], site.path)["weight"] for one in (exact, first, second))
        assert found.dtype == jnp.bfloat16
        assert np.array_equal(found, again)
        w = np.asarray(w, np.float32)
        assert np.all(np.abs(found.astype(np.float32) - w) <= np.abs(w) * 2.0**-7)


def dense(base, path: str):
    weight = adapters.get(base["layers"], path)["weight"]
    return np.asarray(weight.bits).view(jnp.bfloat16) if hasattr(weight, "bits") else np.asarray(weight)


def test_layers_without_an_adapter_stay_the_base():
    trained = short_run("one layer")
    before, after = (dense(one, "mlp.up_proj") for one in (trained[1], rounded_merge.merge(*trained, "bfloat16")))
    assert np.array_equal(before[0], after[0])
    assert not np.array_equal(before[1], after[1])


def test_more_than_16_bits_are_the_plain_merge():
    trained = short_run("dora")
    wanted, found = merging.merge(*trained, "float32"), rounded_merge.merge(*trained, "float32")
    assert all(map(jnp.array_equal, jax.tree.leaves(wanted), jax.tree.leaves(found)))
