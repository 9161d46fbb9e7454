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
    from bidora_jax.models.architectures.decoder import DecoderConfig
    from bidora_jax.planning.plans import Plan


METHODS = ("lora", "dora", "bidora")
FORMS = ("none", "int8", "nf4")


def counted(names: list[str], batch: int, tokens: int) -> Iterator[tuple[str, dict]]:
    """(name, {parameters, steps: {method: {quantization: bytes}}}) of each model, as they are counted."""
    from bidora_jax.models.adapters.adapter import count
    from bidora_jax.models.base import dense_shapes

    for name in names:
        config = shape(name)
        steps = {
            method: {form: step_bytes(config, listed_plan(method, form, batch, tokens)) for form in FORMS}
            for method in METHODS
        }
        yield name, {"parameters": count(dense_shapes(config, "bfloat16")), "steps": steps}


def step_bytes(config: "DecoderConfig", plan: "Plan") -> int:
    """What a run of this plan takes at its peak: by the compiler, or as it was counted before by this very code."""
    from bidora_jax.planning import plans, remat_choice

    file = _kept(config, plan)
    if file.is_file():
        return json.loads(file.read_text())["bytes"]
    print(f"counting {file.name}", end="\r", file=sys.stderr, flush=True) if sys.stderr.isatty() else None
    found = remat_choice.needed(plans.counted(config, plan, "bfloat16"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"bytes": found, "model": repr(config), "plan": repr(plan)}))
    except OSError:  # nowhere to keep it: counting anew is all that is lost
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


def _kept(config: "DecoderConfig", plan: "Plan") -> Path:
    """Where the count of this plan is kept; the name hangs on the sources, too."""
    from bidora_jax.machine.compile_cache import default_folder

    data = replace(plan.data, train_file="", val_file="")
    plan = replace(plan, model=replace(plan.model, path=""), data=data)
    rooms = ("data", "generation", "kernels", "machine", "models", "planning", "tasks", "training")
    sources = sorted(path for room in rooms for path in (Path(__file__).parents[1] / room).rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    digest.update(f"{config} {plan}".encode())
    return default_folder() / "footprints" / f"{digest.hexdigest()[:24]}.json"
