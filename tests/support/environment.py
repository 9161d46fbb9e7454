"""What is set before JAX and torch are imported, which read it once; imports neither. conftest.py imports this first."""

import os
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The emitters of fused loops can be chosen up to this version, and an XLA that does not know a flag ends the process.
CHOOSES_EMITTERS = tuple(map(int, version("jax").split(".")[:2])) < (0, 11)
# Compiling is most of a test's time, and at these sizes LLVM's optimisation buys nothing back. XLA's own emitters of fused loops
# make the compiler take 1.6 times as long as those before them.
FLAGS = ["--xla_backend_optimization_level=0", *["--xla_cpu_use_fusion_emitters=false"] * CHOOSES_EMITTERS]
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
# bitsandbytes compiles some of its CPU code with torch.compile, for minutes.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# Runs inside this process keep their files away from the user's cache.
os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir()) / "bidora_jax-tests")
AS_USERS = {"xla_cpu_use_fusion_emitters": True} if CHOOSES_EMITTERS else {}
"""Options of the compiler for a program whose memory is read: the older emitters spare copies that users' programs make."""


def keeps_programs(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Environment in which a process keeps every program that it compiles in `folder`, the small ones too."""
    return {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}  # fmt: skip


PROGRAMS = tempfile.mkdtemp(prefix="bidora_jax-programs-")
"""Compiled programs of this process. They come back in other tests of the same shapes, after jax.clear_caches() and in the
processes that a test starts. Each worker has a folder of its own, since JAX does not write an entry in one piece."""
os.environ.update(keeps_programs(PROGRAMS))
