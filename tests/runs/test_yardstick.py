"""What a run's records say of an export. The road is in tests/commands/test_export.py; here are the parts."""

import jax
import numpy as np
import pytest
import tiny
from random_adapters import KINDS, prepared
from runs import trained_run

from bidora_jax.data.encoding import Example
from bidora_jax.data.labels import LabelledExample
from bidora_jax.data.packing import PackedRow
from bidora_jax.models.formats.export import Trained
from bidora_jax.runs import yardstick
from bidora_jax.runs.folder import run_config


def rows(lengths):
    return [Example(np.arange(n, dtype=np.int32), np.ones(n, bool), False) for n in lengths]


def test_the_inputs_are_rows_of_the_whole_split_in_batches_of_one_shape(monkeypatch):
    monkeypatch.setattr(yardstick, "TOKENS", 120)
    monkeypatch.setattr(yardstick, "AT_A_TIME", 64)
    lengths = [7, 30, 11, 25, 9, 17, 31, 12, 21, 19]  # 182 tokens: every second row is taken
    found = yardstick.inputs(rows(lengths))
    assert {batch["tokens"].shape for batch in found} == {(2, 32)}
    real = np.concatenate([batch["segments"].sum(axis=1) for batch in found])
    assert real.tolist() == [7, 11, 9, 31, 21, 0]
    assert found[0]["tokens"][1].tolist() == [*range(11), *[0] * 21]


def test_packed_rows_keep_their_documents_and_texts_their_types():
    packed = PackedRow(np.arange(5, dtype=np.int32), np.ones(5, bool), np.array([1, 1, 2, 2, 2], np.int32), (0, 1))
    (batch,) = yardstick.inputs([packed])
    assert batch["segments"][0, :6].tolist() == [1, 1, 2, 2, 2, 0]
    text = LabelledExample(
        np.arange(4, dtype=np.int32), np.array([0, 0, 1, 1], np.int32), np.ones(2, np.float32), False
    )
    (batch,) = yardstick.inputs([text])
    assert batch["types"][0, :5].tolist() == [0, 0, 1, 1, 0]


@pytest.fixture(scope="module")
def opened(model_folder, data_files, tmp_path_factory):
    flags = ["--data.train-file", str(data_files[0]), "--data.val-file", str(data_files[1])]
    run = trained_run(tmp_path_factory.mktemp("yardstick") / "run", model_folder, KINDS["bidora"], *flags)
    return yardstick.read(run_config(str(run)), tiny.CONFIG)


def test_the_share_of_the_gain_that_a_lora_loses(opened):
    """Of the adapter itself nothing is lost, of the base's own function everything."""
    from bidora_jax.models.adapters import adapter as adapters
    from bidora_jax.models.adapters import initial

    own, (adapter, base, direction, magnitude) = opened.yardstick, prepared(KINDS["lora"], tiny.random_base())
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
