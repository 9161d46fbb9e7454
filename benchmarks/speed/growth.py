"""How the cost of a DoRA step and of a bilevel step grows with one dimension of the problem while the others stay fixed.

    python benchmarks/speed/growth.py [--sweep tokens layers rank vocabulary] [--picture growth.png] [--json OUT]

The model has 8 layers x 512, a vocabulary of 32,000 and rank 8. A batch has 4,096 tokens on each level, in bf16, with layer
remat. The sweeps:

    tokens        in a sequence, 256 to 4,096; the batch has fewer sequences in proportion, so that only attention grows
    layers        4 to 28
    rank          4 to 64
    vocabulary    4,000 to 152,000

Each row prints seconds a step (median [min, max]), the compiler's temporaries, the seconds of compiling, and the growth since
the first row of the sweep. `share` is log(time ratio) / log(dimension ratio): 1 if time grows in proportion, 0 if it does not
grow. The steps are those of training, with AdamW; the bilevel step has the exact hypergradient.

--shrink 16 divides the tokens of a batch and of a sequence by 16, --largest 2 runs only the first two rows of each sweep, and
--hidden sets the width.
"""

import argparse
import json
import math
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

from bidora_jax.machine.allocator import keep_freed_memory
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.training import objective, optim
from bidora_jax.training.bilevel import bilevel_step
from bidora_jax.training.settings import OptimizerConfig
from bidora_jax.training.state import init_state, init_train_state
from bidora_jax.training.step import train_step

sys.path.insert(0, str(Path(__file__).parents[1]))  # random_models.py
from random_models import base_shapes, random_like

from bidora_jax.models.compute import Compute

SWEEPS = {
    "tokens": (256, 512, 1024, 2048, 4096),
    "layers": (4, 8, 16, 28),
    "rank": (4, 8, 16, 32, 64),
    "vocabulary": (4_000, 16_000, 64_000, 152_000),
}
START = {"tokens": 256, "layers": 8, "rank": 8, "vocabulary": 32_000}
METHODS = ("dora", "bidora")


