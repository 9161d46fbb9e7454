"""LoRA, DoRA and BiDoRA on one model and one text, each over the same number of training tokens.

    python benchmarks/quality/curves.py --folder FOLDER [--tokens 76800] [--picture curves.png] [--json OUT]

FOLDER is a Hugging Face folder of a real model, SmolLM2-135M for instance. The text is Python's language reference, which comes
with Python, cut into records of `--length` tokens: 70 % train, 15 % val, 15 % test. Every method has the same split, rank, learning
rate and seed, and runs in a `python -m bidora_jax.train` of its own.

The budget counts every token of every gradient. A search step of BiDoRA takes two batches (train and val). BiDoRA spends half of
the budget on the search, in half as many steps, and half on the retraining. LoRA and DoRA train on train and val together, as
BiDoRA does over its two levels, and use val for nothing else. The table compares losses on test.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bidora_jax.data.tokenizer import load_tokenizer

METHODS = ("lora", "dora", "bidora")
INK = {"lora": "#0072b2", "dora": "#e69f00", "bidora": "#009e73"}  # Okabe and Ito's, told apart by all
DASH = {"lora": "-", "dora": (0, (3, 3)), "bidora": "-"}  # LoRA and DoRA may lie on each other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--drawn", type=Path, help="only draw what an earlier --json holds")
    parser.add_argument(
        "--tokens", type=int, default=76_800, help="tokens that gradients are taken on, for each method"
    )
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--records", type=int, default=400)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.drawn:
        found = json.loads(options.drawn.read_text())
        draw(found, found.pop("before"), options.picture)
        return
    if options.folder is None:
        parser.error("--folder is needed: a Hugging Face folder")
    with tempfile.TemporaryDirectory() as temporary:
        files = write_splits(options, Path(temporary))
        found = {method: measure(method, options, files, Path(temporary) / method) for method in METHODS}
        before = evaluate(options, files["test"], None)
    print(table(found, before))
    versions()
    if options.picture:
        draw(found, before, options.picture)
    if options.json:
        options.json.write_text(json.dumps({"before": before, **found}, indent=1))


def write_splits(options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """{split: file} of {text} records, neighbours in the text falling where they may."""
    from pydoc_data.topics import topics

    tokenizer = load_tokenizer(options.folder)
    ids = tokenizer("\n\n".join(topics[name] for name in sorted(topics)), verbose=False)["input_ids"]
    step = options.length - 1  # the end of text takes one
    texts = [tokenizer.decode(ids[at : at + step]) for at in range(0, len(ids) - step, step)]
    random.Random(0).shuffle(texts)
    texts = texts[: options.records]
    edges = [0, round(0.7 * len(texts)), round(0.85 * len(texts)), len(texts)]
    parts = {name: texts[edges[at] : edges[at + 1]] for at, name in enumerate(("train", "val", "test"))}
    files = {}
    for name, part in (*parts.items(), ("both", parts["train"] + parts["val"])):
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    return files


def measure(method: str, options: argparse.Namespace, files: dict[str, Path], run: Path) -> dict:
    """One run: its curve, its loss on test, seconds and peak memory."""
    step_tokens = options.batch * options.length
    if method == "bidora":
        search = options.tokens // 2 // (2 * step_tokens)
        retrain = options.tokens // 2 // step_tokens
        data = {"train-file": files["train"], "val-file": files["val"]}
    else:
        search, retrain = options.tokens // step_tokens, 0
        data = {"train-file": files["both"]}
    flags = {
        "model.path": options.folder, "output-dir": run, "adapter.method": method, "adapter.preset": "balanced",
        "data.max-length": options.length, "data.long": "truncate", "data.batch-size": options.batch, "data.buckets": 1,
        "inner.learning-rate": options.learning_rate, "search.steps": search, "retrain.steps": retrain,
        "retrain.epochs": 0, "eval-every": 0, "save-every": 0, **{f"data.{name}": file for name, file in data.items()},
    }  # fmt: skip
    command = [sys.executable, "-m", "bidora_jax.train"]
    command += [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    began = time.monotonic()
    peak = peak_of(command)
    seconds = time.monotonic() - began
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen, curve = 0, []
    for line in lines:
        both = 2 if line["phase"] == "search" and method == "bidora" else 1
        seen += both * step_tokens
        curve.append((seen, line["train_loss"]))
    return {"curve": curve, "test_loss": evaluate(options, files["test"], run / "adapter"), "seconds": seconds,
            "peak": peak, "steps": len(lines)}  # fmt: skip


def peak_of(command: list[str]) -> float:
    """Peak resident memory of a command in GB; its output goes to the terminal. Ends where the command fails."""
    script = "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; "
    script += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", script, *command], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return int(done.stdout.splitlines()[-1]) * 1024 / 1e9


def evaluate(options: argparse.Namespace, file: Path, adapter: Path | None) -> float:
    command = [sys.executable, "-m", "bidora_jax.evaluate", "--model", str(options.folder), "--data-file", str(file)]
    command += ["--adapter", str(adapter)] if adapter else []
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        subprocess.run([*command, "--json", out.name], check=True, stdout=subprocess.DEVNULL)
        return json.loads(Path(out.name).read_text())["loss"]


def table(found: dict[str, dict], before: float) -> str:
    rows = ["| | steps | loss on test | time | peak resident memory |", "| --- | --- | --- | --- | --- |"]
    rows.append(f"| before | | {before:.4f} | | |")
    for method, one in found.items():
        rows.append(
            f"| {method} | {one['steps']} | {one['test_loss']:.4f} | {one['seconds']:.0f} s | {one['peak']:.2f} GB |"
        )
    return "\n".join(rows)


def draw(found: dict[str, dict], before: float, picture: Path) -> None:
    """Training losses over tokens, averaged over a tenth of a run, and the loss on test at the end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for method, one in found.items():
        tokens, losses = zip(*one["curve"], strict=True)
        width = max(len(losses) // 10, 1)
        smooth = [sum(losses[max(0, at - width) : at + 1]) / len(losses[max(0, at - width) : at + 1])
                  for at in range(len(losses))]  # fmt: skip
        axes.plot(tokens, losses, color=INK[method], alpha=0.12, linewidth=0.6)
        axes.plot(tokens, smooth, color=INK[method], linestyle=DASH[method], linewidth=1.8,
                  label=f"{method}, test {one['test_loss']:.3f}")  # fmt: skip
    axes.axhline(before, color="#888888", linewidth=0.8, linestyle=":")
    axes.annotate("test, before training", (0.99, before), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                  fontsize=8, color="#666666")  # fmt: skip
    axes.set_xlabel("tokens that a gradient was taken on")
    axes.set_ylabel("training loss, nats a token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(picture)


def versions() -> None:
    import datetime
    import platform
    from importlib import metadata

    print(f"{datetime.date.today()}, Python {platform.python_version()}, "
          + ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "transformers"))
          + f"; this process at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f} GB")  # fmt: skip


if __name__ == "__main__":
    main()
