"""What this machine and this installation are: versions, devices, processor, memory."""

import importlib.metadata
import os
import platform
import sys
from typing import Any, TypeAlias

from bidora_jax.machine import memory
from bidora_jax.machine.version import __version__

Value: TypeAlias = str | int | float | list[str] | None
Section: TypeAlias = dict[str, Value]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
FLAGS = ("flags", "Features")
"""How a line of /proc/cpuinfo with the processor's instructions begins, on x86 and on ARM."""
# The features that decide how fast a CPU multiplies in bfloat16 and in int8.
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "bf16", "sve")


def software() -> Section:
    return {
        "bidora_jax": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> Section:
    """The devices that JAX uses, each with its memory where the platform tells."""
    import jax

    try:
        local = jax.local_devices()
    except RuntimeError as error:  # a platform was asked for that does not start: worth reporting, too
        return {"platform": f"none; {error}"}
    section: Section = {"platform": jax.default_backend(), "processes": jax.process_count()}
    for device in local:
        capability = getattr(device, "compute_capability", None)
        section[str(device)] = device.device_kind + (f", compute capability {capability}" if capability else "")
        if (stats := device.memory_stats()) and "bytes_limit" in stats:
            section[f"{device} memory"] = stats["bytes_limit"]
            section[f"{device} memory in use"] = stats.get("bytes_in_use")
    return section


def host() -> Section:
    model, flags = _cpu()
    limit = memory.container_limit()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": model,
        "cores": os.cpu_count(),
        "cores usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "features": [feature for feature in CPU_FEATURES if feature in flags],
        "memory": memory.physical(),
        "memory available": memory.available(),
        **({} if limit is None else {"memory limit": limit}),
    }


def _cpu() -> tuple[str | None, set[str]]:
    """Name and feature flags of the first core, as Linux tells them."""
    model, flags = (cpu_line(*names).partition(":")[2].strip() for names in (("model name",), FLAGS))
    return model or platform.processor() or None, set(flags.split())


def cpu_line(*names: str) -> str:
    """The first line of /proc/cpuinfo that begins with one of the names; empty where there is none."""
    lines = memory.read("/proc/cpuinfo").splitlines()
    return next((line for line in lines if line.startswith(names)), "")


def as_text(facts: dict[str, Section]) -> str:
    """Sections of aligned names and values."""
    width = max(len(name) for section in facts.values() for name in section)
    blocks = [
        "\n".join([title, *(f"  {name:<{width}}  {_in_words(name, value)}" for name, value in section.items())])
        for title, section in facts.items()
    ]
    return "\n\n".join(blocks)


def _in_words(name: str, value: Value) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, list):
        return " ".join(value) or "none"
    return f"{value / 2**30:.1f} GiB" if isinstance(value, int) and "memory" in name else str(value)


RUN_PACKAGES = ("bidora_jax", "jax", "flax", "optax")


def machine() -> dict[str, Any]:
    """The device and the versions of a run, for run.json."""
    import jax

    devices = jax.local_devices()
    kind = f"{devices[0].platform}: {devices[0].device_kind}" + (f" × {len(devices)}" if len(devices) > 1 else "")
    return {"device": kind, "versions": {name: importlib.metadata.version(name) for name in RUN_PACKAGES}}


def peak_memory() -> dict[str, int]:
    """Most bytes this process held so far: on the host, and on the fullest device where the platform tells."""
    import jax

    found = {}
    if sys.platform != "win32":  # which has no such count
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["host"] = used if sys.platform == "darwin" else used * 1024  # bytes there, KiB elsewhere
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if peaks := [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]:
        found["device"] = max(peaks)
    return found
