"""machine/memory.py: freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

from bidora_jax.errors import InputError
from bidora_jax.machine import memory

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


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8e9), ("7.5 GiB", 7.5 * 2**30), ("512mb", 512e6), ("1000", 1000), ("2k", 2000), ("1Gi", 2**30)],
)
def test_sizes_are_read(text, size):
    assert memory.parse_size(text) == size
    assert memory.device_memory(text) == (size, f"memory_limit {text}")


@pytest.mark.parametrize("text", ["eight", "8 PB", "-1GB", "0GB", "GB", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match="expected a size such as 8GB"):
        memory.parse_size(text)


GB = 10**9


@pytest.mark.parametrize(
    ("host", "limit", "used", "expected"),
    [(8 * GB, None, None, 8 * GB), (8 * GB, 5 * GB, 2 * GB, 3 * GB), (2 * GB, 5 * GB, GB, 2 * GB), (None, None, None, None),
     (8 * GB, 5 * GB, None, 5 * GB), (8 * GB, 2 * GB, 3 * GB, 0)],
)  # fmt: skip
def test_a_containers_limit_bounds_what_is_available(monkeypatch, host, limit, used, expected):
    files = {
        "/proc/meminfo": f"MemFree: 1 kB\nMemAvailable: {host // 1024} kB\n" if host else "",
        "/sys/fs/cgroup/memory.max": f"{limit}\n" if limit else "max\n",
        "/sys/fs/cgroup/memory.current": f"{used}\n" if used else "",
    }
    monkeypatch.setattr(memory, "read", lambda file: files.get(file, ""))
    found = memory.available()
    assert found == expected if expected is None else abs(found - expected) < 1024


@pytest.mark.skipif(platform.system() != "Linux", reason="about Linux")
def test_this_process_is_measured():
    assert memory.resident("VmHWM") >= memory.resident() > 10**7
    before = memory.process_seconds()
    assert 0 < before <= memory.process_seconds() < before + 60
