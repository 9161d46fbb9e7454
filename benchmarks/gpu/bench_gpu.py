"""Training steps on one NVIDIA GPU beside PEFT's: speed, share of the card's matmul rate, memory.

    python benchmarks/gpu/bench_gpu.py --peft [--shapes 8b 0.6b] [--methods lora dora bidora] [--json OUT]

The shapes are Qwen3's. Random weights are made on the device, in bf16 or in NF4 with double quantisation. All linear layers have
rank 8, and the optimiser is AdamW. A step has --tokens tokens on each level, in records of each of --lengths. Ours is the step of
`train` in the form that `train` would choose here: attention, remat and hypergradient are auto, compiled from shapes first. If
the compiler's peak exceeds the card's memory, the step is named and not run.

    of the rate = F / seconds / R          R: the fastest of large bf16 products, jnp.dot of square matrices, in this very run
    F = 4·N·tokens                         lora, dora: N frozen matmul parameters, all linear layers and the head once; forward
                                           2·N, the gradient of the activations 2·N, no gradient of the weights, that is the
                                           6·N of full training less the frozen third; embeddings, adapters and what remat
                                           computes again do not count
    F by planning.arithmetic               bidora: two such gradients and the mixed product of the form that ran
    with attention: F + 6·T·H·h·L·tokens   per gradient: q·k and p·v forward and their four products backward over the half of
                                           the scores that the mask leaves; of bidora's two gradients, not of its mixed product

PEFT (--peft, with or without variants of opponents.py) is transformers' model on the same card, with bitsandbytes' NF4. Each
contestant is a process of its own. The contestants of a row stay alive and step in turn; a ratio compares two steps of the same
round. A contestant that does not fit beside the others runs alone after them, and its row says so. XLA does not preallocate, so
that both sides fit on one card; no other program may run on it. Rows come in the order of the arguments, and each is printed and
written when it is done. What --seconds leaves no time for is listed. Goals: half of the rate for LoRA at 8B; 1.5 times the speed
of PEFT's DoRA and 1.2 times that of its LoRA.

Without a GPU, `--shapes tiny --lengths 64 --tokens 128` shows that it runs; its figures mean nothing.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp

from bidora_jax.data.settings import DataConfig
from bidora_jax.machine.memory import Memory, device_memory
from bidora_jax.models import quantization
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures import published
from bidora_jax.models.architectures.decoder import DecoderConfig
from bidora_jax.models.settings import ModelConfig
from bidora_jax.planning import footprint, plans, remat_choice
from bidora_jax.training import phases
from bidora_jax.training.settings import OptimizerConfig, OuterConfig, SearchConfig

sys.path.insert(0, str(Path(__file__).parents[1]))  # measuring.py, opponents.py, random_models.py, turns.py
import measuring
import quant
import random_models
from turns import Stopped, Worker, serve, spread

SHAPES = ("tiny", "0.6b", "1.7b", "4b", "8b", "14b")
VARIANTS = ("plain", "checkpoint")
RATE_GOAL = {("8b", "lora"): 0.5}
SPEED_GOALS = {"lora": 1.2, "dora": 1.5}
LEAST_SECONDS = 20.0
"""What is left of --seconds below which nothing is started."""


def main() -> None:
    options = parsed()
    if options.worker:
        work(json.loads(options.worker))
        return
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95", "TF_CPP_MIN_LOG_LEVEL": "2",
            "JAX_COMPILATION_CACHE_DIR": folder, "PYTHONWARNINGS": "ignore::FutureWarning",
        }  # fmt: skip
        Race(options, environment, began).run()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shapes", nargs="+", default=["8b", "0.6b"], choices=SHAPES)
    add("--lengths", nargs="+", type=int, default=[1024, 4096])
    add("--methods", nargs="+", default=["lora", "dora", "bidora"], choices=["lora", "dora", "bidora"])
    add("--quantizations", nargs="+", default=["none", "nf4"], choices=["none", "int8", "nf4"])
    add("--tokens", type=int, default=4096, help="of a step, on each level")
    add("--rank", type=int, default=8)
    add("--rounds", type=int, default=8)
    add("--attention", default="auto", choices=["auto", "chunked", "cudnn"], help="ours: model.attention")
    add("--remat", default="auto", choices=["auto", "none", "dots", "layer", "offload"], help="ours: model.remat")
    add("--peft", nargs="*", help="PEFT too, in these variants of opponents.py; plain and checkpoint without any")
    add("--seconds", type=float, default=540.0, help="nothing starts, or lasts, after so many")
    add("--json", help="file for the figures")
    add("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


# The parent. It imports JAX and never asks for a device: the card is the workers'.


class Race:
    """The whole run: rows one after the other, and what is known of them so far."""

    def __init__(self, options: argparse.Namespace, environment: dict[str, str], began: float) -> None:
        self.options, self.environment, self.began = options, environment, began
        self.record: dict = {"command": " ".join(sys.argv), "rows": [], "left_out": []}

    def run(self) -> None:
        o = self.options
        device = self.record["device"] = self.started({"part": "device", "peft": o.peft is not None}, "device").ready
        if not device["cuda"]:  # bitsandbytes would compile its code for a CPU, for minutes
            self.environment["TORCHDYNAMO_DISABLE"] = "1"
        print("\n".join(device["lines"]), flush=True)
        self.save()
        for shape, length, method, form in itertools.product(o.shapes, o.lengths, o.methods, o.quantizations):
            self.race({"shape": shape, "method": method, "quantization": form, "batch": max(1, o.tokens // length),
                       "length": length, "rank": o.rank, "attention": o.attention, "remat": o.remat})  # fmt: skip
        self.save()
        print(f"{time.monotonic() - self.began:.0f} s; left out: {'; '.join(self.record['left_out']) or 'nothing'}")

    def race(self, row: dict) -> None:
        """Our step and PEFT's: in turn as many as fit beside each other, the others alone."""
        together, later = [], []
        for job in self.jobs(row):
            worker = self.entered(job)
            if worker is not None:
                (together if "too_large" not in worker.ready else later).append(worker)
        self.stepped(together)
        finished = list(together)
        for worker in later:
            job = worker.job | {"alone": True}
            again = self.entered(job) if together and job["part"] == "peft" else worker
            if again is not None:
                self.stepped([again])
                finished.append(again)
        self.compare([worker for worker in finished if worker.seconds])

    def jobs(self, row: dict) -> list[dict]:
        missing, asked = self.record["device"]["missing"], self.options.peft
        can = row["method"] != "bidora" and row["quantization"] != "int8" and "peft" not in missing
        can = can and asked is not None and not (row["quantization"] == "nf4" and "bitsandbytes" in missing)
        variants = (asked or VARIANTS) if can else ()
        pairs = [("ours", ""), *(("peft", variant) for variant in variants)]
        return [row | {"part": part, "variant": variant, "alone": False} for part, variant in pairs]

    def entered(self, job: dict) -> Worker | None:
        """The contestant, warm, or stopped again for want of memory; None where it did not come that far."""
        parts = ("shape", "method", "quantization", "length", "part", "variant")
        name = " ".join(str(job[part]) for part in parts).strip()
        if self.left() < LEAST_SECONDS:
            self.record["left_out"].append(f"{name}: no time")
            return None
        try:
            worker = self.started(job, name)
        except Stopped as stopped:
            self.ended(name, stopped)
            return None
        worker.job = job
        if "too_large" in worker.ready:
            worker.stop()
        return worker

    def ended(self, name: str, stopped: Stopped) -> None:
        self.record["left_out"].append(str(stopped) if self.left() > 0 else f"{name}: no time for all of it")

    def started(self, job: dict, name: str) -> Worker:
        return Worker(name, __file__, job, self.environment, limit=max(self.left(), 1.0))

    def stepped(self, workers: list[Worker]) -> None:
        """Rounds of one step each; then the figures, printed and written."""
        running = [worker for worker in workers if "too_large" not in worker.ready]
        for number in range(self.options.rounds):
            for worker in running[number % len(running) :] + running[: number % len(running)] if running else []:
                try:
                    worker.answer = worker.step()
                except Stopped as stopped:
                    self.ended(worker.name, stopped)
                    running = [other for other in running if other is not worker]
        for worker in workers:
            worker.stop()
            self.record["rows"].append(self.figures(worker))
            print(line(self.record["rows"][-1]), flush=True)
        self.save()

    def figures(self, worker: Worker) -> dict:
        job, ready, rate = worker.job, worker.ready, self.record["device"]["rate"]
        found = job | {"variant": job["variant"] or ready.get("form", "")} | ready | {"seconds": worker.seconds}
        if worker.seconds:
            tokens = job["batch"] * job["length"] * (2 if job["method"] == "bidora" else 1)
            found |= {"tokens_per_s": [tokens / value for value in worker.seconds], **worker.answer}
            for name in ("flops", "flops_with_attention") if job["part"] == "ours" else ():
                found[f"{name}_of_rate"] = ready[name] / median(worker.seconds) / rate
        return found

    def compare(self, workers: list[Worker]) -> None:
        """Our speed over PEFT's fastest, and the goals."""
        ours = next((worker for worker in workers if worker.job["part"] == "ours"), None)
        theirs = [worker for worker in workers if worker.job["part"] == "peft"]
        if ours is None:
            return
        shape, method, said = ours.job["shape"], ours.job["method"], []
        if (shape, method) in RATE_GOAL:
            share = self.figures(ours)["flops_of_rate"]
            said.append(f"{share:.1%} of the matmul rate, goal {RATE_GOAL[shape, method]:.0%}")
        if theirs:
            best = min(theirs, key=lambda worker: median(worker.seconds))
            ratios = [other / own for own, other in zip(ours.seconds, best.seconds, strict=False)]
            named = f"PEFT {best.job['variant']}" + (", each alone" if best.job["alone"] else "")
            said.append(f"{spread(ratios, '.2f')} times {named}, goal {SPEED_GOALS[method]}")
            self.record["rows"].append(ours.job | {"part": "ratio", "variant": named, "ratios": ratios})
        print("".join(f"    {one}\n" for one in said), end="", flush=True)
        self.save()

    def left(self) -> float:
        return self.options.seconds - (time.monotonic() - self.began)

    def save(self) -> None:
        if self.options.json:
            fresh = Path(self.options.json).with_suffix(".part")
            fresh.write_text(json.dumps(self.record, indent=1) + "\n")
            fresh.replace(self.options.json)


