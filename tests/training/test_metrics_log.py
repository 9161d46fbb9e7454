"""The metrics file and its cut at a resume; the progress line."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.errors import InputError
from bidora_jax.training.metrics_log import MetricsLog
from bidora_jax.training.progress import Progress, Speed


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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


@pytest.mark.parametrize("bad", ["no metrics", '{"step": 1}', "[1]", '{"phase": "warmup", "step": 1}'])
def test_another_programs_file_is_refused_and_left_alone(tmp_path, bad):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(RUN[0]) + "\n" + bad + "\n")
    with pytest.raises(InputError, match=r"m\.jsonl:2 is not a line of metrics"):
        MetricsLog(path).truncate("search", 0)
    assert path.read_text().endswith(bad + "\n")


# Speed and progress


def test_speed_leaves_out_the_first_step_and_forgets_old_ones():
    clock = Clock()
    speed = Speed(clock, window=3)
    assert (speed.tokens_per_second, speed.seconds_per_step) == (None, None)
    clock.now += 60  # compiles
    speed.step(100)
    assert (speed.tokens_per_second, speed.seconds_per_step) == (None, None)
    for seconds, tokens in [(2, 50), (3, 100), (1, 150)]:
        clock.now += seconds
        speed.step(tokens)
    assert (speed.tokens_per_second, speed.seconds_per_step) == (50, 2)
    clock.now += 8
    speed.step(350)
    assert (speed.tokens_per_second, speed.seconds_per_step) == (50, 4)


def test_without_a_terminal_there_are_plain_lines_now_and_then():
    clock, stream = Clock(), io.StringIO()
    with Progress("search", 25, done=3, every=10, stream=stream, clock=clock) as progress:
        for step in range(3, 25):
            progress.step(loss=step / 8, tokens=1500)
            clock.now += 1
        progress.note("done")
    assert stream.getvalue().splitlines() == [
        "search 4/25  loss 0.3750",
        "search 14/25  loss 1.6250  1,500 tokens/s  0:11 left",
        "search 24/25  loss 2.8750  1,500 tokens/s  0:01 left",
        "search 25/25  loss 3.0000  1,500 tokens/s  0:00 left",
        "done",
    ]


def test_hours_are_written_out():
    clock, stream = Clock(), io.StringIO()
    progress = Progress("retrain", 3602, every=0, stream=stream, clock=clock)
    progress.step(1.0, 1)
    clock.now += 2
    progress.step(1.0, 1)
    assert stream.getvalue().splitlines()[-1].endswith("0 tokens/s  2:00:00 left")


def test_on_a_terminal_there_is_a_bar_and_notes_stay_above_it(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with Progress("search", 5, stream=stream) as progress:
        progress.step(0.5, 10)
        progress.note("val [bold] loss")
        progress.step(0.25, 10)
    shown = stream.getvalue()
    assert "search" in shown
    assert "2/5" in shown
    assert "loss 0.2500" in shown
    assert "val [bold] loss" in shown
    assert "\x1b[" in shown
