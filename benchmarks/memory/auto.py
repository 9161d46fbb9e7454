"""What --auto picks for Qwen3-0.6B's shape on devices of several sizes, and the peak of each pick.

    python benchmarks/memory/auto.py [--limits 2 4 8 16] [--model Qwen/Qwen3-0.6B] [--method bidora] [--batch 4] [--tokens 1024]

The weights are shapes: nothing is allocated. The memory of the device is simulated, as `--memory-limit` does. The script compiles
each pick once more as a run would, with all optimisations, and compares its peak with the limit.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp

from bidora_jax.data.settings import DataConfig
from bidora_jax.machine.memory import Memory
from bidora_jax.models import quantization
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures import published
from bidora_jax.planning import footprint, plans, remat_choice
from bidora_jax.planning.plans import Plan
from bidora_jax.training.phases import first_phase


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", nargs="+", type=float, default=[2, 4, 8, 16], help="GB")
    parser.add_argument("--model", default="Qwen/Qwen3-0.6B")
    parser.add_argument("--method", default="bidora")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024)
    options = parser.parse_args()
    config = published.shape(options.model)
    plans.counted = functools.cache(plans.counted)  # the limits ask for the same counts
    start = Plan(adapter=AdapterConfig(method=options.method),
                 data=DataConfig(batch_size=options.batch, max_length=options.tokens))  # fmt: skip
    print(f"{options.model}, {options.method}, {options.batch} x {options.tokens} tokens; counted for a "
          f"{jax.default_backend()}, jax {jax.__version__}")  # fmt: skip
    print(
        "| limit | quantization | batch x accumulation | length | remat | hypergradient | peak | of 85 % | found in |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for limit in options.limits:
        memory, began = Memory(int(limit * 1e9), "simulated"), time.monotonic()
        plan, _ = plans.search(config, start, jnp.bfloat16, memory)
        seconds = time.monotonic() - began
        parts = confirmed(config, plan)
        data, share = plan.data, remat_choice.needed(parts) / (remat_choice.FITS * memory.bytes)
        cells = [f"{limit:g} GB", plan.model.quantization, f"{data.batch_size} x {data.accumulation}", str(data.max_length),
                 plan.model.remat, plan.search.hypergradient, footprint.gigabytes(remat_choice.needed(parts)),
                 f"{share:.0%}{'' if remat_choice.fits(parts, memory) else ', does not fit'}", f"{seconds:.0f} s"]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


def confirmed(config, plan: Plan) -> footprint.Footprint:
    """The footprint of the plan as a run compiles it."""
    base = quantization.base_shapes(plan.model, config, jnp.bfloat16)
    adapter = adapters.resolve(plan.adapter, config)
    problem = remat_choice.synthetic(config, plan.model, adapter, base, plan.data, plan.data.max_length)
    phase, start = first_phase(plan.adapter.method, problem, plan.search, plan.inner, plan.outer)
    return footprint.of(problem, phase, start.state, remat_choice.largest(phase))


if __name__ == "__main__":
    main()