def line(found: dict) -> str:
    """A contestant's figures on one line."""
    name = " ".join(f"{found[key]:<{width}}" for key, width in (("shape", 4), ("method", 6), ("quantization", 4)))
    name += (
        f" {found['batch']:3d} x {found['length']:<5d} {found['part']} {found['variant']}" + ", alone" * found["alone"]
    )
    if not found["seconds"]:
        return f"{name}: {found.get('too_large', 'stopped')}"
    rate, loss = spread(found["tokens_per_s"], ".0f"), found["first"]
    parts = [f"{rate} tokens/s", f"peak {gigabytes(found)}", f"loss {loss:.2f}"]
    if found["part"] == "ours":
        shares = [found[f"flops{which}_of_rate"] for which in ("", "_with_attention")]
        parts[1:1] = ["{:.1%} of the rate, {:.1%} with attention".format(*shares)]
        parts[2] += f", by the compiler {found['counted_bytes'] / 1e9:.2f} GB"
    return f"{name}: {'; '.join(parts)}"


def gigabytes(found: dict) -> str:
    """The device's peak, or a bound where making the weights needed as much."""
    peak = found["peak_bytes"]
    return f"{'<= ' * (peak == found.get('made_bytes'))}{peak / 1e9:.2f} GB" if peak else "not counted here"