def main() -> None:
    options = parsed()
    keep_freed_memory()
    print(f"hidden {options.hidden}, {options.batch_tokens // options.shrink} tokens a batch, {options.dtype}, remat "
          f"{options.remat}; {jax.devices()[0].device_kind}, jax {jax.__version__}", flush=True)  # fmt: skip
    rows = [row for file in options.add for row in json.loads(Path(file).read_text())["rows"]]
    for sweep in options.sweep:
        for method in options.method:
            rows += swept(sweep, method, options)
    if options.json:
        Path(options.json).write_text(json.dumps({"options": vars(options), "rows": rows}, indent=1))
    if options.picture:
        picture(rows, options.picture)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sweep", nargs="*", choices=list(SWEEPS), default=list(SWEEPS))
    add("--method", nargs="+", choices=METHODS, default=list(METHODS))
    add("--steps", type=int, default=3, help="timed steps, after one to warm up")
    add("--batch-tokens", type=int, default=4096)
    add("--hidden", type=int, default=512, help="width of the model, a multiple of 64")
    add("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    add("--remat", default="layer")
    add("--shrink", type=int, default=1)
    add("--largest", type=int, default=99)
    add("--picture", help="file for the curves, for instance growth.png")
    add("--json", help="file for the raw figures")
    add("--add", nargs="+", default=[], help="files of raw figures of earlier runs, to be drawn with these")
    return parser.parse_args()


def swept(sweep: str, method: str, options) -> list[dict]:
    """Measures and prints one sweep of one method."""
    print(f"\n{method}, by {sweep}\n{sweep:>10s} {'s/step':>22s} {'growth':>6s} {'share':>6s} {'temporaries GB':>14s} "
          f"{'growth':>6s} {'compiling s':>11s}", flush=True)  # fmt: skip
    start = {**START, "tokens": max(START["tokens"] // options.shrink, 2)}
    rows = []
    for value in SWEEPS[sweep][: options.largest]:
        value = max(value // options.shrink, 2) if sweep == "tokens" else value
        row = {"sweep": sweep, "method": method, "value": value, **measured(method, {**start, sweep: value}, options)}
        rows.append(row)
        seconds, first = median(row["seconds"]), rows[0]
        times = seconds / median(first["seconds"])
        share = f"{math.log(times) / math.log(value / first['value']):6.2f}" if value != first["value"] else " " * 6
        between = f"{seconds:.2f} [{min(row['seconds']):.2f}, {max(row['seconds']):.2f}]"
        print(f"{value:10,d} {between:>22s} {times:6.2f} {share} {row['temporaries_gb']:14.3f} "
              f"{row['temporaries_gb'] / first['temporaries_gb']:6.2f} {row['compile_seconds']:11.1f}", flush=True)  # fmt: skip
    return rows


def measured(method: str, at: dict, options) -> dict:
    """Times of a few steps at one point, and what the compiler says."""
    step, *arguments = problem(method, at, options)
    began = time.monotonic()
    run = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
    compile_seconds = time.monotonic() - began
    state, *rest = arguments
    seconds = []
    for _ in range(options.steps + 1):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(run(state, *rest))
        seconds.append(time.perf_counter() - began)
    temporaries = run.memory_analysis().temp_size_in_bytes / 1e9
    return {"seconds": seconds[1:], "temporaries_gb": temporaries, "compile_seconds": compile_seconds}


def problem(method: str, at: dict, options):
    """(step, state, base, batch or batches) with random weights."""
    config, compute = shape(at, options.hidden), Compute(remat=options.remat, reverse_differentiable=False)
    adapter = adapters.resolve(AdapterConfig(method=method, rank=at["rank"]), config)
    base = random_like(base_shapes(config, "none", jnp.dtype(options.dtype)), jax.random.key(0))
    base = initial.prepare_base(base, adapter)
    params = initial.init(adapter, base, jax.random.key(0))
    tx = optim.transformation(OptimizerConfig(), 100)
    inner = objective.inner_loss(config, adapter, compute)
    outer = objective.outer_loss(config, adapter, compute)
    train, val = (batch(at, options, seed) for seed in range(2))
    if method == "dora":
        step = partial(train_step, loss=lambda p, *rest: inner(*p, *rest), tx=tx)
        return step, init_train_state(params, tx, jax.random.key(1)), base, train
    step = partial(bilevel_step, inner_loss=inner, outer_loss=outer, inner_tx=tx, outer_tx=tx)
    return step, init_state(*params, tx, tx, jax.random.key(1)), base, train, val


def shape(at: dict, hidden: int) -> DecoderConfig:
    heads = hidden // 64
    return DecoderConfig(
        vocab_size=at["vocabulary"], hidden_size=hidden, intermediate_size=3 * hidden, num_layers=at["layers"],
        num_heads=heads, num_kv_heads=max(heads // 2, 1), head_dim=64, rms_norm_eps=1e-6, rope_theta=1e6,
        tie_word_embeddings=True, qk_norm=True, qkv_bias=False, o_bias=False, max_position_embeddings=8192,
    )  # fmt: skip


def batch(at: dict, options, seed: int) -> dict[str, jax.Array]:
    sequences = max(options.batch_tokens // options.shrink // at["tokens"], 1)
    ids = np.random.default_rng(seed).integers(0, at["vocabulary"], (1, sequences, at["tokens"]), np.int32)
    return {"tokens": jnp.asarray(ids), "loss_mask": jnp.ones(ids.shape, jnp.float32)}


def picture(rows: list[dict], file: str) -> None:
    """Time and temporaries over each swept dimension, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sweeps = list(dict.fromkeys(row["sweep"] for row in rows))
    figure, axes = pyplot.subplots(
        2, len(sweeps), figsize=(3.4 * len(sweeps), 6), sharey="row", squeeze=False, layout="constrained"
    )
    for column, sweep in enumerate(sweeps):
        for method in dict.fromkeys(row["method"] for row in rows):
            points = [row for row in rows if (row["sweep"], row["method"]) == (sweep, method)]
            values = [row["value"] for row in points]
            curves = [median(row["seconds"]) for row in points], [row["temporaries_gb"] for row in points]
            for axis, curve in zip(axes[:, column], curves, strict=True):
                axis.loglog(values, curve, marker="o", label=method)
                axis.set_xticks(values, [f"{value:,}" for value in values], rotation=45)
                axis.minorticks_off()
                axis.grid(alpha=0.3)
        axes[1, column].set_xlabel(sweep)
    axes[0, 0].set_ylabel("seconds a step")
    axes[1, 0].set_ylabel("temporaries, GB")
    axes[0, 0].legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
