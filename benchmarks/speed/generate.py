"""Times greedy decoding of bidora_jax and of transformers in one run, answer by answer in turn.

    python benchmarks/speed/generate.py [--batches 1 8] [--ours bfloat16 float32 scan dora int8 nf4]
                                        [--theirs bfloat16 float32 dora] [--json OUT]

Needs torch, transformers and, for dora, PEFT. Every contestant is a process of its own. It loads the model and answers once to
warm up, which compiles our program. Then it answers each time the parent asks, while all other processes wait. A round is one
answer of each contestant, and each round starts one further down the list. A ratio compares two answers of the same round. All
contestants load the same random weights (SmolLM2-135M's shape as a Qwen3) and the same prompts, and the script stops if the two
sides write different tokens in float32.

    ours            bfloat16, float32; scan: bfloat16, the layers scanned over their stack; int8, nf4: quantised
    transformers    bfloat16, float32: `generate` with its default cache
    dora            of either side: bfloat16 with a DoRA adapter of rank 8 on all seven projections, applied, not merged

A rate counts the new tokens of all rows per second, from the prompt to the last token. Memory is the peak resident memory of the
process (VmHWM), with loading and compiling.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # turns.py
from turns import Worker, in_turn, peak_gb, serve, this_machine

SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}  # fmt: skip


def main() -> None:
    options = parsed()
    if options.worker:
        work(json.loads(options.worker))
        return
    print(this_machine("jax", "torch", "transformers"))
    print(
        f"{options.layers} layers x 576, prompts of {options.prompt} tokens, {options.new} new ones, {options.rounds} rounds"
    )
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shape = json.dumps({**SHAPE, "num_hidden_layers": options.layers})
        opponents = Path(__file__).parents[1] / "opponents.py"
        subprocess.run([sys.executable, opponents, folder, shape], check=True)
        prompts = np.random.default_rng(0).integers(SHAPE["vocab_size"], size=(max(options.batches), options.prompt))
        np.save(folder / "prompts.npy", prompts)
        for batch in options.batches:
            found += raced(batch, folder, options)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--batches", nargs="+", type=int, default=[1, 8])
    add("--ours", nargs="+", default=["bfloat16", "float32", "scan", "dora", "int8", "nf4"])
    add("--theirs", nargs="+", default=["bfloat16", "float32", "dora"])
    add("--layers", type=int, default=SHAPE["num_hidden_layers"])
    add("--prompt", type=int, default=60)
    add("--new", type=int, default=64)
    add("--rounds", type=int, default=5)
    add("--json")
    add("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def raced(batch: int, folder: Path, options: argparse.Namespace) -> list[dict]:
    """The rounds of one batch size; prints a row for each contestant."""
    sides = [("ours", form) for form in options.ours] + [("transformers", form) for form in options.theirs]
    workers: list[Worker] = []
    answers: dict[str, dict] = {}
    try:
        for side, form in sides:
            job = {"side": side, "form": form, "batch": batch, "folder": str(folder), "new": options.new}
            workers.append(Worker(f"{side} {form}", __file__, job, {}))
        for worker in in_turn(workers, options.rounds):
            answers[worker.name] = worker.step()
    finally:
        for worker in workers:
            worker.stop()
    named = {worker.name: worker for worker in workers}
    texts = {json.dumps(worker.ready["first"]) for name, worker in named.items() if name.endswith("float32")}
    if len(texts) > 1:
        raise SystemExit("the two sides write different tokens in float32")
    theirs = [named[f"transformers {form}"] for form in options.theirs if form != "dora"]
    best = [min(worker.seconds[turn] for worker in theirs) for turn in range(options.rounds)]
    print(
        f"\n| batch {batch} | tokens/s | over transformers' best | first answer | peak memory |\n| --- | --- | --- | --- | --- |"
    )
    rows = []
    for worker in workers:
        speed = batch * options.new / median(worker.seconds)
        ratio = median(other / own for other, own in zip(best, worker.seconds, strict=True))
        first, memory = worker.ready["first_seconds"], answers[worker.name]["memory_gb"]
        rows.append({"batch": batch, "name": worker.name, "tokens_per_second": speed, "ratio": ratio,
                     "seconds": worker.seconds, "first_seconds": first, "memory_gb": memory})  # fmt: skip
        print(f"| {worker.name} | {speed:.1f} | {ratio:.2f} | {first:.1f} s | {memory:.2f} GB |", flush=True)
    return rows


# The worker.


def work(job: dict) -> None:
    prompts = np.load(Path(job["folder"]) / "prompts.npy")[: job["batch"]]
    build = ours if job["side"] == "ours" else theirs
    serve(lambda: (build(job, prompts), {}), lambda: {"memory_gb": peak_gb()})


def ours(job: dict, prompts: np.ndarray) -> Callable[[], list[list[int]]]:
    import jax

    from bidora_jax.generation import answers, decoding, ensembles
    from bidora_jax.models.adapters import adapter as adapters
    from bidora_jax.models.adapters import initial
    from bidora_jax.models.adapters.settings import AdapterConfig
    from bidora_jax.models.formats import hf, hf_config
    from bidora_jax.models.settings import ModelConfig

    config = hf_config.read_config(job["folder"])
    form = job["form"]
    settings = ModelConfig(
        dtype="float32" if form == "float32" else "bfloat16", quantization=form if form in ("int8", "nf4") else "none"
    )
    base = hf.load(settings, job["folder"], config)
    model = decoding.assemble(config, base)
    if form == "scan":
        model = model._replace(weights=decoding.Weights(base, None, model.weights.head))
    if form == "dora":
        adapter = adapters.resolve(AdapterConfig(method="dora", rank=8), config)
        prepared = initial.prepare_base(base, adapter)
        member = ensembles.Member(adapter, *initial.init(adapter, prepared, jax.random.key(0)))
        model = decoding.with_adapter(model, *ensembles.inference_form(prepared, [member])[0])
        del prepared
    del base

    def answer() -> list[list[int]]:
        pieces = answers.complete(model, prompts.tolist(), max_new_tokens=job["new"], ends=[-1])
        return [piece.tokens for piece in pieces]

    return answer


def theirs(job: dict, prompts: np.ndarray) -> Callable[[], list[list[int]]]:
    import torch
    import transformers

    dtype = torch.float32 if job["form"] == "float32" else torch.bfloat16
    model = transformers.Qwen3ForCausalLM.from_pretrained(job["folder"], dtype=dtype)
    if job["form"] == "dora":
        import peft

        settings = peft.LoraConfig(r=8, lora_alpha=16, use_dora=True, target_modules="all-linear")
        model = peft.get_peft_model(model, settings)
    model.eval()
    ids = torch.from_numpy(prompts).long()
    how = {"max_new_tokens": job["new"], "min_new_tokens": job["new"], "do_sample": False, "pad_token_id": 0}

    @torch.no_grad()
    def answer() -> list[list[int]]:
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)[:, ids.shape[1] :].tolist()

    return answer


if __name__ == "__main__":
    main()
