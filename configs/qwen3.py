"""Qwen3 on a device of a given size: BiDoRA in the form that fits.

    python -m bidora_jax.train --config configs/qwen3.py:8b-24gb --data.train-file data.jsonl --data.val-fraction 0.2

The argument is SIZE-MEMORY: 0.6b, 1.7b, 4b, 8b, 14b or 32b on 8gb, 16gb, 24gb, 40gb or 80gb. Rank 8 on all linear layers, four
records of at most 1,024 tokens in an optimiser step on each level. What differs is how many of them are in the device at a
time, and the bits of the frozen weights: the most that the compiler's count lets into 85 % of the memory, layers recomputed.
Each record was counted by `python benchmarks/fit_configs.py`, whose table stands in benchmarks/README.md: XLA's count for a CPU,
which stands in for a GPU's. None of these runs has been made.
"""

from ml_collections import ConfigDict

from bidora_jax.errors import InputError, did_you_mean

# SIZE: {GB: (quantization, records in the device at a time)}
RECORDS: dict[str, dict[int, tuple[str, int]]] = {}


def get_config(size: str = "0.6b-16gb") -> ConfigDict:
    known = {
        f"{name}-{memory}gb": (name, *record) for name, records in RECORDS.items() for memory, record in records.items()
    }
    if size.lower() not in known:
        raise InputError(
            f"configs/qwen3.py:{size}: expected one of {', '.join(known)}{did_you_mean(size.lower(), known)}"
        )
    name, quantization, batch = known[size.lower()]
    config = ConfigDict()
    config.output_dir = f"runs/qwen3-{size.lower()}"
    config.model = ConfigDict(
        {"path": f"Qwen/Qwen3-{name.upper()}", "dtype": "bfloat16", "quantization": quantization, "remat": "layer"}
    )
    config.adapter = ConfigDict({"method": "bidora", "rank": 8, "alpha": 16.0})
    config.data = ConfigDict(
        {
            "train_file": "train.jsonl",
            "val_file": "val.jsonl",
            "max_length": 1024,
            "batch_size": batch,
            "accumulation": 4 // batch,
        }
    )
    config.search = ConfigDict({"hypergradient": "exact"})
    return config
