"""The exports of finished runs, written by the command line."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

MERGED = {"merged-bf16": "bfloat16", "merged-fp16": "float16", "merged-fp32": "float32"}
GGUF = {f"gguf-{kind}": kind for kind in ("f16", "bf16", "q8_0")}


class Runs(NamedTuple):
    run: Path
    first: Path
    second: Path
    base: str
    """The folder that all of them were trained from."""
    dtype: str
    """The one that they were trained in."""


def opened(run: Path, first: Path, second: Path) -> Runs:
    from bidora_jax.runs.folder import run_config

    configs = [run_config(str(one)) for one in (run, first, second)]
    if len(bases := {config.model.path for config in configs}) > 1:
        raise SystemExit(f"the runs have to be of one base, and are of {', '.join(sorted(bases))}")
    if methods := {config.adapter.method for config in configs[1:]} - {"lora"}:
        raise SystemExit(f"--lora-runs takes runs of LoRA, found {', '.join(sorted(methods))}")
    return Runs(run, first, second, configs[0].model.path, configs[0].model.dtype)


def commands(runs: Runs, folder: Path, rank: int) -> dict[str, list[str]]:
    """By name of an export: its flags. A later one may read an earlier one."""
    run, first, second = (["--run", str(one)] for one in runs[:3])
    dense = ["--model", str(folder / "merged-fp16")]
    return {
        **{name: [*run, "--format", "merged", "--dtype", dtype] for name, dtype in MERGED.items()},
        "adapter": [*run, "--format", "adapter"],
        "lora": [*run, "--format", "lora", *(["--rank", str(rank)] if rank else [])],
        "lora-1": [*first, "--format", "lora"],
        "lora-2": [*second, "--format", "lora"],
        **{name: [*run, "--format", "gguf", "--quantize", kind] for name, kind in GGUF.items()},
        "gguf-base": ["--model", runs.base, "--format", "gguf"],
        "gguf-lora": [*first, "--format", "gguf-lora"],
        "nf4": [*dense, "--quantization", "nf4"],
        "int8": [*dense, "--quantization", "int8"],
    }


def written(runs: Runs, work: Path, rank: int) -> tuple[dict[str, Path], dict[str, str]]:
    """Where each export is, and why one could not be written."""
    paths, faults = {"base": Path(runs.base)}, {}
    for name, flags in commands(runs, work / "exports", rank).items():
        paths[name] = work / "exports" / (f"{name}.gguf" if name.startswith("gguf") else name)
        if paths[name].exists():
            continue
        log = work / "logs" / f"export-{name}.log"
        with log.open("w") as file:
            command = [sys.executable, "-m", "bidora_jax.export", *flags, "--output", str(paths[name])]
            if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode:
                faults[name] = (log.read_text(errors="replace").strip() or "not a word").splitlines()[-1]
    return paths, faults


def trained_by(export: str) -> str:
    """Which of `Runs` an export was written of, or should differ from."""
    return {"lora-1": "first", "gguf-lora": "first", "lora-2": "second"}.get(export, "run")
