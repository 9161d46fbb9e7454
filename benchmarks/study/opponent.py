"""The cells of LoRA and DoRA that study.py has done, by PEFT: the same records, batches of as many, steps, rates and schedule.

    python benchmarks/study/opponent.py --data DATA/bbb --model FOLDER [--methods lora dora] [--records 300] [--passes 2000]

A line a run goes to results/peft/NAME.jsonl, and one that is there is not done again. Then both are printed, seed by seed, with the
mean difference of the test metric and its 95 % interval by Student's t. PEFT draws its factors, its head and its order by torch, so
a seed shares its records alone. Its rows are padded to the longest of a batch, ours to a few lengths. Numbers are standardised
by the training records, as ours are.
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
from cells import ALL, BATCH, FINAL, PASSES, Cell, of_table
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
    parser.add_argument("--passes", type=int, default=PASSES)
    options = parser.parse_args()
    own = Study(options.data, options.model)
    file = RESULTS / "peft" / f"{own.name}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    for method in options.methods:
        for records in options.records or own.data.sizes:
            table = method, records, options.passes
            ours, theirs = (
                {line["seed"]: line for line in of_table(side, *table, FINAL)} for side in (own.lines, lines)
            )
            for seed, line in ours.items():
                if seed not in theirs:
                    cell = Cell(own.name, method, line["rate"], records, seed, options.passes)
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
    targets, steps = Targets(own, rows), sum(cell.steps)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        own.model, num_labels=targets.outputs, dtype="float32"
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
        targets.loss(model(**encoded(own, tokenizer, batch)).logits, targets.of(batch)).backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
    seconds = time.perf_counter() - began
    model.eval()
    parts = {part: data_sets.read(own.folder / f"{part}.csv") for part in ("judge", "test")}
    with torch.no_grad():
        scored = {part: scores(own, model, tokenizer, targets, of) for part, of in {"train": rows, **parts}.items()}
    return {**scored, "steps": steps, "seconds": seconds, "peft": peft.__version__}


def encoded(own: Study, tokenizer: Any, rows: list[data_sets.Row]) -> Any:
    columns = [[row[place] for row in rows] for place in range(2 if own.data.pairs else 1)]
    return tokenizer(*columns, truncation=True, max_length=own.data.lengths[-1], padding=True, return_tensors="pt")


class Targets:
    """What is learned of the records: a class, or a number standardised by the training records."""

    def __init__(self, own: Study, rows: list[data_sets.Row]) -> None:
        self.numbers = own.data.type == "regression"
        self.names = sorted({row[-1] for row in own.pool})
        values = np.array([float(row[-1]) for row in rows]) if self.numbers else np.zeros(1)
        self.mean, self.std = values.mean(), values.std()
        self.outputs = 1 if self.numbers else len(self.names)

    def of(self, rows: list[data_sets.Row]) -> Any:
        """float32 (N,) or int64 (N,)."""
        import torch

        if self.numbers:
            return torch.tensor([(float(row[-1]) - self.mean) / self.std for row in rows], dtype=torch.float32)
        return torch.tensor([self.names.index(row[-1]) for row in rows])

    def loss(self, logits: Any, wanted: Any) -> Any:
        from torch.nn.functional import cross_entropy, mse_loss

        return mse_loss(logits[:, 0], wanted) if self.numbers else cross_entropy(logits, wanted)


def scores(own: Study, model: Any, tokenizer: Any, targets: Targets, rows: list[data_sets.Row]) -> dict[str, float]:
    import torch
    from scipy.stats import pearsonr
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    logits = torch.cat([model(**encoded(own, tokenizer, rows[i : i + 64])).logits for i in range(0, len(rows), 64)])
    wanted = targets.of(rows)
    if targets.numbers:
        found = pearsonr(wanted.numpy(), logits[:, 0].numpy()).statistic
    else:
        measure = {"accuracy": accuracy_score, "matthews": matthews_corrcoef}[own.data.metric]
        found = measure(wanted.numpy(), logits.argmax(-1).numpy())
    scale = (
        float(targets.std) ** 2 if targets.numbers else 1.0
    )  # our loss is that of a finished adapter, in the file's numbers
    return {"loss": scale * float(targets.loss(logits, wanted)), own.data.metric: float(found)}


if __name__ == "__main__":
    main()
