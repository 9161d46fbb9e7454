"""Time and memory of a training step under every remat policy and exact hypergradient form.

    python benchmarks/speed/remat.py [--method lora dora bidora] [--remat none dots layer] [--form exact reverse]
        [--micro-batches 1 4]

The model has SmolLM2-135M's shape as a Qwen3 (30 layers x 576, vocabulary 49,152), random bf16 weights, and rank 8 on all seven
projections. The batch is 4 x 256 tokens on each level, whole or in micro-batches. The steps are those of `train`, compiled ahead
of time. A round is one step of each, in turn, and a ratio compares a step with the first row's step of the same round. The
memory is the compiler's count (planning/footprint.py). --layers, --hidden, --batch, --tokens, --rounds and --dtype change the
size. --shapes counts the memory and runs nothing, for instance at --layers 28 --hidden 1024.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp

from bidora_jax.data.settings import DataConfig
from bidora_jax.machine.allocator import keep_freed_memory
from bidora_jax.models import quantization
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.settings import ModelConfig
from bidora_jax.planning import footprint, remat_choice
from bidora_jax.training import phases
from bidora_jax.training.settings import OptimizerConfig, SearchConfig

sys.path.insert(0, str(Path(__file__).parents[1]))  # random_models.py
from random_models import random_like


def main() -> None:
    options = parsed()
    keep_freed_memory()
    print(f"{options.layers} layers x {options.hidden}, {options.dtype}, batch {options.batch} x {options.tokens}; "
          f"{jax.devices()[0].device_kind}, jax {jax.__version__}", flush=True)  # fmt: skip
    for method in options.method:
        contestants = []
        forms = options.form if method == "bidora" else ["exact"]
        for choice in itertools.product(options.remat, forms, options.micro_batches):
            contestants.append(contestant(method, *choice, options))
        report(contestants, options)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--method", nargs="+", default=["lora", "dora", "bidora"])
    add("--remat", nargs="+", default=["none", "dots", "layer"])
    add("--form", nargs="+", default=["reverse", "exact"])
    add("--micro-batches", nargs="+", type=int, default=[1], help="into how many the batch is cut")
    add("--layers", type=int, default=30)
    add("--hidden", type=int, default=576, help="width, a multiple of 64")
    add("--vocabulary", type=int, default=49_152)
    add("--batch", type=int, default=4)
    add("--tokens", type=int, default=256)
    add("--rounds", type=int, default=3)
    add("--dtype", default="bfloat16")
    add("--shapes", action="store_true")
    options = parser.parse_args()
    for parts in options.micro_batches:
        if parts < 1 or options.batch % parts:
            parser.error(f"--micro-batches {parts}: --batch {options.batch} can't be cut into so many equal parts")
    return options


def shape(options) -> DecoderConfig:
    heads = options.hidden // 64
    kv_heads = next(kv for kv in (heads // 3, heads // 2, heads) if kv and heads % kv == 0)
    return DecoderConfig(
        vocab_size=options.vocabulary, hidden_size=options.hidden, intermediate_size=options.hidden * 8 // 3,
        num_layers=options.layers, num_heads=heads, num_kv_heads=kv_heads, head_dim=64, rms_norm_eps=1e-6,
        rope_theta=1e5, tie_word_embeddings=True, qk_norm=True, qkv_bias=False, o_bias=False, max_position_embeddings=8192,
    )  # fmt: skip


class Contestant:
    """One compiled step and its state."""

    def __init__(self, name: str, parts: footprint.Footprint, seconds: float, step) -> None:
        self.name, self.parts, self.compile_seconds, self.step = name, parts, seconds, step
        self.seconds: list[float] = []


def contestant(method: str, remat: str, form: str, micro_batches: int, options) -> Contestant:
    config, model = shape(options), ModelConfig(remat=remat, dtype=options.dtype)
    adapter = adapters.resolve(AdapterConfig(method=method), config)
    base = quantization.base_shapes(model, config, jnp.dtype(options.dtype))
    base = base if options.shapes else random_like(base, jax.random.key(0))
    data = DataConfig(batch_size=options.batch // micro_batches, accumulation=micro_batches, buckets=1)
    problem = remat_choice.synthetic(config, model, adapter, base, data, options.tokens)
    search = SearchConfig(steps=100, hypergradient=form)
    phase, start = phases.first_phase(method, problem, search, OptimizerConfig(), OptimizerConfig())
    (step_shape,) = phase.step_shapes(0)
    began = time.monotonic()
    step_shape[0].compile(start.state, step_shape[1])
    seconds = time.monotonic() - began
    parts = footprint.of(problem, phase, start.state, step_shape)
    name = f"{method}, {remat}" + (f", {form}" if method == "bidora" else "")
    name += f", in {micro_batches}" if micro_batches > 1 else ""
    held = [start.state]
    batches = phase.inputs(0).batches

    def step() -> None:
        state, _ = jax.block_until_ready(phase.advance(held.pop(), batches))
        held.append(state)

    if not options.shapes:
        step()
    print(f"  {name}: compiled in {seconds:.0f} s", flush=True)
    return Contestant(name, parts, seconds, step)


def report(contestants: list[Contestant], options) -> None:
    for number in range(0 if options.shapes else options.rounds):
        first = number % len(contestants)
        for one in contestants[first:] + contestants[:first]:
            began = time.perf_counter()
            one.step()
            one.seconds.append(time.perf_counter() - began)
    print("| step, remat | s a step | ratio | temporaries | of them loss | peak | compiled in |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for one in contestants:
        ratios = [own / base for own, base in zip(one.seconds, contestants[0].seconds, strict=True)]
        parts = one.parts
        times = ["", ""]
        if ratios:
            times = [f"{median(one.seconds):.2f}", f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"]
        sizes = [footprint.gigabytes(value) for value in (parts.temporaries, parts.loss, parts.peak)]
        cells = [one.name, *times, *sizes, f"{one.compile_seconds:.0f} s"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
