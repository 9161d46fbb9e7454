"""What a training step of each published model takes, by the compiler's count.

    bytes(form) = bytes of the step on a dense base + bytes of the base in that form − bytes of the dense base

A step's temporaries do not follow the form of its base: at Qwen3-8B's shape they were 3.17, 3.19 and 3.17 GB (benchmarks/LOG.md).
So one count, of seconds, serves all three forms. Counts of the steps that are listed by default ship with the package, as counted
for a CPU; all others are kept once they are made, by the version of JAX and the text of what shapes a step.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidora_jax.machine.files import write_whole
from bidora_jax.models.architectures import published

if TYPE_CHECKING:
    from bidora_jax.machine.memory import Memory
    from bidora_jax.models.architectures.decoder import DecoderConfig
    from bidora_jax.planning.plans import Plan


METHODS = ("lora", "dora", "bidora")
SHIPPED = Path(__file__).with_name("published_steps.json")
"""Made by benchmarks/memory/count_published.py."""
WORDS = {"none": "bf16", "int8": "int8", "nf4": "nf4"}
"""What a base in each form is called in a table: `none` would read as if nothing fitted."""


def counted(names: Sequence[str], batch: int, tokens: int) -> Iterator[tuple[str, dict]]:
    """(name, {parameters, steps: {method: {quantization: bytes}}}) of each model, as they are counted. What takes time is said."""
    from bidora_jax.models.adapters.adapter import count
    from bidora_jax.models.base import dense_shapes
    from bidora_jax.models.settings import QUANTIZATIONS

    dense = [(name, method, listed_plan(method, "none", batch, tokens)) for name in names for method in METHODS]
    anew = [(name, method) for name, method, plan in dense if known(published.shape(name), plan) is None]
    for name in names:
        config, steps = published.shape(name), {}
        for method in METHODS:
            if (name, method) in anew:
                _say(
                    f"counting {anew.index((name, method)) + 1} of {len(anew)} steps: {name}, {method}; seconds each, kept"
                )
            steps[method] = {
                form: step_bytes(config, listed_plan(method, form, batch, tokens)) for form in QUANTIZATIONS
            }
        _say("")
        yield name, {"parameters": count(dense_shapes(config, "bfloat16")), "steps": steps}


def _say(line: str) -> None:
    """A line of progress: on a terminal it takes the place of the one before it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    elif line:
        print(line, file=sys.stderr, flush=True)


def as_text(
    rows: Iterator[tuple[str, dict]], memory: "Memory", batch: int, tokens: int, seconds: dict[str, float | None]
) -> Iterator[str]:
    """The table of what `counted` gives, line by line; then in which forms of the base each method fits, and how long 1,000
    bidora steps take at least, by the seconds of one where they are known."""
    import jax

    from bidora_jax.models.settings import QUANTIZATIONS
    from bidora_jax.planning.footprint import gigabytes
    from bidora_jax.planning.remat_choice import FITS

    allowed = FITS * memory.bytes
    yield (f"GB at the peak of a step of {batch} x {tokens} tokens on each level: rank 8 on all linear layers, remat layer, by the "
           f"compiler's\ncount for a {jax.default_backend()}; bf16: the base as it is, int8 and nf4: in fewer bits "
           f"(--model.quantization). It fits in {gigabytes(allowed)},\n{FITS:.0%} of {gigabytes(memory.bytes)}, "
           f"{memory.source}, in the forms of the base that stand under `fits in`\n")  # fmt: skip
    forms = [WORDS[form] for form in QUANTIZATIONS]
    columns = "  ".join(f"{method:^20s}" for method in METHODS)
    fits_in = "  ".join(f"{f'{method} fits in':16s}" for method in METHODS)
    timed = any(seconds.values())
    yield f"{'':27s} {'parameters':>10s}  {columns}  {fits_in}{'  1,000 bidora steps' * timed}".rstrip()
    yield f"{'':38s}  " + "  ".join("".join(f"{form:>6s}" for form in forms) + "  " for _ in METHODS).rstrip()
    for name, row in rows:
        cells = "  ".join("".join(f"{row['steps'][m][f] / 1e9:6.1f}" for f in QUANTIZATIONS) + "  " for m in METHODS)
        fits = [
            "  ".join(WORDS[f] for f in QUANTIZATIONS if row["steps"][m][f] <= allowed) or "nothing" for m in METHODS
        ]
        each = seconds[name]
        hours = None if each is None else each / 3.6
        long = (
            "" if hours is None else f"  {hours:.1f} h or more" if hours < 48 else f"  {hours / 24:,.0f} days or more"
        )
        yield f"{name:27s} {row['parameters'] / 1e9:8.2f} B  {cells}  {'  '.join(f'{cell:16s}' for cell in fits)}{long}".rstrip()


def step_bytes(config: "DecoderConfig", plan: "Plan") -> int:
    """Bytes that a run of this plan takes at its peak."""
    from bidora_jax.planning import plans

    dense = replace(plan, model=replace(plan.model, quantization="none"))
    found = known(config, dense)
    if found is None:
        found = _count(config, dense)
    if plan == dense:
        return found
    held, instead = (plans.base_bytes(config, one, "bfloat16") for one in (dense, plan))
    return found - held + instead


def known(config: "DecoderConfig", plan: "Plan") -> int | None:
    """The bytes of a step that was counted before, for the package or here; None where it has to be counted."""
    import jax

    shipped = json.loads(SHIPPED.read_text(encoding="utf-8"))
    by = shipped["counted by"]
    for name, steps in shipped["steps"].items() if jax.default_backend() == by["platform"] else ():
        listed = listed_plan(plan.adapter.method, plan.model.quantization, by["batch"], by["tokens"])
        if plan == listed and plan.adapter.method in steps and config == published.shape(name):
            return steps[plan.adapter.method]
    file = _kept_file(config, plan)
    return json.loads(file.read_text())["bytes"] if file.is_file() else None


def _count(config: "DecoderConfig", plan: "Plan") -> int:
    """Counts a step, and keeps the count."""
    from bidora_jax.planning import plans, remat_choice

    found = remat_choice.needed(plans.counted(config, plan, "bfloat16"))
    file = _kept_file(config, plan)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"bytes": found, "model": repr(config), "plan": repr(plan)}))
    except OSError as error:
        _say_not_kept(file.parent, error.strerror)
    return found


@functools.cache
def _say_not_kept(folder: Path, why: str) -> None:
    """Once, of however many."""
    print(f"counts are not kept, as {folder} cannot be written ({why}): the next call counts anew", file=sys.stderr)


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
    """Where the count of this plan is kept, in a folder of JAX's version."""
    from bidora_jax.machine.compile_cache import default_folder

    data = replace(plan.data, train_file="", val_file="")
    plan = replace(plan, model=replace(plan.model, path=""), data=data)
    digest = hashlib.sha256(f"{_sources()} {config} {plan}".encode())
    return default_folder() / "footprints" / f"{digest.hexdigest()[:24]}.json"


@functools.cache
def _sources() -> str:
    """The version of the package as far as it shapes a step: a hash of the text of those rooms."""
    rooms = ("data", "generation", "kernels", "machine", "models", "planning", "tasks", "training")
    files = sorted(path for room in rooms for path in (Path(__file__).parents[1] / room).rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
