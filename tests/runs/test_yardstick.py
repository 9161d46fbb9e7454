"""What a run's records say of an export. The road is in tests/commands/test_export.py; here are the parts."""

import jax
import pytest
import tiny
from random_adapters import KINDS, prepared
from runs import trained_run

from bidora_jax.models.formats.export import Trained
from bidora_jax.runs import yardstick
from bidora_jax.runs.folder import run_config


@pytest.fixture(scope="module")
def opened(model_folder, data_files, tmp_path_factory):
    flags = ["--data.train-file", str(data_files[0]), "--data.val-file", str(data_files[1])]
    run = trained_run(tmp_path_factory.mktemp("yardstick") / "run", model_folder, KINDS["bidora"], *flags)
    return yardstick.read(run_config(str(run)), tiny.CONFIG)


def test_the_share_of_the_gain_that_a_lora_loses(opened):
    """Of the adapter itself nothing is lost, of the base's own function everything."""
    from bidora_jax.models.adapters import adapter as adapters
    from bidora_jax.models.adapters import initial

    own, (adapter, base, direction, magnitude) = opened, prepared(KINDS["lora"], tiny.random_base())
    before = own.losses(None, base, {}, {})["validation"]

    def scaled(by):
        return jax.tree_util.tree_map_with_path(lambda path, x: by * x if path[-1].key == "B" else x, direction)

    # A small step and the one back: one of them is downhill, the other is uphill.
    losses = {by: own.losses(adapter, base, scaled(by), magnitude)["validation"] for by in (0.01, -0.01)}
    assert min(losses.values()) < before < max(losses.values())
    better, worse = sorted(losses, key=lambda by: losses[by])
    trained = Trained(tiny.CONFIG, adapter, base, scaled(better), magnitude)
    assert own.judge(trained._replace(direction=scaled(worse))) is None
    judge = own.judge(trained)
    assert judge(trained.adapter, trained.direction) == pytest.approx(0, abs=1e-2)
    neutral = adapters.resolve(KINDS["lora"], tiny.CONFIG)
    direction, _ = initial.init(neutral, trained.base, jax.random.key(0))
    assert judge(neutral, direction) == pytest.approx(1, abs=1e-2)


def test_what_is_said():
    found = yardstick.Measured({"validation": (3.0, 2.0, 2.25), "test": (1.0, 1.5, 1.5)}, 11, 12)
    assert found.lines == [
        "validation: loss 3.0000 of the base, 2.0000 of the adapter, 2.2500 of what was written (75.0% of the gain)",
        "test: loss 1.0000 of the base, 1.5000 of the adapter, 1.5000 of what was written",
        "greedy answers equal to the adapter's: 11 of 12",
    ]
    assert found._replace(equal=None).lines == found.lines[:2]
