"""BiDoRA on the model and the data that ship with the package: nothing is downloaded.

    python -m bidora_jax.train --config configs/quickstart.py

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