# The workers.


def work(job: dict) -> None:
    build, count = {"device": (device, dict), "ours": (ours, our_peak), "peft": (theirs, their_peak)}[job["part"]]
    serve(partial(as_far_as_it_fits, build, job), count)


def as_far_as_it_fits(build, job: dict):
    """What `build` gives, after a first step; no step and the reason where memory runs out."""
    try:
        step, facts = build(job)
        if step is not None:
            step()
        return step, facts
    except Exception as error:
        if type(error).__name__ not in ("OutOfMemoryError", "MemoryError") and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, {"too_large": f"out of memory: {str(error).strip().splitlines()[0][:160]}"}


def device(job: dict):
    """The card, its matmul rate, and what is missing beside it. Builds the CUDA ops where they are not built."""
    cuda = measuring.has_cuda()
    note = measuring.ready(cuda, Path(tempfile.gettempdir()))[1] if cuda else "no NVIDIA GPU, no CUDA ops"
    products = {}
    for size in (4096, 8192, 16_384) if cuda else (256, 512):
        a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
        products[size] = measuring.compiled(jnp.dot, a, a)
    seconds = measuring.in_turns(products, measuring.sizes(cuda, False))
    rates = {size: 2 * size**3 / median(values) for size, values in seconds.items()}
    facts, absent = measuring.facts(note, ""), missing(cuda) if job["peft"] else {}
    listed = ", ".join(f"{size}: {rate / 1e12:.4g}" for size, rate in rates.items())
    lines = [f"{measuring.stamp(facts)}; {note}", *absent.values(), f"bf16 products, TFLOP/s by size: {listed}"]
    return None, {**facts, "lines": lines, "rate": max(rates.values()), "rates": rates, "missing": absent}


def missing(cuda: bool) -> dict[str, str]:
    """Why PEFT, or its NF4, can't run here."""
    try:
        import opponents
    except ImportError as error:
        return {"peft": f"without PEFT: {error}"}
    if cuda and not opponents.torch.cuda.is_available():
        return {"peft": f"without PEFT: torch {opponents.torch.__version__} finds no CUDA"}
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, RuntimeError) as error:
        return {"bitsandbytes": f"without PEFT on nf4: {error}"}
    return {}


