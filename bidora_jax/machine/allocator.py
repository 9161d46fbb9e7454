"""Lets glibc keep memory that is freed, or give it back to the system.

glibc returns every large block to the system as soon as it is freed. The next step then gets it back page by page, and the
system zeroes each page first. XLA frees all temporaries of a step at its end: on a CPU that took a tenth of a step's time, and a
fifth or more where a step keeps its activations. glibc can be told to keep freed blocks, but only those of the main thread: a
block of more than 64 MB for another thread always comes from the system. So a CPU's programs have to run in the thread that
calls them.
"""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """From here on the process keeps the memory that it frees. Returns False, and changes nothing, where there is no glibc.

    The peak of resident memory stays the same, but the process does not shrink before it ends. It also makes a CPU's programs
    run in the thread that calls them, and so must be called before JAX has made its devices.
    """
    import jax

    if platform.libc_ver()[0] != "glibc":
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1))


def release_freed_memory() -> bool:
    """Gives freed memory back to the system, such as what compiling used; False where there is no glibc."""
    return platform.libc_ver()[0] == "glibc" and bool(ctypes.CDLL(None).malloc_trim(0))
