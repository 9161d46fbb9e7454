"""Peak memory of one training step for Qwen3-0.6B's shape, by the compiler's count: nothing is allocated.

    python benchmarks/memory/step_memory.py [--batch 2] [--tokens 512] [--forms exact reverse]

The base is bf16, remat is layer, and all seven projections have rank 8. Prints the compiler's memory analysis for LoRA, DoRA and
each form of the BiDoRA step. It also lists buffers that must not exist: [tokens, vocabulary], and a float32 copy or gradient of
a base matrix.
"""

import argparse
import re
import time
from functools import partial

import jax
import jax.numpy as jnp

from bidora_jax.kernels.xla_cpu import weights
from bidora_jax.kernels.xla_cpu.weights import held_as_bits
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures.decoder import DecoderConfig, linear_shapes
from bidora_jax.models.base import dense_shapes
from bidora_jax.models.compute import Compute
from bidora_jax.training import objective, optim
from bidora_jax.training.bilevel import bilevel_step
from bidora_jax.training.phases import HYPERGRADIENTS
from bidora_jax.training.settings import OptimizerConfig
from bidora_jax.training.state import init_state, init_train_state
from bidora_jax.training.step import train_step

CONFIG = DecoderConfig(
    vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_layers=28, num_heads=16, num_kv_heads=8,
    head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True, qk_norm=True, qkv_bias=False,
    o_bias=False, max_position_embeddings=40_960,
)  # fmt: skip


def shapes(method: str):
    """(adapter, base, direction, magnitude) as shapes."""
    adapter = adapters.resolve(AdapterConfig(method=method), CONFIG)
    base = as_loaded(dense_shapes(CONFIG, jnp.bfloat16))

    def build(base, key):
        base = initial.prepare_base(base, adapter)
        return base, *initial.init(adapter, base, key)

    return adapter, *jax.eval_shape(build, base, jax.random.key(0))


def as_loaded(base):
    """16-bit stacks as models/formats/hf.py holds them on a CPU."""

    def leaf(shape):
        packed = held_as_bits(shape.shape, shape.dtype)
        return weights.Bits(jax.ShapeDtypeStruct(shape.shape, jnp.uint16), shape.dtype) if packed else shape

    return {**base, "layers": jax.tree.map(leaf, base["layers"])}


def report(name: str, step, *arguments, batch: int, tokens: int) -> None:
    began = time.monotonic()
    compiled = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    kinds = set(re.findall(r"(?:f32|bf16)\[[\d,]+\]", text))
    rows = batch * tokens
    whole = {
        f"{b}{t},{CONFIG.vocab_size}]"
        for b in ("[", f"[{batch},", f"[1,{batch},")
        for t in (tokens, tokens - 1, rows, rows - batch)
    }
    logits = sorted(kind for kind in kinds if any(kind.endswith(shape) for shape in whole))
    stacks = {f"f32[28,{o},{i}]" for o, i in linear_shapes(CONFIG).values()} | {f"f32[{CONFIG.vocab_size},1024]"}
    print(f"{name:34s} arguments {memory.argument_size_in_bytes / 1e9:5.2f} GB   temporaries "
          f"{memory.temp_size_in_bytes / 1e9:5.2f} GB   compiled in {time.monotonic() - began:.0f} s\n"
          f"    all logits: {', '.join(logits) or 'none'};   "
          f"float32 copies or gradients of the base: {', '.join(sorted(stacks & kinds)) or 'none'}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--forms", nargs="+", default=list(HYPERGRADIENTS))
    options = parser.parse_args()
    micro = (1, options.batch, options.tokens)
    batch = {"tokens": jax.ShapeDtypeStruct(micro, jnp.int32), "loss_mask": jax.ShapeDtypeStruct(micro, jnp.float32)}
    tx = optim.transformation(OptimizerConfig(), 100)
    size = {"batch": options.batch, "tokens": options.tokens}
    print(
        f"Qwen3-0.6B shape, batch {options.batch} x {options.tokens}, bf16, {jax.devices()[0].platform}, jax {jax.__version__}"
    )
    for method in ("lora", "dora"):
        adapter, base, *params = shapes(method)
        level = objective.inner_loss(CONFIG, adapter, Compute(reverse_differentiable=False))
        state = jax.eval_shape(lambda p, k: init_train_state(p, tx, k), tuple(params), jax.random.key(0))
        step = partial(train_step, loss=lambda p, b, x, k, level=level: level(*p, b, x, k), tx=tx)
        report(method, step, state, base, batch, **size)
    adapter, base, direction, magnitude = shapes("bidora")
    sizes = CONFIG, adapter
    state = jax.eval_shape(lambda d, m, k: init_state(d, m, tx, tx, k), direction, magnitude, jax.random.key(0))
    for form in options.forms:
        compute = Compute(reverse_differentiable=form == "reverse")
        two_pass = partial(objective.inner_two_pass, first=compute, second=compute)
        inner = two_pass(*sizes) if form == "exact" else objective.inner_loss(*sizes, compute)
        losses = {"inner_loss": inner, "outer_loss": objective.outer_loss(*sizes, compute)}
        step = partial(bilevel_step, **losses, inner_tx=tx, outer_tx=tx, hypergradient=HYPERGRADIENTS[form])
        report(f"bidora, {form}", step, state, base, batch, batch, **size)


if __name__ == "__main__":
    main()
