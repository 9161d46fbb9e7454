"""Compiled programs kept between runs: a second run of the same shapes starts without compiling.

JAX's persistent cache, on by default for `train`. XLA compiles for the processor it finds, so the folder for a CPU has the
CPU's features in its name. Machines that share a home would otherwise run each other's instructions.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax

from bidora_jax.machine import facts
from bidora_jax.machine.files import chosen_folder, user_cache


def keep_compiled(setting: str) -> Path | None:
    """Switches the cache on as `compilation_cache` says: a folder, "auto" for the user's cache folder, "" for none.

    Returns the folder. One that the environment names for JAX already (JAX_COMPILATION_CACHE_DIR) is kept instead.
    """
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if named:
        return Path(named)
    if not setting:
        return None
    folder = chosen_folder(setting, default_folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home to write to: every run compiles anew
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # the many small programs of a start add up
    return folder


def default_folder() -> Path:
    """bidora_jax/ in the user's cache folder, by JAX version and, on a CPU, by its features."""
    backend = jax.default_backend()
    kind = f"cpu-{_features()}" if backend == "cpu" else backend
    return user_cache() / f"jax-{jax.__version__}-{kind}"


def _features() -> str:
    """A short name for the instructions this processor has."""
    flags = facts.cpu_line(*facts.FLAGS) or platform.processor()
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]
