"""training/metrics_log.py: the metrics file and its cut at a resume."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.errors import InputError
from bidora_jax.training.metrics_log import MetricsLog


def line(phase: str, step: int) -> dict[str, object]:
    return {"phase": phase, "step": step, "train_loss": step / 4}


RUN = [line("search", 0), line("search", 1), line("search", 2), line("retrain", 0), line("retrain", 1)]


def write_run(path, records) -> None:
    with MetricsLog(path) as log:
        for record in records:
            log.append(record)


# The file


def test_a_line_is_on_disk_when_append_returns(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    log = MetricsLog(path)
    log.append({"phase": "search", "step": 3, "train_loss": 0.5, "said": "ä"})
    assert path.read_text() == '{"phase": "search", "step": 3, "train_loss": 0.5, "said": "\\u00e4"}\n'
    log.close()


def test_scalars_of_numpy_and_jax_are_plain_numbers_and_what_is_not_finite_is_null(tmp_path):
    values = {
        "a": jnp.float32(0.25),
        "b": np.int64(7),
        "c": float("nan"),
        "d": jnp.float32(jnp.inf),
        "e": [np.nan, True],
    }
    write_run(tmp_path / "m.jsonl", [{"phase": "search", "step": jnp.int32(0), "values": values}])
    found = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=pytest.fail)
    assert found["values"] == {"a": 0.25, "b": 7, "c": None, "d": None, "e": [None, True]}


def test_a_line_without_its_place_in_the_run_is_refused(tmp_path):
    with MetricsLog(tmp_path / "m.jsonl") as log:
        for record in ({"step": 1}, {"phase": "search"}, {"phase": "warmup", "step": 1}):
            with pytest.raises((KeyError, ValueError)):
                log.append(record)
    assert not (tmp_path / "m.jsonl").exists()


@pytest.mark.parametrize(
    ("phase", "step", "kept"),
    [("search", 0, 0), ("search", 2, 2), ("search", 9, 3), ("retrain", 0, 3), ("retrain", 1, 4)],
)
def test_a_resumed_run_has_the_file_of_the_uninterrupted_one(tmp_path, phase, step, kept):
    straight, resumed = tmp_path / "straight.jsonl", tmp_path / "resumed.jsonl"
    write_run(straight, RUN)
    write_run(resumed, RUN)
    with MetricsLog(resumed) as log:
        log.truncate(phase, step)
        assert len(resumed.read_text().splitlines()) == kept
        for record in RUN[kept:]:
            log.append(record)
    assert resumed.read_bytes() == straight.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed.jsonl", "straight.jsonl"]


def test_a_last_line_that_a_kill_cut_short_is_dropped(tmp_path):
    path = tmp_path / "m.jsonl"
    for cut in (
        '{"phase": "search", "st',
        '{"phase": "search", "step": 1}',
    ):  # the second may be a longer line's beginning
        path.write_text("".join(json.dumps(record) + "\n" for record in RUN[:2]) + cut)
        MetricsLog(path).truncate("search", 2)
        assert [json.loads(text) for text in path.read_text().splitlines()] == RUN[:2]


def test_truncating_a_file_that_is_not_there_is_nothing(tmp_path):
    MetricsLog(tmp_path / "m.jsonl").truncate("search", 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "bad",
    [
        "no metrics",
        '{"step": 1}',
        "[1]",
        '{"phase": "warmup", "step": 1}',
        '{"phase": "search", "step": 1e999}',
        "[" * 100_000,
    ],
)
def test_another_programs_file_is_refused_and_left_alone(tmp_path, bad):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(RUN[0]) + "\n" + bad + "\n")
    with pytest.raises(InputError, match=r"m\.jsonl:2 is not a line of metrics"):
        MetricsLog(path).truncate("search", 0)
    assert path.read_text().endswith(bad + "\n")
