"""run.json of a run: what metrics.jsonl can't tell, written by the process that trains.

started, device, versions, parameters, records        at the start
peak_memory, result_loss, exact_matches, finished     at the end
"""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import jax

FILE = "run.json"
PACKAGES = ("bidora_jax", "jax", "flax", "optax")


def write(folder: Path, **facts: Any) -> None:
    """Sets these facts and keeps the others."""
    temporary = folder / f".{FILE}.tmp"
    temporary.write_text(json.dumps(read(folder) | facts, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / FILE)


def read(folder: Path) -> dict[str, Any]:
    """The facts known so far; none of a run that never wrote any."""
    file = folder / FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def machine() -> dict[str, Any]:
    """What the run computes on and with."""
    devices = jax.local_devices()
    kind = f"{devices[0].platform}: {devices[0].device_kind}" + (f" × {len(devices)}" if len(devices) > 1 else "")
    return {"device": kind, "versions": {name: importlib.metadata.version(name) for name in PACKAGES}}


def peak_memory() -> dict[str, int]:
    """Most bytes this process held so far: on the host, and on the fullest device where the platform tells."""
    found = {}
    try:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["host"] = used if sys.platform == "darwin" else used * 1024  # bytes there, KiB elsewhere
    except ImportError:  # a system without it
        pass
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if peaks := [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]:
        found["device"] = max(peaks)
    return found
