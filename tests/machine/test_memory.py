"""machine/memory.py: sizes as people write them, and what a machine, a container and a process have."""

import platform

import pytest

from bidora_jax.errors import InputError
from bidora_jax.machine import memory


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