def decoder_config(shape: str) -> DecoderConfig:
    return quant.TINY if shape == "tiny" else published.shape(f"Qwen/Qwen3-{shape.upper()}")


def chosen(job: dict, memory: Memory) -> tuple[DecoderConfig, plans.Plan, remat_choice.FirstPhase]:
    """The step in the form that `train` would choose in so much memory. Nothing is allocated."""
    config = decoder_config(job["shape"])
    plan = plans.Plan(
        ModelConfig(dtype="bfloat16", quantization=job["quantization"], remat=job["remat"], attention=job["attention"]),
        AdapterConfig(method=job["method"], rank=job["rank"], alpha=2.0 * job["rank"]),
        DataConfig(batch_size=job["batch"], max_length=job["length"], buckets=1), OptimizerConfig(), OuterConfig(),
        SearchConfig(steps=100),
    )  # fmt: skip
    adapter = adapters.resolve(plan.adapter, config)
    shapes = quantization.base_shapes(plan.model, config, jnp.bfloat16)
    problem = remat_choice.synthetic(config, plan.model, adapter, shapes, plan.data, job["length"])
    return config, plan, remat_choice.choose_remat(problem, plan.levels, memory)


def form_of(settled: remat_choice.FirstPhase, method: str) -> str:
    said = f"attention {settled.problem.model.attention}, remat {settled.problem.model.remat}"
    return said + f", {settled.search.hypergradient}" * (method == "bidora")


def ours(job: dict):
    memory = device_memory()
    config, plan, settled = chosen(job, memory)
    program, length = remat_choice.largest(settled.phase)
    parts = settled.footprint or footprint.of(settled.problem, settled.phase, settled.start.state, (program, length))
    facts = {"form": form_of(settled, job["method"]), "said": settled.reason, "counted_bytes": parts.peak}
    facts |= flops(config, plan, settled)
    if parts.peak > memory.bytes:
        large = f"too large: {parts.peak / 1e9:.1f} GB by the compiler, of {memory.bytes / 1e9:.1f}, {memory.source}"
        return None, facts | {"too_large": large}
    run = program.compile(settled.start.state, length)
    shapes = quantization.base_shapes(plan.model, config, jnp.bfloat16)
    base = initial.prepare_base(random_models.random_like(shapes, jax.random.key(0)), settled.problem.adapter)
    ready = replace(settled.problem, base=base)
    held = [phases.first_phase(job["method"], ready, settled.search, plan.inner, plan.outer)[1].state]
    batches = [
        {**blank, "tokens": jax.random.randint(jax.random.key(number), blank["tokens"].shape, 0, config.vocab_size),
         "loss_mask": jnp.ones(blank["loss_mask"].shape)}
        for number, blank in enumerate(program.like(length))
    ]  # fmt: skip

    def step() -> float:
        state, metrics = jax.block_until_ready(run(held.pop(), base, *batches))
        held.append(state)
        return float(metrics["train_loss"])

    jax.block_until_ready((held, base))
    return step, facts | {"made_bytes": measuring.peak_bytes()}


def flops(config, plan, settled) -> dict[str, float]:
    """F of a step, without and with attention; see the head of this file."""
    # By the form that ran, and without what remat computes again.
    plan = replace(plan, search=settled.search, model=replace(plan.model, remat="none"))
    F, tokens = plans.arithmetic(config, plan), plan.data.batch_size * plan.data.max_length
    attention = 6 * plan.data.max_length * config.num_heads * config.head_dim * config.num_layers * tokens
    gradients = 2 if plan.adapter.method == "bidora" else 1
    return {"flops": F, "flops_with_attention": F + gradients * attention}


def our_peak() -> dict:
    return {"peak_bytes": measuring.peak_bytes()}


def theirs(job: dict):
    import opponents
    import torch

    config = decoder_config(job["shape"])
    names = ("vocab_size", "hidden_size", "intermediate_size", "head_dim", "rms_norm_eps", "tie_word_embeddings")
    shape = {name: getattr(config, name) for name in names} | {
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "max_position_embeddings": config.max_position_embeddings,
    }  # fmt: skip
    settings = {name: job[name] for name in ("quantization", "variant", "rank")}
    place = "cuda" if torch.cuda.is_available() else "cpu"
    batch = (job["batch"], job["length"])
    step = opponents.random_contestant(shape, job["method"], batch, learning_rate=2e-4, device=place, **settings)
    if place == "cuda":  # what making the model took is no part of a step
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return step, {}


def their_peak() -> dict:
    import torch

    return {"peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None}


if __name__ == "__main__":
    main()
