"""python -m bidora_jax.info [--json] [--recommend]

What this machine and this installation are: the part of a report, of a benchmark or of a question that is always missing.
--recommend adds which Qwen3 can be trained here and how, by the count that --auto goes by; it compiles for a minute the first
time.
"""

import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from bidora_jax import __version__
from bidora_jax.errors import command, program

Value: TypeAlias = str | int | float | list[str] | None
Section: TypeAlias = dict[str, Value]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
# What decides how fast a CPU multiplies in bfloat16 and in int8.
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "bf16", "sve")


@dataclass(frozen=True)
class InfoArguments:
    """Print the versions, the devices and the machine."""

    json: bool = False
    """Print JSON; memory is in bytes."""
    recommend: bool = False
    """Count what fits, and print the command line of the largest Qwen3 that can be trained here."""


def main(argv: list[str]) -> None:
    import tyro

    arguments = tyro.cli(InfoArguments, args=argv, prog=program("info"))
    facts = gather()
    if arguments.recommend:
        facts["recommended"] = recommended()
    print(json.dumps(facts, indent=2) if arguments.json else as_text(facts))


def gather() -> dict[str, Section]:
    """All facts by section. What cannot be found out is None."""
    return {"software": software(), "devices": devices(), "cuda ops": cuda_ops(), "host": host()}


def as_text(facts: dict[str, Section]) -> str:
    """Sections of aligned names and values."""
    width = max(len(name) for section in facts.values() for name in section)
    blocks = [
        "\n".join([title, *(f"  {name:<{width}}  {_spelt(name, value)}" for name, value in section.items())])
        for title, section in facts.items()
    ]
    return "\n\n".join(blocks)


def _spelt(name: str, value: Value) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, list):
        return " ".join(value) or "none"
    return f"{value / 2**30:.1f} GiB" if isinstance(value, int) and "memory" in name else str(value)


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


def cuda_ops() -> Section:
    from bidora_jax.kernels.cuda import ops

    return {"dequantisation": ops.status()}


def host() -> Section:
    from bidora_jax.training import memory

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


PATIENCE = 24 * 3600.0
"""Seconds that 1,000 steps may take on a CPU for a model to be recommended there."""


def recommended() -> Section:
    """The largest Qwen3 whose BiDoRA step fits this device, and the command line that trains it.

    The compiler counts the memory. On a CPU time decides as well, by the step's arithmetic at a rate measured for a moment.
    """
    import jax

    from bidora_jax import catalog
    from bidora_jax.training import fitting, planning
    from bidora_jax.training.memory import device_memory

    memory = device_memory()
    rate = planning.dot_rate("bfloat16") if jax.default_backend() == "cpu" else None
    for name in reversed([name for name, (family, *_) in catalog.MODELS.items() if family == "qwen3"]):
        config = catalog.shape(name)
        for form in catalog.FORMS:
            plan = catalog.plan("bidora", form, 1, 1024)
            seconds = planning.arithmetic(config, plan) / rate if rate else 0.0
            if 1000 * seconds > PATIENCE or planning.base_bytes(config, plan, "bfloat16") > fitting.FITS * memory.bytes:
                continue
            peak = catalog.step_bytes(config, plan)
            if peak > fitting.FITS * memory.bytes:
                continue
            quantised = "" if form == "none" else f" --model.quantization {form}"
            command = (
                f"python -m bidora_jax.train --model.path {name} --model.dtype bfloat16{quantised} --data.batch-size 1 "
                "--data.accumulation 4 --data.train-file data.jsonl --data.val-fraction 0.2 --auto"
            )
            return {
                "model": name, "quantization": form, "memory of a step": peak,
                "seconds a record of 1,024 tokens": round(seconds, 1) if rate else None, "command": command,
            }  # fmt: skip
    return {"model": "none of the Qwen3 models fits; python -m bidora_jax.models --family all lists smaller ones"}


def _cpu() -> tuple[str | None, set[str]]:
    """Name and feature flags of the first core, as Linux tells them."""
    lines = _read("/proc/cpuinfo").splitlines()
    pairs = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    first = dict(reversed(pairs))
    flags = first.get("flags") or first.get("Features") or ""
    return first.get("model name") or platform.processor() or None, set(flags.split())


def _read(file: str) -> str:
    try:
        return Path(file).read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    command(main)
