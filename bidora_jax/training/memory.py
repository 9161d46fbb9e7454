"""What the C library does with memory that a training step gives back.

glibc returns every large block to the system as soon as it is freed, and the next step gets it again page by page, each one
zeroed first. XLA frees all temporaries of a step at its end: on a CPU a tenth of a step's time went into that.
"""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Lets the process keep what it frees, from here on; False where the C library is not glibc, and nothing is changed.

    The peak of resident memory stays what it was, but the process does not shrink before it ends.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1))
