"""machine/compile_cache.py: what one process compiled, the next one reads."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from bidora_jax.machine import compile_cache

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from bidora_jax.machine.compile_cache import keep_compiled
print(keep_compiled(sys.argv[1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((3, 5)))
"""


def run(setting, tmp_path, **environment):
    return both(setting, tmp_path, **environment)[0]


def both(setting, tmp_path, **environment):
    """What was printed to stdout, which is the folder, and to stderr."""
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | environment
    env |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", PROGRAM, setting], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr.strip()


def test_auto_keeps_programs_in_the_users_cache(tmp_path):
    folder = run("auto", tmp_path)
    assert folder.startswith(str(tmp_path / "cache" / "bidora_jax" / f"jax-{jax.__version__}-cpu-"))
    assert any((tmp_path / "cache").rglob("*-cache"))


def test_a_folder_is_made_and_used_and_empty_means_none(tmp_path):
    assert run(str(tmp_path / "mine" / "deep"), tmp_path) == str(tmp_path / "mine" / "deep")
    assert any((tmp_path / "mine" / "deep").iterdir())
    assert run("", tmp_path) == "None"
    assert not (tmp_path / "cache").exists()


def test_the_environments_folder_stays_in_charge(tmp_path):
    assert run("auto", tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs")) == str(tmp_path / "theirs")
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_made_costs_the_cache_only(tmp_path):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "below"
    said = f"compiled programs are not kept, as {below} cannot be made (Not a directory): every run compiles anew"
    assert both(str(below), tmp_path) == ("None", f"{said}; --compilation-cache names another folder")


@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"x" * 99]
)
def test_a_damaged_entry_is_said_once_and_written_again(tmp_path, damage):
    folder = run("auto", tmp_path)
    entries = {path: path.read_bytes() for path in Path(folder).glob("*-cache")}
    for path, content in entries.items():
        path.write_bytes(damage(content))
        os.utime(path, (0, time.time() - 61))
    found, said = both("auto", tmp_path)
    lines = said.splitlines()
    assert found == folder
    assert len(lines) == len({path.name.rpartition("-")[0].rpartition("-")[0] for path in entries})
    assert {*lines} == {f"a compiled program in {folder} is damaged; it is removed, and compiled anew"}
    assert {path.name: len(path.read_bytes()) > 99 for path in entries} == dict.fromkeys(
        (path.name for path in entries), True
    )
    assert run("auto", tmp_path) == folder


def test_half_an_entry_that_another_run_is_writing_is_left_to_it(tmp_path):
    folder = run("auto", tmp_path)
    entries = {path: path.read_bytes() for path in Path(folder).glob("*-cache")}
    for path, content in entries.items():
        path.write_bytes(content[: len(content) // 2])
    assert both("auto", tmp_path) == (folder, "")
    assert {path: path.read_bytes() for path in entries} == {
        path: content[: len(content) // 2] for path, content in entries.items()
    }


@pytest.mark.parametrize("other", ["avx512f avx512_bf16", ""])
def test_another_processor_has_another_folder(monkeypatch, other):
    mine = compile_cache.default_folder()
    monkeypatch.setattr(compile_cache, "_features", lambda: other)
    assert compile_cache.default_folder() != mine
