"""Qwen3 on a device of a given size: BiDoRA in the form that fits.

    python -m bidora_jax.train --config configs/qwen3.py:8b-24gb --data.train-file data.jsonl --data.val-fraction 0.2

The argument is SIZE-MEMORY, as in the table below. Rank 8 on all linear layers, four records of at most 1,024 tokens in an
optimiser step on each level, layers recomputed. What differs is how many of them are in the device at a time, and the bits of
the frozen weights, so that a step fits in 85 % of the memory. `python benchmarks/memory/fit_configs.py --gpu h100` compiles each
record and prints its peak; benchmarks/README.md has the table. It is XLA's count for an H100, which need not be there; none of
these runs has been made.
"""

from ml_collections import ConfigDict

from bidora_jax.errors import InputError, did_you_mean

# SIZE: {GB: (method, quantization, records in the device at a time)}
RECORDS: dict[str, dict[int, tuple[str, str, int]]] = {
    "0.6b": dict.fromkeys((8, 16, 24, 40, 80), ("bidora", "none", 4)),
    "1.7b": {8: ("bidora", "none", 2), **dict.fromkeys((16, 24, 40, 80), ("bidora", "none", 4))},
    "4b": {8: ("bidora", "nf4", 1), **dict.fromkeys((16, 24, 40, 80), ("bidora", "none", 4))},
    "8b": {16: ("bidora", "int8", 1), 24: ("bidora", "none", 1), **dict.fromkeys((40, 80), ("bidora", "none", 4))},
    "14b": {16: ("bidora", "nf4", 1), 24: ("bidora", "int8", 1), 40: ("bidora", "int8", 2), 80: ("bidora", "none", 4)},
    "32b": {40: ("bidora", "nf4", 1), 80: ("bidora", "int8", 2)},
}  # fmt: skip


def get_config(size: str = "0.6b-16gb") -> ConfigDict:
    known = {
        f"{name}-{memory}gb": (name, *record) for name, records in RECORDS.items() for memory, record in records.items()
    }
    if size.lower() not in known:
        raise InputError(
            f"configs/qwen3.py:{size}: expected one of {', '.join(known)}{did_you_mean(size.lower(), known)}"
        )
    name, method, quantization, batch = known[size.lower()]
    config = ConfigDict()
    config.output_dir = f"runs/qwen3-{size.lower()}"
    config.model = ConfigDict(
        {"path": f"Qwen/Qwen3-{name.upper()}", "dtype": "bfloat16", "quantization": quantization, "remat": "layer"}
    )
    config.adapter = ConfigDict({"method": method, "rank": 8, "alpha": 16.0})
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
