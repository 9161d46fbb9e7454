"""BiDoRA on the model and the data that ship with the package: nothing is downloaded.

    command       python -m bidora_jax.train --config configs/quickstart.py
    hardware      2 cores of an AMD EPYC without AVX-512, busy with other work (load average 3.8); no GPU
    versions      Python 3.11.7, JAX 0.10.2, nothing in the compilation cache
    wall time     2 min 59 s, of it 2 min 3 s of training
    peak memory   1.54 GB resident
    reached       94 of 96 test records answered exactly, 0 before; validation loss 0.0040 (retrain trains on that split too)
    date          2026-11-29

A Qwen3 of under a million parameters, which has seen OpenSCAD code and never an instruction to write it in this house
style, learns to. bidora_jax/quickstart/README.md is its model card.
"""

from ml_collections import ConfigDict

from bidora_jax.quickstart import DATA, MODEL


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.output_dir = "runs/quickstart"
    config.merged = True
    config.max_new_tokens = 88
    config.model = ConfigDict({"path": str(MODEL), "dtype": "float32", "remat": "none"})
    config.adapter = ConfigDict({"method": "bidora", "rank": 8, "alpha": 16.0})
    config.data = ConfigDict(
        {
            "train_file": str(DATA / "train.jsonl"),
            "val_file": str(DATA / "val.jsonl"),
            "test_file": str(DATA / "test.jsonl"),
            "max_length": 160,
            "batch_size": 8,
            "buckets": 1,
        }
    )
    config.inner = ConfigDict({"learning_rate": 4e-3})
    config.eval_every = 20
    config.search = ConfigDict({"steps": 40})
    config.retrain = ConfigDict({"steps": 120})
    return config
