"""Tokens a second of training with one record a row and with packed rows, on records of very unequal lengths.

    python benchmarks/data/packing.py [--method bidora lora] [--records 192] [--room 512] [--rounds 3]

Lengths are lognormal (most are short, few are long), up to the room of a row. Tokens and weights are random. The steps are those of
`train`, and a step of every contestant has about the same number of real tokens. Contestants run whole epochs in turn; compiling
is not timed. The rate counts real tokens of both levels. A ratio compares an epoch with that of the method's first row in the same
round.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

from bidora_jax.data import packing, statistics
from bidora_jax.data.batches import Examples
from bidora_jax.data.encoding import Example
from bidora_jax.data.settings import DataConfig
from bidora_jax.machine.allocator import keep_freed_memory
from bidora_jax.models import quantization
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.settings import ModelConfig
from bidora_jax.training import phases, problem
from bidora_jax.training.problem import Problem
from bidora_jax.training.settings import OptimizerConfig, SearchConfig

sys.path.insert(0, str(Path(__file__).parents[1]))  # random_models.py
from random_models import random_like


def main() -> None:
    options = parsed()
    keep_freed_memory()
    print(
        f"{options.layers} layers x {options.hidden}, {options.dtype}; {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    splits = {"train": documents(options.records, 0, options), "val": documents(options.records // 2, 1, options)}
    lengths = [len(example.tokens) for example in splits["train"]]
    quarters = np.percentile(lengths, [25, 50, 75, 95])
    print(f"{len(lengths)} records, mean {np.mean(lengths):.0f} tokens, a quarter, half, three and 19 of 20 up to "
          f"{', '.join(f'{length:.0f}' for length in quarters)}, at most {max(lengths)}")  # fmt: skip
    packed, room = packing.pack_all(splits, options.room, seed=0)
    records, rows = f"a record a row, {options.batch} rows", max(1, round(options.batch * np.mean(lengths) / room))
    plain = DataConfig(batch_size=options.batch)
    entrants: list[tuple[str, dict, DataConfig]] = [
        (f"{records}, one padded length", splits, replace(plain, buckets=1)),
        (f"{records}, {options.lengths} padded lengths", splits, replace(plain, buckets=options.lengths)),
        (f"packed, {rows} rows of {room}", packed, replace(plain, batch_size=rows, packing=True, buckets=1)),
    ]
    for method in options.method:
        report([contestant(method, *entrant, options) for entrant in entrants], options.rounds)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--method", nargs="+", default=["bidora", "lora"])
    add("--records", type=int, default=192)
    add("--room", type=int, default=512)
    add("--batch", type=int, default=8)
    add("--lengths", type=int, default=4, help="padded lengths of the second contestant")
    add("--rounds", type=int, default=3)
    add("--layers", type=int, default=4)
    add("--hidden", type=int, default=256, help="width, a multiple of 64")
    add("--vocabulary", type=int, default=8192)
    add("--dtype", default="float32")
    return parser.parse_args()


def documents(count: int, seed: int, options) -> list[Example]:
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(4.2, 0.9, count).astype(int), 8, options.room)
    return [
        Example(random.integers(options.vocabulary, size=length, dtype=np.int32), np.arange(length) > 0, False, number)
        for number, length in enumerate(lengths)
    ]


class Contestant:
    """One phase and its state; an epoch is timed."""

    def __init__(self, name: str, problem: problem.Problem, method: str) -> None:
        self.name, search = name, SearchConfig(epochs=1.0, hypergradient="exact")
        self.phase, start = phases.first_phase(method, problem, search, OptimizerConfig(), OptimizerConfig())
        self.state, self.speeds = start.state, []
        val = problem.val if method == "bidora" else []
        self.epoch = statistics.epoch(problem.train, val, problem.data, lower_steps=1, seed=problem.seed)

    def run(self) -> float:
        """Seconds of an epoch."""
        works = [self.phase.inputs(number) for number in range(self.phase.steps)]
        assert sum(work.tokens for work in works) == self.epoch.tokens
        began = time.perf_counter()
        for work in works:
            self.state, _ = self.phase.advance(self.state, work.batches)
        jax.block_until_ready(self.state)
        return time.perf_counter() - began


def contestant(method: str, name: str, splits: dict[str, Examples], data: DataConfig, options) -> Contestant:
    heads = options.hidden // 64
    config = DecoderConfig(
        vocab_size=options.vocabulary, hidden_size=options.hidden, intermediate_size=options.hidden * 8 // 3,
        num_layers=options.layers, num_heads=heads, num_kv_heads=heads // 2, head_dim=64, rms_norm_eps=1e-6,
        rope_theta=1e5, tie_word_embeddings=True, qk_norm=True, qkv_bias=False, o_bias=False, max_position_embeddings=8192,
    )  # fmt: skip
    model = ModelConfig(remat="layer", dtype=options.dtype)
    adapter = adapters.resolve(AdapterConfig(method=method), config)
    base = random_like(quantization.base_shapes(model, config, jnp.dtype(options.dtype)), jax.random.key(0))
    base = initial.prepare_base(base, adapter)
    places = ("made up",) * options.records
    problem = Problem(config, model, adapter, base, splits["train"], splits["val"], data, 0, 0, places)
    made = Contestant(f"{method}, {name}", problem, method)
    print(f"  {made.name}: first epoch, with compiling, {made.run():.0f} s", flush=True)
    return made


def report(contestants: list[Contestant], rounds: int) -> None:
    for number in range(rounds):
        first = number % len(contestants)
        for one in contestants[first:] + contestants[:first]:
            one.speeds.append(one.epoch.tokens / one.run())
    print("| rows | steps an epoch | padding | real tokens/s | ratio |\n| --- | --- | --- | --- | --- |")
    for one in contestants:
        ratios = [own / base for own, base in zip(one.speeds, contestants[0].speeds, strict=True)]
        print(f"| {one.name} | {one.epoch.steps} | {one.epoch.padding:.1%} | {median(one.speeds):,.0f} | "
              f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
