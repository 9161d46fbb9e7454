"""Model folders of small encoders, written without torch."""

import json
import shutil
from pathlib import Path

import encoders
import numpy as np
from safetensors.numpy import save_file

from bidora_jax.models.architectures.architecture import name_table


def write(folder: Path, kind: str, seed: int = 0) -> Path:
    """A folder with config.json and random float32 weights; no tokenizer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(encoders.settings(kind)))
    config = encoders.config(kind)
    base = encoders.random_base(config, seed=seed)
    tensors = {}
    for name, place in name_table(config).items():
        leaf = base
        for step in place.path:
            leaf = leaf[step]
        tensors[name] = np.asarray(leaf if place.layer is None else leaf[place.layer])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def copied(folder: Path, other: Path, tensors: dict[str, np.ndarray]) -> Path:
    """The folder with other tensors."""
    shutil.copytree(folder, other)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    return other
