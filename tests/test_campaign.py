"""A short slice of benchmarks/campaign/files.py, benchmarks/campaign/readers.py, benchmarks/campaign/kills.py and
benchmarks/campaign/disks.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).parents[1] / "benchmarks" / "campaign"


def ran(script: str, *argv: str) -> str:
    """What a script of the campaign prints. It forks, so it runs in a process without JAX's threads."""
    done = subprocess.run(
        [sys.executable, str(CAMPAIGN / script), *argv], env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_damaged_files_are_refused_or_read():
    said = ran("files.py", "--cases", "16", "--seed", "7")
    assert "16 damaged files: " in said and "wrong" not in said


@pytest.mark.slow
def test_readers_return_or_refuse():
    said = ran("readers.py", "--cases", "120", "--seed", "7")
    assert said.startswith("120 damaged files: ") and "wrong" not in said, said


@pytest.mark.slow
def test_a_killed_run_ends_as_a_whole_one():
    said = ran("kills.py", "--events", "1", "--times", "0", "--seed", "7")
    assert "1 right" in said and "1 kills at file events" in said


@pytest.mark.slow
def test_a_run_that_no_file_may_grow_in_says_so_and_goes_on():
    said = ran("disks.py", "--disks=0", "--limits", "1")
    assert said.endswith("\n1 right\n"), said


def test_the_judge_sees_what_is_wrong(tmp_path):
    """A file that is left behind, a traceback, an exit status, memory, a file that is opened outside."""
    code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import files, forks

def found(**what):
    ended = forks.Ended(**{"status": 2, "seconds": 1.0, "peak": 1, "out": "", "err": "error: no", "opened": frozenset(), **what})
    return list(files.faults(ended, Path("/case")))

assert found() == [] and found(status=0, err="") == [] and found(opened=frozenset({"/case/x"})) == []
assert found(status=70) == ["ended with 70"] and found(status=forks.TIMEOUT) == ["did not end within 10 s"]
assert found(err="Traceback (most recent call last):") == ["a traceback"] and found(err="") == ["no message"]
assert found(peak=2 * 10**9) == ["2000 MB of memory"] and found(opened=frozenset({"/home/x"})) == ["opened /home/x"]
"""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, str(CAMPAIGN)], env=environment, check=True)
