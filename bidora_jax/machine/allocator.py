"""What the C library does with memory that is freed.

glibc returns every large block to the system as soon as it is freed, and the next step gets it again page by page, each one
zeroed first. XLA frees all temporaries of a step at its end: on a CPU a tenth of a step's time went into that, a fifth and more
where a step keeps its activations. What glibc is told to keep it keeps of the main thread alone: a block past 64 MB that
another one asks for is always the system's. So a CPU's programs have to run in the thread that calls them.
"""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Lets the process keep what it frees, from here on; False where the C library is not glibc, and nothing is changed.

    The peak of resident memory stays what it was, but the process does not shrink before it ends. Programs of a CPU run in the
    thread that calls them from here on; for that it must be called before JAX has made its devices.
    """
    import jax

    if platform.libc_ver()[0] != "glibc":
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1))


def release_freed_memory() -> bool:
    """Gives back to the system what is free now, such as what compiling left; False where the C library is not glibc."""
    return platform.libc_ver()[0] == "glibc" and bool(ctypes.CDLL(None).malloc_trim(0))
