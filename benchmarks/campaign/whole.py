"""Writes the files that files.py damages: a tiny model, in one file and in two, an adapter, a run, and records in five formats."""

import gzip
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import environment  # noqa: F401 - sets what JAX reads when it is imported
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from histories import write_run
from random_adapters import KINDS, random_adapter
from safetensors.numpy import load_file, save_file
from tiny import CONFIG, write_model_folder, write_records

from bidora_jax.models.formats import peft


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    sharded(write_model_folder(folder / "model"), folder / "sharded")
    adapter, *trained = random_adapter(KINDS["dora"])
    peft.save_adapter(folder / "adapter", CONFIG, adapter, KINDS["dora"], *trained, base_model_name="x")
    rows = [json.loads(line) for line in write_records(folder / "train.jsonl", 9, 0).read_text().splitlines()]
    (folder / "train.json").write_text(json.dumps(rows, indent=1))
    with gzip.open(folder / "train.jsonl.gz", "wb") as out:
        out.write((folder / "train.jsonl").read_bytes())
    table = pa.Table.from_pylist(rows)
    pa.parquet.write_table(table, folder / "train.parquet")
    pa.csv.write_csv(table, folder / "train.csv")
    write_run(folder / "run")
    (folder / "settings.yaml").write_text(
        "model: {path: model, remat: none}\ndata: {train_file: train.jsonl, val_fraction: 0.2, batch_size: 2}\n"
        "adapter: {method: lora, rank: 2, target_modules: [q_proj]}\nsearch: {steps: 1}\noutput_dir: out\n"
    )


def sharded(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        own = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        save_file(own, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(one.nbytes for one in tensors.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
