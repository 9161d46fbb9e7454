"""python -m bidora_jax.models [--family qwen3] [--batch 1] [--tokens 1024] [--memory-limit 24GB] [--json]

Models of the families that are read, and what a training step of each takes, by method and quantisation, on this machine.

Typed in are the numbers of each config.json alone. Parameters are counted over the shapes of the tree (`jax.eval_shape`),
memory by the compiler over the step compiled from shapes: nothing is downloaded, nothing is allocated. Layers are scanned, so
a large model compiles as fast as a small one. What was counted once is kept beside the compiled programs.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bidora_jax.errors import command, program

if TYPE_CHECKING:
    from bidora_jax.models.decoder import DecoderConfig
    from bidora_jax.training.memory import Memory
    from bidora_jax.training.planning import Plan

FAMILIES = ("qwen3", "qwen2", "llama", "mistral")
METHODS = ("lora", "dora", "bidora")
FORMS = ("none", "int8", "nf4")
# name: (family, vocabulary, hidden, intermediate, layers, heads, key/value heads, head size, tied), of its config.json
MODELS = {
    "Qwen/Qwen3-0.6B": ("qwen3", 151_936, 1024, 3072, 28, 16, 8, 128, True),
    "Qwen/Qwen3-1.7B": ("qwen3", 151_936, 2048, 6144, 28, 16, 8, 128, True),
    "Qwen/Qwen3-4B": ("qwen3", 151_936, 2560, 9728, 36, 32, 8, 128, True),
    "Qwen/Qwen3-8B": ("qwen3", 151_936, 4096, 12_288, 36, 32, 8, 128, False),
    "Qwen/Qwen3-14B": ("qwen3", 151_936, 5120, 17_408, 40, 40, 8, 128, False),
    "Qwen/Qwen3-32B": ("qwen3", 151_936, 5120, 25_600, 64, 64, 8, 128, False),
    "Qwen/Qwen2.5-0.5B": ("qwen2", 151_936, 896, 4864, 24, 14, 2, 64, True),
    "Qwen/Qwen2.5-7B": ("qwen2", 152_064, 3584, 18_944, 28, 28, 4, 128, False),
    "HuggingFaceTB/SmolLM2-135M": ("llama", 49_152, 576, 1536, 30, 9, 3, 64, True),
    "meta-llama/Llama-3.2-1B": ("llama", 128_256, 2048, 8192, 16, 32, 8, 64, True),
    "meta-llama/Llama-3.1-8B": ("llama", 128_256, 4096, 14_336, 32, 32, 8, 128, False),
    "mistralai/Mistral-7B-v0.3": ("mistral", 32_768, 4096, 14_336, 32, 32, 8, 128, False),
}


@dataclass(frozen=True)
class ModelsArguments:
    """List models with their parameters and the memory that a training step of each takes here."""

    family: Literal["qwen3", "qwen2", "llama", "mistral", "all"] = "qwen3"
    """Which models."""
    batch: int = 1
    """Records in a micro-batch, on each level."""
    tokens: int = 1024
    """Tokens of a record."""
    memory_limit: str = ""
    """Memory to fit, such as 24GB; empty: what the device has."""
    json: bool = False
    """Print JSON; memory is in bytes."""


def main(argv: list[str]) -> None:
    import tyro

    arguments = tyro.cli(ModelsArguments, args=argv, prog=program("models"))
    from bidora_jax.training.memory import device_memory

    memory = device_memory(arguments.memory_limit)
    names = [name for name, (family, *_) in MODELS.items() if arguments.family in (family, "all")]
    rows = counted(names, arguments.batch, arguments.tokens)
    if arguments.json:
        print(json.dumps({"memory": memory._asdict(), "models": dict(rows)}, indent=2))
        return
    for line in as_text(rows, memory, arguments):
        print(line, flush=True)


def shape(name: str) -> "DecoderConfig":
    """The model's shape; what does not touch memory (rotation, norms' epsilon) is of no account here."""
    from bidora_jax.models.decoder import DecoderConfig

    family, vocabulary, hidden, intermediate, layers, heads, kv_heads, head_dim, tied = MODELS[name]
    return DecoderConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=head_dim, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=tied,
        qk_norm=family == "qwen3", qkv_bias=family == "qwen2", o_bias=False, max_position_embeddings=32_768,
    )  # fmt: skip


def counted(names: list[str], batch: int, tokens: int) -> Iterator[tuple[str, dict]]:
    """(name, {parameters, steps: {method: {quantization: bytes}}}) of each model, as they are counted."""
    from bidora_jax.models import decoder
    from bidora_jax.models.adapters import count

    for name in names:
        config = shape(name)
        steps = {
            method: {form: step_bytes(config, plan(method, form, batch, tokens)) for form in FORMS}
            for method in METHODS
        }
        yield name, {"parameters": count(decoder.base_shapes(config, "bfloat16")), "steps": steps}


def step_bytes(config: "DecoderConfig", plan: "Plan") -> int:
    """What a run of this plan takes at its peak: by the compiler, or as it was counted before by this very code."""
    from bidora_jax.training import fitting, planning

    file = _kept(config, plan)
    if file.is_file():
        return json.loads(file.read_text())["bytes"]
    print(f"counting {file.name}", end="\r", file=sys.stderr, flush=True) if sys.stderr.isatty() else None
    found = fitting.needed(planning.counted(config, plan, "bfloat16"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps({"bytes": found, "model": repr(config), "plan": repr(plan)}))
        temporary.replace(file)
    except OSError:  # nowhere to keep it: counting anew is all that is lost
        pass
    return found


def as_text(rows: Iterator[tuple[str, dict]], memory: "Memory", arguments: ModelsArguments) -> Iterator[str]:
    """The table, line by line."""
    import jax

    from bidora_jax.training.fitting import FITS
    from bidora_jax.training.footprint import gigabytes

    allowed = FITS * memory.bytes
    yield (f"GB at the peak of a step of {arguments.batch} x {arguments.tokens} tokens on each level: bf16, rank 8 on all linear "
           f"layers, remat layer,\nthe compiler's count for a {jax.default_backend()}; what fits is at most {gigabytes(allowed)}, "
           f"{FITS:.0%} of {gigabytes(memory.bytes)}, {memory.said}\n")  # fmt: skip
    columns = "  ".join(f"{method:^20s}" for method in METHODS)
    yield f"{'':27s} {'parameters':>10s}  {columns}"
    yield f"{'':38s}  " + "  ".join("".join(f"{form:>6s}" for form in FORMS) + "  " for _ in METHODS) + "  fits here"
    for name, row in rows:
        cells = "  ".join("".join(f"{row['steps'][m][f] / 1e9:6.1f}" for f in FORMS) + "  " for m in METHODS)
        fits = {m: next((f for f in FORMS if row["steps"][m][f] <= allowed), None) for m in METHODS}
        said = ", ".join(f"{m} {f}" for m, f in fits.items() if f) or "nothing"
        yield f"{name:27s} {row['parameters'] / 1e9:8.2f} B  {cells}  {said}"


def plan(method: Any, form: Any, batch: int, tokens: int) -> "Plan":
    """A step as it is listed: the leanest exact form, rank 8 on all linear layers."""
    from bidora_jax.models.settings import AdapterConfig, ModelConfig
    from bidora_jax.training.planning import Plan
    from bidora_jax.training.settings import DataConfig, SearchConfig

    return Plan(
        ModelConfig(quantization=form, remat="layer"), AdapterConfig(method=method),
        DataConfig(batch_size=batch, max_length=tokens), search=SearchConfig(hypergradient="exact"),
    )  # fmt: skip


def _kept(config: "DecoderConfig", plan: "Plan") -> Path:
    """Where the count of this plan is kept; the name hangs on the sources, too."""
    from bidora_jax.training.compilation import default_folder

    data = replace(plan.data, train_file="", val_file="")
    plan = replace(plan, model=replace(plan.model, path=""), data=data)
    floors = ("kernels", "models", "training")
    sources = sorted(path for floor in floors for path in (Path(__file__).parent / floor).rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    digest.update(f"{config} {plan}".encode())
    return default_folder() / "footprints" / f"{digest.hexdigest()[:24]}.json"


if __name__ == "__main__":
    command(main)
