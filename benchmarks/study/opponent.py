"""The cells of LoRA and DoRA that study.py has done, by PEFT: the same records, batches of as many, steps, rates and schedule.

    python benchmarks/study/opponent.py --data DATA/bbb --model FOLDER [--methods lora dora] [--records 300]

A line a run goes to results/peft/NAME.jsonl, and one that is there is not done again. Then both are printed, seed by seed, with the
mean difference of the test metric and its 95 % interval by Student's t. PEFT draws its factors, its head and its order by torch, so
a seed shares its records alone. Its rows are padded to the longest of a batch, ours to a few lengths. For classification.
"""

import argparse
import json
import random
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import data_sets
import numpy as np
import scipy.stats
from cells import ALL, BATCH, FINAL, Cell
from study import RESULTS, Study

TARGETS = r".*encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|(attention\.output|intermediate|output)\.dense)"
WARMUP, CLIP = 0.1, 1.0
"""Our defaults."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--methods", nargs="+", default=["lora", "dora"], choices=["lora", "dora"])
    parser.add_argument("--records", nargs="+", type=int)
    options = parser.parse_args()
    own = Study(options.data, options.model)
    file = RESULTS / "peft" / f"{own.name}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    for method in options.methods:
        for records in options.records or own.data.sizes:
            ours = {line["seed"]: line for line in own.lines
                    if (line["method"], line["records"]) == (method, records) and line["seed"] in FINAL}  # fmt: skip
            theirs = {line["seed"]: line for line in lines if (line["method"], line["records"]) == (method, records)}
            for seed, line in ours.items():
                if seed not in theirs:
                    cell = Cell(own.name, method, line["rate"], records, seed)
                    theirs[seed] = {**cell._asdict(), **run(own, cell)}
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with file.open("a") as out:
                        out.write(json.dumps(theirs[seed]) + "\n")
            show(own.data.metric, method, records, ours, theirs)


def show(metric: str, method: str, records: int, ours: dict[int, Any], theirs: dict[int, Any]) -> None:
    pairs = [(ours[seed]["test"][metric], theirs[seed]["test"][metric]) for seed in sorted(ours)]
    differences = [own - other for own, other in pairs]
    half = scipy.stats.t.ppf(0.975, len(pairs) - 1) * scipy.stats.sem(differences)
    own, other = (fmean(side) for side in zip(*pairs, strict=True))
    seeds = ", ".join(f"{one:.4f} and {another:.4f}" for one, another in pairs)
    both = f"ours {own:.4f}, PEFT {other:.4f}, difference {fmean(differences):+.4f} ± {half:.4f}"
    print(f"{method}, {records} records, {metric}: {both}; by seed {seeds}", flush=True)


def run(own: Study, cell: Cell) -> dict[str, Any]:
    """One training with PEFT, and its scores on all parts."""
    import peft
    import torch
    import transformers

    torch.manual_seed(cell.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(own.model)
    rows = own.drawn(cell)
    names, steps = sorted({row[-1] for row in own.pool}), sum(cell.steps)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        own.model, num_labels=len(names), dtype="float32"
    )
    settings = peft.LoraConfig(r=8, lora_alpha=16, task_type="SEQ_CLS", target_modules=TARGETS,
                               use_dora=ALL[cell.method].settings["adapter.method"] == "dora")  # fmt: skip
    model = peft.get_peft_model(model, settings).train()
    for module in model.modules():  # ours has none in the base
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=cell.rate, weight_decay=0.0)
    warm = round(WARMUP * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: (step + 1) / warm if step < warm else 1 - (step - warm) / (steps - warm)
    )
    order, chance, began = [], random.Random(cell.seed), time.perf_counter()
    for _ in range(steps):
        if len(order) < BATCH:
            order = chance.sample(rows, len(rows))
        batch, order = order[:BATCH], order[BATCH:]
        loss = model(
            **encoded(own, tokenizer, batch), labels=torch.tensor([names.index(row[-1]) for row in batch])
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
    seconds = time.perf_counter() - began
    model.eval()
    parts = {part: data_sets.read(own.folder / f"{part}.csv") for part in ("judge", "test")}
    with torch.no_grad():
        scored = {part: scores(own, model, tokenizer, names, of) for part, of in {"train": rows, **parts}.items()}
    return {**scored, "steps": steps, "seconds": seconds, "peft": peft.__version__}


def encoded(own: Study, tokenizer: Any, rows: list[data_sets.Row]) -> Any:
    columns = [[row[place] for row in rows] for place in range(2 if own.data.pairs else 1)]
    return tokenizer(*columns, truncation=True, max_length=own.data.lengths[-1], padding=True, return_tensors="pt")


def scores(own: Study, model: Any, tokenizer: Any, names: list[str], rows: list[data_sets.Row]) -> dict[str, float]:
    import torch
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    logits = torch.cat([model(**encoded(own, tokenizer, rows[i : i + 64])).logits for i in range(0, len(rows), 64)])
    labels = np.array([names.index(row[-1]) for row in rows])
    measure = {"accuracy": accuracy_score, "matthews": matthews_corrcoef}[own.data.metric]
    loss = float(torch.nn.functional.cross_entropy(logits, torch.tensor(labels)))
    return {"loss": loss, own.data.metric: float(measure(labels, logits.argmax(-1).numpy()))}


if __name__ == "__main__":
    main()
