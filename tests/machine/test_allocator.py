"""machine/allocator.py: freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys
from bidora_jax.machine.allocator import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
block = libc.malloc(ctypes.c_size_t(200_000_000))
ctypes.memset(block, 1, 200_000_000)
full = resident()
libc.free(block)
print(full - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc")
@pytest.mark.parametrize(("mode", "kept"), [("keep", True), ("plain", False)])
def test_a_large_block_stays_only_when_asked(mode, kept):
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 1e6) == kept


STEPS = """
import resource
from bidora_jax.machine.allocator import keep_freed_memory

keep_freed_memory()
import jax, jax.numpy as jnp

x = jnp.ones((5000, 100))
step = jax.jit(lambda x: jnp.sum((x @ x.T) @ x))  # 100 MB between two products
for _ in range(10):  # until the heap has found its places
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc")
def test_the_temporaries_of_a_program_stay_from_step_to_step():
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 12_000  # pages, of five steps; in another thread than the main one it is 24,000 in each
