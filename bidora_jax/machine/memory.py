"""Memory of the machine: how much a device has, what is available on the host, and how much this process holds."""

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from bidora_jax.errors import InputError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


class Memory(NamedTuple):
    """The memory that a run may plan with."""

    bytes: int
    source: str
    """Where the number comes from."""


def device_memory(limit: str = "") -> Memory:
    """What the first device may hold: `limit` ("8GB") where it is given, else a GPU's own limit, else what this host has left.

    For a host that is what the system says is available now, within the limit of the container. Memory that this process
    holds already is not in it.
    """
    if limit:
        return Memory(parse_size(limit), f"memory_limit {limit}")
    import jax

    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return Memory(stats["bytes_limit"], device.device_kind)
    return Memory(available() or physical() or 0, "available on this host")


def parse_size(text: str) -> int:
    """Bytes of "8GB", "7.5 GiB" or "512MB"; a bare number is bytes. InputError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)\s*", text, re.IGNORECASE)
    unit = found[2].upper() if found else "?"
    unit = unit if unit.endswith("B") or not unit else unit + "B"
    if found is None or unit not in UNITS or not float(found[1]):
        raise InputError(f"memory_limit: expected a size such as 8GB or 7.5GiB, found {text!r}")
    return int(float(found[1]) * UNITS[unit])


def physical() -> int | None:
    """Memory of this host; None on a system that does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def container_limit() -> int | None:
    """What this container may use of the host's memory; None where there is no limit."""
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = read(file).strip()
        # Version 1 spells "no limit" as a number close to 2⁶³.
        if text.isdigit() and int(text) < 2**60:
            return int(text)
    return None


def available() -> int | None:
    """Bytes that can be allocated without swapping, within the container's limit; None on a system that does not tell."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", read("/proc/meminfo"), re.MULTILINE)
    host = 1024 * int(found[1]) if found else None
    limit = container_limit()
    used = read("/sys/fs/cgroup/memory.current").strip()
    left = limit - int(used) if limit is not None and used.isdigit() else limit
    known = [value for value in (host, left) if value is not None]
    return max(min(known), 0) if known else None


def resident(field: str = "VmRSS") -> int | None:
    """Bytes of this process in memory now (VmRSS) or at most so far (VmHWM), as Linux counts; None elsewhere."""
    found = re.search(rf"^{field}:\s+(\d+) kB", read("/proc/self/status"), re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def process_seconds() -> float | None:
    """How long this process has been running, as Linux counts; None elsewhere."""
    fields = read("/proc/self/stat").rpartition(")")[2].split()
    if len(fields) < 20:
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def read(file: str) -> str:
    """The text of a file of the system; empty where there is none."""
    try:
        return Path(file).read_text()
    except OSError:
        return ""
