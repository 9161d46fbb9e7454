"""What a training step of each published model takes, by the compiler's count."""

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidora_jax.machine.files import write_whole
from bidora_jax.models.architectures.published import shape

if TYPE_CHECKING:
    from bidora_jax.machine.memory import Memory
    from bidora_jax.models.architectures.decoder import DecoderConfig
    from bidora_jax.planning.plans import Plan


METHODS = ("lora", "dora", "bidora")


def counted(names: list[str], batch: int, tokens: int) -> Iterator[tuple[str, dict]]:
    """(name, {parameters, steps: {method: {quantization: bytes}}}) of each model, as they are counted."""
    from bidora_jax.models.adapters.adapter import count
    from bidora_jax.models.base import dense_shapes
    from bidora_jax.models.settings import QUANTIZATIONS

    for name in names:
        config = shape(name)
        steps = {
            method: {form: step_bytes(config, listed_plan(method, form, batch, tokens)) for form in QUANTIZATIONS}
            for method in METHODS
        }
        yield name, {"parameters": count(dense_shapes(config, "bfloat16")), "steps": steps}


def as_text(rows: Iterator[tuple[str, dict]], memory: "Memory", batch: int, tokens: int) -> Iterator[str]:
    """The table of what `counted` gives, line by line; the last column says what fits the memory."""
    import jax

    from bidora_jax.models.settings import QUANTIZATIONS
    from bidora_jax.planning.footprint import gigabytes
    from bidora_jax.planning.remat_choice import FITS

    allowed = FITS * memory.bytes
    yield (f"GB at the peak of a step of {batch} x {tokens} tokens on each level: bf16, rank 8 on all linear layers, remat layer,\n"
           f"the compiler's count for a {jax.default_backend()}; what fits is at most {gigabytes(allowed)}, "
           f"{FITS:.0%} of {gigabytes(memory.bytes)}, {memory.source}\n")  # fmt: skip
    forms = QUANTIZATIONS
    columns = "  ".join(f"{method:^20s}" for method in METHODS)
    yield f"{'':27s} {'parameters':>10s}  {columns}"
    yield f"{'':38s}  " + "  ".join("".join(f"{form:>6s}" for form in forms) + "  " for _ in METHODS) + "  fits here"
    for name, row in rows:
        cells = "  ".join("".join(f"{row['steps'][m][f] / 1e9:6.1f}" for f in forms) + "  " for m in METHODS)
        fits = {m: next((f for f in forms if row["steps"][m][f] <= allowed), None) for m in METHODS}
        fitting = ", ".join(f"{m} {f}" for m, f in fits.items() if f) or "nothing"
        yield f"{name:27s} {row['parameters'] / 1e9:8.2f} B  {cells}  {fitting}"


def step_bytes(config: "DecoderConfig", plan: "Plan") -> int:
    """Bytes that a run of this plan takes at its peak: counted by the compiler, or kept from an earlier count by this very code."""
    from bidora_jax.planning import plans, remat_choice

    file = _kept_file(config, plan)
    if file.is_file():
        return json.loads(file.read_text())["bytes"]
    print(f"counting {file.name}", end="\r", file=sys.stderr, flush=True) if sys.stderr.isatty() else None
    found = remat_choice.needed(plans.counted(config, plan, "bfloat16"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"bytes": found, "model": repr(config), "plan": repr(plan)}))
    except OSError:  # nowhere to keep it: the next call counts anew
        pass
    return found


def listed_plan(method: Any, form: Any, batch: int, tokens: int) -> "Plan":
    """A step as it is listed: the leanest exact form, rank 8 on all linear layers."""
    from bidora_jax.data.settings import DataConfig
    from bidora_jax.models.adapters.settings import AdapterConfig
    from bidora_jax.models.settings import ModelConfig
    from bidora_jax.planning.plans import Plan
    from bidora_jax.training.settings import SearchConfig

    return Plan(
        ModelConfig(quantization=form, remat="layer"), AdapterConfig(method=method),
        DataConfig(batch_size=batch, max_length=tokens), search=SearchConfig(hypergradient="exact"),
    )  # fmt: skip


def _kept_file(config: "DecoderConfig", plan: "Plan") -> Path:
    """Where the count of this plan is kept. The sources of every room that shapes a step are hashed into the name."""
    from bidora_jax.machine.compile_cache import default_folder

    data = replace(plan.data, train_file="", val_file="")
    plan = replace(plan, model=replace(plan.model, path=""), data=data)
    rooms = ("data", "generation", "kernels", "machine", "models", "planning", "tasks", "training")
    sources = sorted(path for room in rooms for path in (Path(__file__).parents[1] / room).rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    digest.update(f"{config} {plan}".encode())
    return default_folder() / "footprints" / f"{digest.hexdigest()[:24]}.json"
