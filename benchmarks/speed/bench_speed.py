"""Times training steps of bidora_jax and of PEFT in one run, step by step in turn.

    python benchmarks/speed/bench_speed.py --section lora dora dora-over-lora bilevel plain [--dtypes bfloat16] [--json OUT]

Needs torch, transformers and PEFT. Every contestant is a process of its own. It loads the model, compiles, and does one step to
warm up. Then it does one step each time the parent asks over a pipe, while all other processes wait. A round is one step of
each contestant, and each round starts one further down the list, so that other load on the machine slows all alike. A ratio
compares two steps of the same round. All contestants load the same weights (random, a Qwen3 in the shape of SmolLM2-135M or
another) and the same tokens, and the script stops if their first losses differ.

    lora, dora        our train_step against PEFT's; opponents.py lists PEFT's variants
    dora-over-lora    our DoRA step against our LoRA step
    bilevel           our hypergradient forms, and the released BiDoRA step on PEFT's layers, against the two DoRA gradients
                      (train and val, no hypergradient, no update) that every such step contains
    plain             our LoRA, DoRA and exact bilevel step, each against itself with BIDORA_PLAIN=1: what all detours of
                      bidora_jax/kernels/xla_cpu are worth together; PEFT does not run

--plain sets BIDORA_PLAIN=1 for our side in the other sections.

Memory is the peak resident memory of the process (VmHWM): `steps` counts from the warm-up on, `process` counts loading and
compiling too. `temporaries` is the compiler's count for our program. Both sides use AdamW without clipping, decay or
schedule. A section keeps all its processes alive: allow 1 to 2 GB for each, and 6 GB for the one that steps.

--shape, --layers, --vocabulary, --batch and --tokens change the size. --env NAME=VALUE sets the environment of both sides, for
instance GLIBC_TUNABLES=glibc.malloc.hugetlb=1.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from bidora_jax.machine.allocator import keep_freed_memory, release_freed_memory

sys.path.insert(0, str(Path(__file__).parents[1]))  # turns.py, opponents.py
from turns import Worker, in_turn, peak_gb, serve, spread, this_machine

GRADIENTS = "two gradients"
PLAIN = "BIDORA_PLAIN"
FORMS = ("exact", "reverse", "finite-difference", "direct")
SHAPES = {
    "smollm2-135m": {
        "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
    },
    "qwen3-0.6b": {
        "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    },
}  # fmt: skip
FIRST_LOSS_TOLERANCE = 0.01  # relative; bf16 and float32 forwards of a random model differ by 1e-4


@dataclass(frozen=True)
class Contestant:
    """One process: whose step, of which method, in which setting."""

    side: str
    """ours or peft"""
    method: str
    """lora, dora or bidora"""
    dtype: str
    variant: str
    """ours: the remat setting; peft: see opponents.py"""
    form: str = ""
    """ours, bidora: the hypergradient"""
    parts: int = 1
    """micro-batches that the batch is cut into"""
    plain: bool = False
    """ours: with BIDORA_PLAIN=1, without the detours of kernels/xla_cpu"""

    @property
    def environment(self) -> dict[str, str]:
        return {PLAIN: "1"} if self.plain else {}

    @property
    def name(self) -> str:
        parts = [self.side, self.method, self.form, self.dtype, self.variant]
        if self.side == "ours":
            parts[-1] = f"remat {self.variant}"
        parts += [f"in {self.parts}"] if self.parts > 1 else []
        parts += [f"{name}={value}" for name, value in self.environment.items()]
        return " ".join(filter(None, parts))

    @property
    def batches(self) -> int:
        return 2 if self.method == "bidora" else 1


@dataclass
class Result:
    """What a contestant reported: the warm-up's figures, then one duration for each round."""

    contestant: Contestant
    ready: dict
    seconds: list[float] = field(default_factory=list)
    steps_gb: float = 0.0
    process_gb: float = 0.0


