"""runs/several_hosts.py and machine/hosts.py: two processes with two devices each, by the command line; and one that fails."""

import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from runs import ROOT, SMALL, inputs, metrics, process
from safetensors.numpy import load_file

from bidora_jax.errors import InputError
from bidora_jax.machine import hosts

FLAGS = [*SMALL, "--max-new-tokens", "3", "--inner.optimizer", "sgd", "--outer.optimizer", "sgd", "--inner.learning-rate", "0.1",
         "--search.steps", "6", "--retrain.steps", "6", "--eval-every", "1", "--save-every", "1"]  # fmt: skip
SPREAD = ["--mesh.replica", "2", "--mesh.shard", "2"]
MAIN = ["-m", "bidora_jax.train"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def started(argv: list[str], number: int, port: int, program: list[str] | None = None) -> subprocess.Popen[str]:
    """Process `number` of two, with two devices."""
    distributed = ["--distributed", f"localhost:{port},2,{number}"]
    return subprocess.Popen(
        [sys.executable, *(program or MAIN), *argv, *distributed], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(one: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = one.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        one.kill()
        out, err = one.communicate()
    return one.returncode, out, err


@pytest.fixture
def two_devices(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")


@pytest.mark.slow
@pytest.mark.usefixtures("two_devices")
def test_two_processes_stop_together_and_go_on_as_one_to_the_numbers_of_one(
    model_folder, data_files, tmp_path, monkeypatch
):
    """SIGTERM to the second process; the first one's checkpoint, on one device. All of it beside a run on one device."""
    argv = [*inputs(model_folder, data_files, tmp_path / "run"), "--data.test-file", str(data_files[2]), *FLAGS]
    port = free_port()
    both = [started([*argv, *SPREAD], number, port) for number in (0, 1)]
    assert both[0].stdout is not None
    first = both[0].stdout.readline() + both[0].stdout.readline()  # said when both have come together
    both[1].send_signal(signal.SIGTERM)
    (status, out, err), (other, silent, said) = map(ended, both)
    assert (status, other) == (143, 143), err + said
    assert first == "".join(
        f"process {i} of 2: {socket.gethostname()}, pid {one.pid}, 2 devices (cpu)\n" for i, one in enumerate(both)
    )
    assert "4 of 4 devices (cpu)" in out
    assert silent == "" and "stopped" not in said
    step = re.search(r"^stopped: SIGTERM after step (\d) of search, which is saved; go on with$", err, re.MULTILINE)
    assert step is not None, err
    assert len(metrics(tmp_path / "run")) == int(step[1])

    monkeypatch.setenv("XLA_FLAGS", "")
    resumed = process([*MAIN, *argv, "--mesh.replica", "1", "--mesh.shard", "1", "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed search after step {step[1]} of 6" in resumed.stdout
    alone = process([*MAIN, *argv, "--output-dir", str(tmp_path / "alone")])
    assert alone.returncode == 0, alone.stderr
    for own, one in zip(metrics(tmp_path / "run"), metrics(tmp_path / "alone"), strict=True):
        assert own.pop("phase") == one.pop("phase")
        assert own == pytest.approx(one, rel=1e-5)
    own, one = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("run", "alone"))
    for name, array in one.items():
        np.testing.assert_allclose(own[name], array, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize(
    ("more", "what"),
    [
        (
            ["--data.train-file", "{folder}/other.jsonl"],
            "this process has not what process 0 has: training data; give all",
        ),
        (
            ["--seed", "3"],
            "this process was called otherwise than process 0: seed: 0 → 3; give all of them one command line",
        ),
        (["--data.train-file", "{folder}/none.jsonl"], "no data file at {folder}/none.jsonl; check the path"),
    ],
)
def test_a_process_that_differs_ends_both_with_one_line(model_folder, data_files, tmp_path, more, what):
    (tmp_path / "other.jsonl").write_text("".join(data_files[0].read_text().splitlines(keepends=True)[:20]))
    argv, port = [*inputs(model_folder, data_files, tmp_path / "run"), *FLAGS, *SPREAD], free_port()
    both = started(argv, 0, port), started([*argv, *(one.format(folder=tmp_path) for one in more)], 1, port)
    (first, _, told), (second, _, said) = map(ended, both)
    assert (first, second) == (2, 2)
    waiting, line = told.splitlines()
    assert waiting == f"process 0 of 2 waits for the others at localhost:{port}, up to 300 s"
    assert line.startswith(f"error: process 1 on {socket.gethostname()}: {what.format(folder=tmp_path)}")
    assert "\nerror: process 1 of 2: " in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


FAILING = """
import os, signal, sys
from bidora_jax import train
from bidora_jax.errors import command
from bidora_jax.machine import hosts

def fail(self):
    {how}

hosts.SILENCE = 12.0
if sys.argv[-1].endswith(",1"):
    hosts.TogetherInterrupts.at_step = fail
command(train.main)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        (
            "raise ZeroDivisionError('here')",
            1,
            "stopped: process 1 on {host} has ended: ZeroDivisionError: here; a run that",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, "stopped: process "),
    ],
)
def test_a_process_that_fails_in_a_step_ends_the_other(model_folder, data_files, tmp_path, how, status, said):
    """With one line, and long before collectives or JAX's own shutdown would give up. Which of the two things a killed process is
    told by, a collective that fails or its silence, is a matter of time."""
    argv, port = [*inputs(model_folder, data_files, tmp_path / "run"), *FLAGS, *SPREAD], free_port()
    program = ["-c", FAILING.format(how=how)]
    both = [started(argv, number, port, program) for number in (0, 1)]
    assert (second := ended(both[1]))[0] == status, second[2]
    began = time.monotonic()
    first, _, told = ended(both[0])
    assert first == 1, told
    assert time.monotonic() - began < 40
    last = told.splitlines()[-1]
    assert last.startswith(said.format(host=socket.gethostname())) and last.endswith("goes on with --resume"), told


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [
        ("here", "expected auto, off or HOST:PORT,N,I"),
        ("host:80,2", "expected auto, off or HOST:PORT,N,I"),
        ("host,2,0", "expected auto, off or HOST:PORT,N,I"),
        ("host:80,2,two", "expected auto, off or HOST:PORT,N,I"),
        ("host:80,2,2", "process 2 of 2; the first one is 0"),
        ("host:99999,2,0", "a port is from 1 to 65535, found 99999"),
    ],
)
def test_a_setting_that_names_no_processes_is_refused(setting, wrong):
    with pytest.raises(InputError, match=re.escape(wrong)):
        hosts.read(setting)


def test_a_setting_names_the_processes():
    assert hosts.read("node-0:5611,8,3") == ("node-0:5611", 8, 3)
    assert hosts.read("auto") is None


HASTY = """
from bidora_jax import train
from bidora_jax.errors import command
from bidora_jax.machine import hosts

hosts.START, hosts.NAME = 4, 1
command(train.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "number", "taken", "wrong"),
    [
        ("localhost", 0, True, "--distributed: process 0 cannot listen on port {port} (Address already in use)"),
        (
            "nowhere.invalid",
            1,
            False,
            "--distributed: nothing is known of nowhere.invalid, where process 0 is to listen",
        ),
        ("localhost", 0, False, "process 0 of 2 has not met all others at localhost:{port} within 4 s: start all"),
        ("localhost", 1, False, "process 1 of 2 has not met all others at localhost:{port} within 4 s: start all"),
    ],
)
def test_processes_that_cannot_meet_say_why(model_folder, data_files, tmp_path, host, number, taken, wrong):
    argv = [*inputs(model_folder, data_files, tmp_path / "run"), *FLAGS, *SPREAD]
    with socket.socket() as other:
        other.bind(("localhost", 0))
        port = other.getsockname()[1]
        if taken:
            other.listen()
        else:
            other.close()
        done = process(["-c", HASTY, *argv, "--distributed", f"{host}:{port},2,{number}"])
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {wrong.format(port=port)}"), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_no_cluster_is_said(model_folder, data_files, tmp_path):
    done = process([*MAIN, *inputs(model_folder, data_files, tmp_path / "run"), *FLAGS, "--distributed", "auto"])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --distributed auto: JAX finds no cluster here (")
    assert done.stderr.endswith("; name the processes with --distributed HOST:PORT,N,I\n")
