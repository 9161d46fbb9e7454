"""Compiled programs kept between runs: a second run of the same shapes starts without compiling.

JAX's persistent cache, on by default for `train`. XLA compiles for the processor it finds, so the folder of a CPU names its
features: a home that several machines share would otherwise hand one of them another's instructions.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax

AUTO = "auto"


def keep_compiled(setting: str) -> Path | None:
    """Switches the cache on as `compilation_cache` says: a folder, "auto" for the user's cache folder, "" for none.

    A folder that the environment names for JAX already (JAX_COMPILATION_CACHE_DIR) is left in charge. Returns the folder.
    """
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if named:
        return Path(named)
    if not setting:
        return None
    folder = default_folder() if setting == AUTO else Path(setting).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home to write to: compiling anew is all that is lost
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # the many small programs of a start add up
    return folder


def default_folder() -> Path:
    """bidora_jax/ in the user's cache folder, by JAX version and, on a CPU, by its features."""
    backend = jax.default_backend()
    kind = f"cpu-{_features()}" if backend == "cpu" else backend
    return user_cache() / f"jax-{jax.__version__}-{kind}"


def user_cache() -> Path:
    """This package's folder in the user's cache folder; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bidora_jax"


def _features() -> str:
    """A short name for the instructions this processor has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]