def main() -> None:
    options = parsed()
    if options.worker:
        work(json.loads(options.worker))
        return
    head = machine(options)
    print(head["machine"] + "\n" + head["model"], flush=True)
    record = {**head, "options": vars(options), "groups": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, options)
        for section in options.section:
            for group in SECTIONS[section](options):
                results = raced(group, folder, options)
                report(section, results, options)
                record["groups"].append({"section": section, "results": [asdict(result) for result in results]})
                if options.json:
                    Path(options.json).write_text(json.dumps(record, indent=1))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--section", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    add("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    add("--freed", default="kept", choices=["kept", "returned"], help="what malloc does with freed memory, both sides")
    add("--remat", nargs="+", default=["layer", "dots"], help="ours: settings of model.remat to try")
    add(
        "--peft",
        nargs="*",
        default=["plain", "autocast"],
        help="PEFT: variants to try, see opponents.py; nothing: ours alone",
    )
    add("--forms", nargs="+", default=list(FORMS), choices=FORMS, help="ours: hypergradient forms to try")
    add("--micro-batches", type=int, nargs="+", default=[1], help="numbers of micro-batches to cut the batch into")
    add("--plain", action="store_true", help=f"ours: with {PLAIN}=1, which section plain compares")
    add("--loss-chunk", type=int, default=0, help="ours: model.loss_chunk; 0 leaves the default")
    add("--batch", type=int, default=4)
    add("--tokens", type=int, default=256)
    add("--shape", default="smollm2-135m", choices=list(SHAPES), help="sizes of the model, a Qwen3")
    add("--layers", type=int, help="of another number than the shape has")
    add("--vocabulary", type=int, help="the same")
    add("--rank", type=int, default=8)
    add("--rounds", type=int, default=7)
    add("--env", nargs="+", default=[], metavar="NAME=VALUE", help="environment of both sides")
    add("--json", help="file for the raw figures")
    add("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.layers = options.layers or SHAPES[options.shape]["num_hidden_layers"]
    options.vocabulary = options.vocabulary or SHAPES[options.shape]["vocab_size"]
    told = PLAIN in os.environ or any(pair.startswith(f"{PLAIN}=") for pair in options.env)
    if told and not options.worker:
        parser.error(
            f"{PLAIN} is set; unset it: --plain and --section plain set it, and rows without it must run without it"
        )
    for parts in options.micro_batches:
        if parts < 1 or options.batch % parts:
            parser.error(f"--micro-batches {parts}: --batch {options.batch} can't be cut into so many equal parts")
    return options


# Who runs against whom: each section gives groups of contestants that take turns.


def against_peft(method: str, options) -> list[list[Contestant]]:
    picks = itertools.product(options.dtypes, options.remat, [""], options.micro_batches)
    ours = [Contestant("ours", method, *pick, options.plain) for pick in picks]
    return [ours + peft(method, options.dtypes, options)]


def dora_over_lora(options) -> list[list[Contestant]]:
    picks = itertools.product(options.dtypes, options.remat, [""], options.micro_batches)
    return [[Contestant("ours", method, *pick, options.plain) for method in ("lora", "dora")] for pick in picks]


def bilevel(options) -> list[list[Contestant]]:
    def group(dtype):
        picks = itertools.product((GRADIENTS, *options.forms), options.remat, options.micro_batches)
        ours = [Contestant("ours", "bidora", dtype, remat, form, parts, options.plain) for form, remat, parts in picks]
        return ours + peft("bidora", [dtype], options)

    return [group(dtype) for dtype in options.dtypes]


def plain(options) -> list[list[Contestant]]:
    """Pairs of one step: as it is, and with BIDORA_PLAIN=1."""
    picks = itertools.product(options.dtypes, options.remat, options.micro_batches)
    return [
        [Contestant("ours", method, dtype, remat, form, parts, switched) for switched in (False, True)]
        for dtype, remat, parts in picks
        for method, form in (("lora", ""), ("dora", ""), ("bidora", "exact"))
    ]


def peft(method: str, dtypes: list[str], options) -> list[Contestant]:
    # In float32 autocast and narrow would be the plain variant under another name.
    return [
        Contestant("peft", method, dtype, variant, "", parts)
        for dtype, variant, parts in itertools.product(dtypes, options.peft, options.micro_batches)
        if dtype != "float32" or variant not in ("autocast", "narrow")
    ]


SECTIONS: dict[str, Callable] = {
    "lora": partial(against_peft, "lora"),
    "dora": partial(against_peft, "dora"),
    "dora-over-lora": dora_over_lora,
    "bilevel": bilevel,
    "plain": plain,
}


# The parent.


def prepare(folder: Path, options) -> None:
    """The model that all load, and their tokens."""
    opponents = Path(__file__).parents[1] / "opponents.py"
    subprocess.run([sys.executable, opponents, folder, json.dumps(shape(options))], check=True)
    random = np.random.default_rng(0)
    for name in ("train", "val"):
        np.save(folder / f"{name}.npy", random.integers(0, options.vocabulary, (options.batch, options.tokens)))


def shape(options) -> dict:
    """The sizes in Qwen3Config's names."""
    found = SHAPES[options.shape] | {"num_hidden_layers": options.layers, "vocab_size": options.vocabulary}
    found |= {"rms_norm_eps": 1e-6, "tie_word_embeddings": True, "attention_bias": False}
    return found | {"max_position_embeddings": 8192, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}


def raced(group: list[Contestant], folder: Path, options) -> list[Result]:
    """Starts the contestants one after the other, then lets them take turns."""
    workers: list[Worker] = []
    answers: dict[Worker, dict] = {}
    environment = dict(pair.split("=", 1) for pair in options.env)
    settings = {"folder": str(folder), "rank": options.rank, "loss_chunk": options.loss_chunk, "freed": options.freed}
    try:
        for contestant in group:
            began, job = time.monotonic(), asdict(contestant) | settings
            workers.append(Worker(contestant.name, __file__, job, environment | contestant.environment))
            print(f"  {contestant.name}: warm after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        for worker in in_turn(workers, options.rounds):
            answers[worker] = worker.step()
    finally:
        for worker in workers:
            worker.stop()
    results = [
        Result(contestant, worker.ready, worker.seconds, answers[worker]["steps_gb"], answers[worker]["process_gb"])
        for contestant, worker in zip(group, workers, strict=True)
    ]
    check_losses(results)
    check_programs(results)
    return results


def check_losses(results: list[Result]) -> None:
    """The contestants must compute the same thing. The two gradients are taken of the same train loss."""
    losses = {result.contestant.name: result.ready["first"] for result in results}
    low, high = min(losses.values()), max(losses.values())
    if not high - low <= FIRST_LOSS_TOLERANCE * abs(high):
        listed = "\n".join(f"    {loss:9.5f}  {name}" for name, loss in losses.items())
        raise SystemExit(f"the first losses differ by more than {FIRST_LOSS_TOLERANCE:.0%}:\n{listed}")


def check_programs(results: list[Result]) -> None:
    """BIDORA_PLAIN=1 must change the program: a ratio of two equal programs would say that the detours are worth nothing."""
    programs = {result.contestant: result.ready["program"] for result in results if result.contestant.side == "ours"}
    for contestant, program in programs.items():
        if contestant.plain and programs.get(replace(contestant, plain=False)) == program:
            raise SystemExit(
                f"{contestant.name}: the compiled program is the same without {PLAIN}; it switched nothing off"
            )


def report(section: str, results: list[Result], options) -> None:
    base = yardstick(section, results)
    print(f"\n{section}: {options.rounds} rounds; ratios to: {base.contestant.name}")
    width = max(len(result.contestant.name) for result in results)
    print(f"{'':{width}s} {'tokens/s':>22s} {'s/step':>7s} {'speed ratio':>20s}   peak GB: {'steps':>5s} {'ratio':>5s} "
          f"{'process':>7s} {'temporaries':>11s}")  # fmt: skip
    for result in results:
        tokens = result.contestant.batches * options.batch * options.tokens
        rates = [tokens / seconds for seconds in result.seconds]
        temporaries = result.ready.get("temporaries_gb")
        print(f"{result.contestant.name:{width}s} {spread(rates, '.0f'):>22s} {median(result.seconds):7.2f} "
              f"{spread(ratios(result, base), '.2f'):>20s}            {result.steps_gb:5.2f} "
              f"{result.steps_gb / base.steps_gb:5.2f} {result.process_gb:7.2f} "
              f"{'' if temporaries is None else format(temporaries, '11.2f')}")  # fmt: skip
    duel(results)
    worth(results)


def yardstick(section: str, results: list[Result]) -> Result:
    """What the ratios of a section are taken to: the fastest PEFT, our LoRA, the faster two gradients, or the plain step."""
    wanted: Callable[[Contestant], bool] = {
        "dora-over-lora": lambda c: c.method == "lora",
        "bilevel": lambda c: c.form == GRADIENTS,
        "plain": lambda c: c.plain,
    }.get(section, lambda c: c.side == "peft")
    return fastest([result for result in results if wanted(result.contestant)] or results)


def duel(results: list[Result]) -> None:
    """Our best settings against PEFT's best. In a bilevel group ours is the exact form: the others compute less."""
    ours = [r for r in results if r.contestant.side == "ours" and r.contestant.form in ("", "exact")]
    theirs = [r for r in results if r.contestant.side == "peft"]
    if not ours or not theirs:
        return
    mine, other = fastest(ours), fastest(theirs)
    print(f"fastest: {mine.contestant.name} over {other.contestant.name}: {spread(ratios(mine, other), '.2f')} times "
          f"the speed, {mine.steps_gb / other.steps_gb:.2f} of the memory")  # fmt: skip
    mine, other = (min(side, key=lambda r: r.steps_gb) for side in (ours, theirs))
    print(f"leanest: {mine.contestant.name} over {other.contestant.name}: {mine.steps_gb / other.steps_gb:.2f} of the "
          f"memory, {spread(ratios(mine, other), '.2f')} times the speed", flush=True)  # fmt: skip


def worth(results: list[Result]) -> None:
    """What the detours of kernels/xla_cpu are worth together: a step over itself with BIDORA_PLAIN=1."""
    by_contestant = {result.contestant: result for result in results}
    for result in results:
        other = by_contestant.get(replace(result.contestant, plain=True))
        if other and other is not result:
            print(f"detours of {result.contestant.name}: {spread(ratios(result, other), '.2f')} times the plain step's speed, "
                  f"{result.steps_gb / other.steps_gb:.2f} of its memory, {result.ready['temporaries_gb']:.2f} GB of temporaries "
                  f"instead of {other.ready['temporaries_gb']:.2f}", flush=True)  # fmt: skip


def fastest(results: list[Result]) -> Result:
    return min(results, key=lambda result: median(result.seconds))


def ratios(result: Result, base: Result) -> list[float]:
    """How many times the speed of `base`, round by round."""
    return [other / own for own, other in zip(result.seconds, base.seconds, strict=True)]


def machine(options) -> dict[str, str]:
    return {
        "machine": this_machine("jax", "torch", "transformers", "peft"),
        "model": f"{options.layers} layers x {SHAPES[options.shape]['hidden_size']}, vocabulary {options.vocabulary}, "
        f"batch {options.batch} x {options.tokens} tokens, rank {options.rank} on all seven projections; "
        f"environment: {' '.join(options.env) or 'as it is'}",
    }


# The worker.


def work(job: dict) -> None:
    if job["freed"] == "kept":
        keep_freed_memory()  # as `train` does; given to PEFT too, which gains by it as well
    loaded_gb = 0.0

    def build():
        nonlocal loaded_gb
        built = ours(job) if job["side"] == "ours" else theirs(job)
        loaded_gb = peak_gb()
        if job["freed"] == "kept":
            release_freed_memory()  # as `train` does after compiling; for PEFT after loading
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts anew at what is resident now
        return built

    serve(build, lambda: {"steps_gb": peak_gb(), "process_gb": max(loaded_gb, peak_gb())})


def theirs(job: dict) -> tuple[Callable[[], float], dict]:
    import opponents

    settings = {name: job[name] for name in ("dtype", "variant", "rank", "parts")}
    return opponents.contestant(Path(job["folder"]), job["method"], learning_rate=2e-4, **settings), {}


def ours(job: dict) -> tuple[Callable[[], float], dict]:
    import own_steps

    names = ("method", "dtype", "form", "rank", "parts", "loss_chunk")
    return own_steps.contestant(Path(job["folder"]), remat=job["variant"], **{name: job[name] for name in names})


if __name__ == "__main__":
    main()
