"""Classifiers of random weights on the tiny model: folders of transformers' classes, and adapters that bring a head."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
from tiny import CONFIG, noisy

from bidora_jax.data.labels import Labels
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures.heads import HEAD_TREE
from bidora_jax.models.formats import export, hf, hf_config, hf_head

SETTINGS = AdapterConfig(method="lora", rank=3, target_modules=("q_proj", "v_proj"))


def write_classifier(folder: Path, model_folder: Path, labels: Labels, seed: int = 0) -> Path:
    """A Qwen3For…Classification with these labels in config.json."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(model_folder, folder)
    kind = "Token" if labels.type == "tokens" else "Sequence"
    random = np.random.default_rng(seed)
    head = CONFIG.head("token" if labels.type == "tokens" else "sequence", labels.count)
    tensors = {
        f"{part.module}.{leaf}": random.normal(size=shape).astype(np.float32)
        for part in head.parts for leaf, shape in part.tensors.items()
    }  # fmt: skip
    tensors |= {
        name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "lm_head" not in name
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "architectures": [f"Qwen3For{kind}Classification"],
        "id2label": dict(enumerate(labels.names)),
        "pad_token_id": 0,
    }
    config |= {"problem_type": problem} if (problem := hf_head.PROBLEM_TYPES.get(labels.type)) else {}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_adapter(folder: Path, model_folder: Path, labels: Labels, seed: int = 0) -> Path:
    """A PEFT adapter of a classifier on the tiny model, none of whose parts is neutral, with its labels.json."""
    config = hf_config.read_config(model_folder).without_output()
    head = config.head("token" if labels.type == "tokens" else "sequence", labels.count)
    adapter = adapters.resolve(SETTINGS, config, head=head)
    base = initial.prepare_base({**hf.load_base(model_folder, config), HEAD_TREE: {}}, adapter)
    direction, magnitude = noisy(adapter, *initial.init(adapter, base, jax.random.key(seed)), seed=seed)
    classes = hf_head.Classes(labels.names, hf_head.PROBLEM_TYPES.get(labels.type), 0, labels.to_json())
    trained = export.Trained(config, adapter, base, direction, magnitude, head, classes)
    export.write_adapter(folder, SETTINGS, str(model_folder), trained)
    return folder
