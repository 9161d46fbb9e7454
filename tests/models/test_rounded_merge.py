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
# Few tokens, so that the inputs lie in few directions, as those of a trained model do.
RECORDS = [
    {
        "tokens": np.random.default_rng(n).integers(9, size=(5, 41), dtype=np.int32),
        "segments": np.ones((5, 41), np.int32),
    }
    for n in range(2)
]


def short_run(kind: str):
    """(adapter, prepared base on the grid of bfloat16, direction, magnitude) after a change of 3e-4 of the weights."""
    adapter = adapters.resolve(KINDS[kind], CONFIG)
    base = initial.prepare_base(tiny.random_base(CONFIG, dtype=jnp.bfloat16, spread=0.1), adapter)
    direction, magnitude = initial.init(adapter, base, jax.random.key(0))
    random = np.random.default_rng(1)

    def leaf(path, stack):
        used = stack != 0 if path[-1].key == "A" else np.ones(stack.shape)
        return stack + {"A": 0.0, "B": 2e-4, "m": 0.0}[path[-1].key] * used * random.normal(size=stack.shape)

    names = (direction, magnitude)
    return (
        adapter,
        base,
        *(
            jax.tree.map(lambda x: x.astype(jnp.float32), jax.tree_util.tree_map_with_path(leaf, tree))
            for tree in names
        ),
    )


def judged(trained, *merged) -> list[tuple[float, float]]:
    """(share of the change of the logits that is kept, error as a share of that change) of each model, on the records."""
    wide = Compute(dtype=jnp.float32)
    adapter, base, *trees = trained
    tokens = jnp.asarray(np.concatenate([batch["tokens"] for batch in RECORDS]))
    logits = jax.jit(lambda base: decoder.logits(CONFIG, None, base, {}, {}, tokens, wide))
    y, before = decoder.logits(CONFIG, adapter, base, *trees, tokens, wide), logits(base)
    found = []
    for one in map(logits, merged):
        kept = float(jnp.vdot(one - before, y - before) / jnp.vdot(y - before, y - before))
        found.append((kept, float(jnp.linalg.norm(one - y) / jnp.linalg.norm(y - before))))
    return found


@pytest.mark.parametrize("kind", ["lora", "bidora"])
def test_what_a_short_run_has_learned_is_kept(kind):
    trained = short_run(kind)
    nearest = merging.merge(*trained, "bfloat16")
    ours, unread = (
        rounded_merge.merge(CONFIG, *trained, "bfloat16", RECORDS),
        rounded_merge.merge(CONFIG, *trained, "bfloat16"),
    )
    found = judged(trained, nearest, ours, unread)
    assert found[0][0] < 0.5 and found[0][1] > 0.5
    assert abs(found[1][0] - 1) < 0.2
    assert abs(found[2][0] - 1) < 0.5
    assert found[1][1] < found[2][1]  # the records spare noise


def test_it_is_a_neighbour_of_a_point_along_the_change_and_the_same_every_time():
    trained = short_run("bidora")
    exact = merging.merge(*trained, "float32")
    first, second = (rounded_merge.merge(CONFIG, *trained, "bfloat16", RECORDS) for _ in range(2))
    for site in trained[0].sites:
        w, found, again = (adapters.get(one["layers"], site.path)["weight"] for one in (exact, first, second))
        assert found.dtype == jnp.bfloat16
        assert np.array_equal(found, again)
        w, w0 = (np.asarray(jnp.asarray(one), np.float32) for one in (w, dense(trained[1], site.path)))
        beyond = 3 * np.abs(w - w0)  # γ is at most 4
        assert np.all(np.abs(found.astype(np.float32) - w) <= (np.abs(w) + beyond) * 2.0**-7 + beyond)


def dense(base, path: str):
    weight = adapters.get(base["layers"], path)["weight"]
    return np.asarray(weight.bits).view(jnp.bfloat16) if hasattr(weight, "bits") else np.asarray(weight)


def test_layers_without_an_adapter_stay_the_base():
    adapter, base, direction, magnitude = short_run("one layer")
    merged = rounded_merge.merge(CONFIG, adapter, base, direction, magnitude, "bfloat16", RECORDS)
    before, after = (dense(one, "mlp.up_proj") for one in (base, merged))
    assert np.array_equal(before[0], after[0])
    assert not np.array_equal(before[1], after[1])


def test_more_than_16_bits_are_the_plain_merge():
    trained = short_run("dora")
    wanted, found = merging.merge(*trained, "float32"), rounded_merge.merge(CONFIG, *trained, "float32", RECORDS)
    assert all(map(jnp.array_equal, jax.tree.leaves(wanted), jax.tree.leaves(found)))
