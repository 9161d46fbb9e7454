"""machine/files.py: a folder appears whole or not at all."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest

from bidora_jax.errors import InputError
from bidora_jax.machine import files
from bidora_jax.machine.files import read_json, staged, write_whole


def _names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_folder_gets_its_name_when_it_is_complete(tmp_path):
    with staged(tmp_path / "a" / "b") as fresh:
        (fresh / "x").write_text("1")
        assert not (tmp_path / "a").exists()
    assert _names(tmp_path) == ["a", "a/b", "a/b/x"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")])
def test_an_error_leaves_nothing_behind(tmp_path, error):
    def write():
        with staged(tmp_path / "a" / "b") as fresh:
            (fresh / "x").write_text("1")
            raise error

    with pytest.raises(type(error)):
        write()
    assert _names(tmp_path) == []


WRITERS = {
    "a file": "files.write_whole(folder / 'x', 'a' * 99)",
    "settings": "files.write_json(folder / 'x', {'a': 'b' * 99})",
    "a log": "log = metrics_log.MetricsLog(folder / 'x'); log.append({'phase': 'search', 'step': 1, 'a': 'b' * 99})",
    "a lock": "run.hold(folder).__enter__()",
    "a folder": """
with files.staged(folder / 'x') as fresh:
    (fresh / 'y').write_text('a' * 99)
""",
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_named_by_its_path(tmp_path, kind):
    """A write that fails knows no name; the system's limit on the size of a file stands for a full disk."""
    code = f"""
import resource, sys
from pathlib import Path
from bidora_jax.machine import files
from bidora_jax.runs import folder as run
from bidora_jax.training import metrics_log

folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    {WRITERS[kind].strip().replace(chr(10), chr(10) + "    ")}
except OSError as error:
    sys.exit(f"{{error.errno}} {{error.filename}}")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, text=True, check=False)
    expected = tmp_path / (".lock" if kind == "a lock" else "x")
    assert done.stderr.split() == [str(errno.EFBIG), str(expected)]


def test_what_dead_processes_left_goes_when_the_name_is_written_again(tmp_path):
    """Not what a process that lives, or one of another machine just now, may be writing."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    old, fresh, living = f".a.tmp-{dead.pid}", f".a.tmp-{dead.pid}0000000", f".a.tmp-{os.getppid()}"
    for name in (old, fresh, living, ".ab.tmp-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("1")
    for name in (old, living, ".ab.tmp-1"):
        os.utime(tmp_path / name, (0, 0))
    with staged(tmp_path / "a") as folder:
        (folder / "y").write_text("2")
    assert {path.name for path in tmp_path.iterdir()} == {"a", fresh, living, ".ab.tmp-1"}
    left = tmp_path / f".b.json.tmp-{dead.pid}"
    left.write_text("half")
    os.utime(left, (0, 0))
    write_whole(tmp_path / "b.json", "{}")
    assert not left.exists() and (tmp_path / "b.json").read_text() == "{}"


def test_an_empty_folder_may_be_filled_and_a_full_one_replaced_on_request(tmp_path):
    target = tmp_path / "a"
    target.mkdir()
    for content in "12":
        with staged(target, replace=content == "2") as fresh:
            (fresh / content).write_text(content)
    assert _names(tmp_path) == ["a", "a/2"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_whole_with_and_without_the_call_that_exchanges_two(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    for content in ("1", "2"):
        with staged(tmp_path / "a", replace=True) as folder:
            (folder / content).write_text(content)
    assert _names(tmp_path) == ["a", "a/2"]


def test_while_a_folder_is_replaced_there_is_always_one_of_its_name(tmp_path):
    """Another process that looks all the time never misses it."""
    seen = "import os, sys\nwhile not os.path.exists(sys.argv[2]):\n    os.listdir(sys.argv[1])\n"
    (tmp_path / "a").mkdir()
    looking = subprocess.Popen(
        [sys.executable, "-c", seen, str(tmp_path / "a"), str(tmp_path / "end")], stderr=subprocess.PIPE
    )
    time.sleep(0.3)
    for number in range(300):
        with staged(tmp_path / "a", replace=True) as folder:
            (folder / "x").write_text(str(number))
    (tmp_path / "end").write_text("")
    assert looking.communicate(timeout=60)[1] == b"" and looking.returncode == 0


def test_an_error_keeps_the_folder_that_was_to_be_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("1")
    with pytest.raises(ValueError, match="x"), staged(tmp_path / "a", replace=True):
        raise ValueError("x")
    assert _names(tmp_path) == ["a", "a/old"]


def test_occupied_places_are_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("1")
    for target, message in (("full", "not empty"), ("full/x", "a file has that name"), ("full/x/y", "is a file")):
        with pytest.raises(InputError, match=message), staged(tmp_path / target):
            pytest.fail("the block must not run")
    assert _names(tmp_path) == ["full", "full/x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        pytest.param(b"[" * 100_000, "nested too deep", id="deep"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1]", "a JSON list"),
        (None, "has no c.json"),
    ],
)
def test_a_json_file_that_is_none_is_refused_with_the_remedy(tmp_path, content, message):
    if content is not None:
        (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(InputError, match=f"{message}.*do this"):
        read_json(tmp_path / "c.json", "do this")


def test_json_in_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*nowhere; do this"):
        read_json(tmp_path / "nowhere" / "c.json", "do this")
    (tmp_path / "c.json").write_text(json.dumps({"a": 1}))
    assert read_json(tmp_path / "c.json", "") == {"a": 1}
    with pytest.raises(InputError, match=r"c\.json is a file; do this"):
        read_json(tmp_path / "c.json" / "c.json", "do this")
