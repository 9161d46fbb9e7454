"""Qwen3-0.6B's exact shape on a CPU: transformers saves random weights in two shards, and we load, train and export them.

    python benchmarks/memory/real_size.py --folder FOLDER          the first and the last part need torch and transformers

Each part is a process of its own. Prints the peak resident memory of each.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

SHAPE = {
    "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True, "attention_bias": False, "max_position_embeddings": 40_960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}  # fmt: skip
SAVE = """
import torch, transformers
torch.manual_seed(0)
model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{shape})).to(torch.bfloat16)
model.save_pretrained({folder!r}, max_shard_size="800MB")
print("parameters", sum(p.numel() for p in model.parameters()))
"""
LOAD = """
import torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained({folder!r}, dtype="auto")
print(type(model).__name__, model.dtype, tuple(model(torch.arange(8)[None]).logits.shape))
"""


def measured(name: str, command: list[str]) -> None:
    """Runs a command and prints its wall time and its peak resident memory."""
    wrapped = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]);"
        "print('PEAK', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", wrapped, *command], capture_output=True, text=True)
    print(f"== {name}: exit {done.returncode}, {time.monotonic() - began:.0f} s")
    lines = done.stdout.splitlines()
    peak = int(lines[-1].split()[1]) / 1e6
    print("\n".join(lines[:-1]) + f"\n   peak resident {peak:.2f} GB", flush=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder; about 4 GB are written")
    folder = parser.parse_args().folder
    model, run = folder / "model", folder / "run"
    folder.mkdir(parents=True)
    measured("save with transformers", [sys.executable, "-c", SAVE.format(shape=SHAPE, folder=str(model))])
    copy_tokenizer(model)
    records = folder / "records.jsonl"
    line = json.dumps({"text": "cube([1,2,3]); " * 30})
    records.write_text((line + "\n") * 4)
    measured("train 3 bilevel steps of 1 x 128 tokens", [
        sys.executable, "-m", "bidora_jax.train", "--model.path", str(model), "--output-dir", str(run),
        "--data.train-file", str(records), "--data.val-file", str(records), "--data.max-length", "128",
        "--data.batch-size", "1", "--data.buckets", "1", "--search.steps", "3", "--retrain.epochs", "0",
        "--eval-every", "0",
    ])  # fmt: skip
    measured("export merged", [
        sys.executable, "-m", "bidora_jax.export", "--run", str(run), "--format", "merged", "--output", str(folder / "merged"),
    ])  # fmt: skip
    measured("load the export with transformers", [sys.executable, "-c", LOAD.format(folder=str(folder / "merged"))])


def copy_tokenizer(folder: Path) -> None:
    """Any tokenizer serves; the quickstart model's ids are all below this vocabulary."""
    import shutil

    from bidora_jax.quickstart import MODEL

    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(MODEL / name, folder / name)


if __name__ == "__main__":
    main()
