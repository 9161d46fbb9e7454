"""python -m bidora_jax.kernels.cuda.build

Compiles the CUDA dequantisation with nvcc into $XDG_CACHE_HOME/bidora_jax (~/.cache/bidora_jax without it), under a name
that a change of the sources, of the flags or of XLA's call interface changes too: a library of other sources is never
loaded. CUDA's runtime is linked in, so that the library asks only for a driver where it runs.

The nvcc that jax[cuda13] installs will do, with the package nvidia-cuda-cccl beside it for the headers that it lacks.
"""

import argparse
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bidora_jax.errors import InputError, RunError, command
from bidora_jax.machine.files import user_cache

HERE = Path(__file__).parent
SOURCES = ("dequantise.h", "tables.h", "checks.h", "dequantise.cu", "handlers.cc")
# Turing, Ampere with Ada, Hopper; later devices compile Hopper's PTX when they first load it.
ARCHITECTURES = ("75", "80", "90")
PTX = "90"
COMMON_FLAGS = ("-std=c++17", "-shared")
NVCC_FLAGS = (
    *COMMON_FLAGS, "-O3", "-cudart=static", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xlinker=--exclude-libs,ALL",
    *(f"-gencode=arch=compute_{one},code=sm_{one}" for one in ARCHITECTURES),
    f"-gencode=arch=compute_{PTX},code=compute_{PTX}",
)  # fmt: skip
# Without contraction: a fused multiply-add would round the absmax of double quantisation once instead of twice.
TWIN_FLAGS = (*COMMON_FLAGS, "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror")
BUILT_FOR = ", ".join(f"sm_{one}" for one in ARCHITECTURES) + " and PTX"
COMMAND = "python -m bidora_jax.kernels.cuda.build"


def main(argv: list[str]) -> None:
    argparse.ArgumentParser(prog=COMMAND, description="Compile the CUDA dequantisation with nvcc.").parse_args(argv)
    path = library_path()
    if path.exists():
        print(f"already built for {BUILT_FOR}: {path}")
        return
    nvcc = find_nvcc()
    print(f"compiling for {BUILT_FOR} with {nvcc}")
    began = time.monotonic()
    build(nvcc, path)
    print(f"built in {time.monotonic() - began:.1f} s, {path.stat().st_size / 2**20:.1f} MiB: {path}")


def build(nvcc: Path, path: Path) -> None:
    """Compiles the library to `path`, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _compile([str(nvcc), *NVCC_FLAGS], [HERE / "dequantise.cu", HERE / "handlers.cc"], path)


def build_twin(folder: Path) -> Path:
    """Compiles the CPU twin of the targets with g++ into `folder`; for tests."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise InputError("g++ was not found on PATH; install a C++17 compiler to build the CPU twin")
    path = folder / "dequantise-twin.so"
    _compile([compiler, *TWIN_FLAGS], [HERE / "twin.cc"], path)
    return path


def _compile(start: list[str], sources: list[Path], path: Path) -> None:
    # Built in a folder of its own beside the target: of two builders at once, the last whole one stays.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
        fresh = Path(folder) / path.name
        line = [*start, "-isystem", _ffi_headers(), *map(str, sources), "-o", str(fresh)]
        run = subprocess.run(line, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RunError(f"{start[0]} failed with status {run.returncode}:\n{(run.stderr or run.stdout).strip()}")
        os.replace(fresh, path)


def find_nvcc() -> Path:
    """nvcc of CUDA_HOME, else of CUDA_PATH, else on PATH, else of NVIDIA's Python packages."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        root = os.environ.get(variable)
        if root and os.access(found := Path(root) / "bin" / "nvcc", os.X_OK):
            return found
    found = shutil.which("nvcc") or _packaged_nvcc()
    if found is None:
        raise InputError(
            "nvcc was not found in $CUDA_HOME/bin, in $CUDA_PATH/bin, on PATH or among the Python packages; set CUDA_HOME "
            "to a CUDA toolkit, 12 or newer, or pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-cccl. It is "
            "not needed: without this library dequantisation runs as XLA compiles it"
        )
    return Path(found)


def _packaged_nvcc() -> str | None:
    """nvcc of the package nvidia-cuda-nvcc, which jax[cuda13] brings along."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else None
    found = [str(path) for folder in folders or () for path in Path(folder).glob("cu*/bin/nvcc")]
    return max(found, default=None)


def library_path() -> Path:
    """Where the library of these very sources, flags, machine and call interface lies once it is built."""
    digest = hashlib.sha256("\0".join([_ffi_version(), platform.machine(), *NVCC_FLAGS]).encode())
    for name in SOURCES:
        digest.update(b"\0" + (HERE / name).read_bytes())
    return user_cache() / f"dequantise-{digest.hexdigest()[:16]}.so"


def _ffi_headers() -> str:
    import jax.ffi  # here, so that --help and a missing nvcc are answered at once

    return jax.ffi.include_dir()


def _ffi_version() -> str:
    text = (Path(_ffi_headers()) / "xla" / "ffi" / "api" / "c_api.h").read_text()
    return ".".join(re.findall(r"#define XLA_FFI_API_(?:MAJOR|MINOR) (\d+)", text))


if __name__ == "__main__":
    command(main)
