"""runs/folder.py and runs/logs.py: one process trains in a run folder, however the one before it ended."""

import os
import signal
import subprocess
import sys

import pytest
from runs import SMALL, inputs

from bidora_jax import train
from bidora_jax.config import parse_train, to_json
from bidora_jax.errors import InputError
from bidora_jax.runs.folder import LOCK, hold

HOLD = """
import sys, time
from pathlib import Path
from bidora_jax.runs.folder import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that trains in tmp_path, as far as the lock can tell."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_two_processes_at_once_are_refused_and_the_first_is_named(holder, tmp_path):
    with (
        pytest.raises(InputError, match=rf"{tmp_path} is in use: process {holder.pid} on .*, since 20.* trains in it"),
        hold(tmp_path),
    ):
        pass


def test_a_killed_process_holds_nothing(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert str(holder.pid) in (tmp_path / LOCK).read_text()
    with hold(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / LOCK).read_text()
        with pytest.raises(InputError, match=f"process {os.getpid()} on"), hold(tmp_path):
            pass
    with hold(tmp_path):
        pass


def test_a_resume_beside_the_run_itself_is_refused_before_anything_is_read(model_folder, data_files, tmp_path, holder):
    argv = [*inputs(model_folder, data_files, tmp_path), *SMALL]
    (tmp_path / "config.json").write_text(to_json(parse_train(argv)[0]))
    with pytest.raises(InputError, match=f"is in use: process {holder.pid}"):
        train.main([*argv, "--resume"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, "config.json"]


SLOW = """
import fcntl, sys, time
from bidora_jax.runs.folder import LOCK
with open(sys.argv[1] + "/" + LOCK, "a+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(0.5)
    file.truncate(0)
    file.write("process 7 on here, since 2026")
    file.flush()
    sys.stdin.read()
"""


def test_a_process_that_has_just_taken_the_folder_is_waited_for_to_say_its_name(tmp_path):
    argv = [sys.executable, "-c", SLOW, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="is in use: process 7 on here, since 2026 trains in it"), hold(tmp_path):
            pass
        process.kill()
