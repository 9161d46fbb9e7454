"""kernels/cuda/build.py and the command: nvcc where it is, the library's name, and what is said of one that cannot be used."""

import ctypes
import os
import subprocess
import sys
import types

import jax
import pytest
from runs import ROOT, once

from bidora_jax.errors import InputError, RunError
from bidora_jax.kernels.cuda import build, ops


def command(argv, cache, **environment):
    """The build command with a cache of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ("CUDA_HOME", "CUDA_PATH")}
    return subprocess.run(
        [sys.executable, "-W", "error", *argv], cwd=ROOT, env=kept | {"XDG_CACHE_HOME": str(cache)} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def cache(shared_folder):
    """A cache with the library that nvcc made, and what the command said."""
    try:
        build.find_nvcc()
    except InputError:
        pytest.skip("nvcc is not installed here")

    def make(folder):
        done = command(["-m", "bidora_jax.kernels.cuda.build"], folder)
        assert done.returncode == 0, done.stderr
        (folder / "stdout").write_text(done.stdout)

    return once(shared_folder / "cuda", make)


ASK = "from bidora_jax.kernels.cuda import ops; print(ops.available()); print(ops.status())"


def test_nvcc_builds_a_library_that_loads_without_a_driver(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    path = build.library_path()
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]
    assert (cache / "stdout").read_text().rstrip().endswith(f"MiB: {path}")
    library = ctypes.CDLL(str(path))
    assert all(hasattr(library, name) for name in ops.TARGETS)
    assert command(["-c", ASK], cache).stdout.splitlines() == ["True", f"built for {build.BUILT_FOR}: {path}"]
    assert command(["-m", "bidora_jax.kernels.cuda.build"], cache).stdout.startswith("already built for sm_75")


def test_without_nvcc_the_command_says_what_to_do(tmp_path):
    hidden = "import runpy, sys; sys.modules['nvidia'] = None; "
    start = f"{hidden}runpy.run_module('bidora_jax.kernels.cuda.build', run_name='__main__')"
    done = command(["-c", start], tmp_path, PATH=str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: nvcc was not found in $CUDA_HOME/bin") and "set CUDA_HOME" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_nvcc_of_the_python_packages_is_the_last_resort(tmp_path, monkeypatch):
    compiler = tmp_path / "nvidia" / "cu99" / "bin" / "nvcc"
    compiler.parent.mkdir(parents=True)
    compiler.touch()
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.find_nvcc() == compiler


def test_cuda_home_comes_before_the_path(tmp_path, monkeypatch):
    compiler = tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho no licence >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build.find_nvcc() == compiler
    with pytest.raises(RunError, match=r"bin/nvcc failed with status 3:\nno licence"):
        build.build(compiler, tmp_path / "cache" / "library.so")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_absent_a_stale_and_a_broken_library_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = []
    for name in (None, "dequantise-0123456789abcdef.so", build.library_path().name):
        if name:
            (tmp_path / "bidora_jax").mkdir(exist_ok=True)
            (tmp_path / "bidora_jax" / name).write_text("not a library")
        found.append(ops._load.__wrapped__())
    assert [built for built, _ in found] == [False] * 3
    absent, stale, broken = (text for _, text in found)
    assert absent == f"not built (no library in the cache): the XLA form is used; build with {build.COMMAND}"
    assert stale.startswith("not built (") and "holds only a library of other sources" in stale
    assert broken.startswith("built but unreadable (") and f"remove {build.library_path()} and run" in broken


def test_the_library_is_named_after_all_that_it_is_made_of(tmp_path, monkeypatch):
    """A changed header, flag or call interface asks for another library; nothing else in the folder does."""
    names = {build.library_path().name}
    for name in build.SOURCES:
        copy = tmp_path / name
        copy.mkdir()
        for source in build.SOURCES:
            (copy / source).write_bytes((build.HERE / source).read_bytes() + b" " * (source == name))
        with monkeypatch.context() as patched:
            patched.setattr(build, "HERE", copy)
            names.add(build.library_path().name)
    monkeypatch.setattr(build, "NVCC_FLAGS", (*build.NVCC_FLAGS, "-lineinfo"))
    names.add(build.library_path().name)
    monkeypatch.setattr(build, "_ffi_version", lambda: "0.4")
    names.add(build.library_path().name)
    assert len(names) == len(build.SOURCES) + 3
    included = {file.name for file in build.HERE.iterdir() if file.suffix in (".h", ".cu", ".cc")}
    assert included - {"twin.cc"} == set(build.SOURCES)


def test_a_gpu_older_than_the_library_gets_the_xla_form(tmp_path, monkeypatch):
    """A P100 would load the library and fail at its first call."""
    library = tmp_path / "library.so"
    library.touch()
    old = types.SimpleNamespace(platform="gpu", compute_capability="6.0", device_kind="Tesla P100")
    monkeypatch.setattr(build, "library_path", lambda: library)
    monkeypatch.setattr(jax, "local_devices", lambda: [old])
    assert ops._load.__wrapped__() == (
        False, "built, but not for Tesla P100 (compute capability below 7.5): the XLA form is used"
    )  # fmt: skip
