"""Adapter folders as PEFT writes them: settings of many kinds, damage, and refusals."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG

from bidora_jax.errors import InputError
from bidora_jax.models import decoder
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.formats import hf, hf_config, peft

METHODS = {
    "lora": AdapterConfig(method="lora", rank=5, alpha=7.0),
    "rslora": AdapterConfig(method="lora", rank=5, alpha=7.0, rslora=True),
    "dora": AdapterConfig("dora", rank=5, alpha=7.0, dropout=0.1, target_modules=("q_proj", "v_proj", "down_proj")),
    "rsdora": AdapterConfig(method="dora", rank=3, alpha=2.5, rslora=True),
    "lora patterns": AdapterConfig(
        "lora", rank=4, alpha=6.0, rank_pattern=(("q_proj", 2), ("layers.1.mlp.down_proj", 7)),
        alpha_pattern=((r"1\.self_attn\.\w_proj", 3.0),),
    ),
    "rsdora patterns": AdapterConfig(
        "dora", rank=4, alpha=6.0, rslora=True, layers_to_transform=(0, 1), rank_pattern=(("0.self_attn.q_proj", 7),),
        exclude_modules=("layers.1.mlp.up_proj",), target_modules=("q_proj", "k_proj", "up_proj"),
    ),
    "lora embeddings": AdapterConfig(
        "lora", rank=3, target_modules=("q_proj",), modules_to_save=("lm_head", "embed_tokens"), layers_to_transform=(1,)
    ),
    "dora head": AdapterConfig("dora", rank=3, target_modules=("q_proj", "up_proj"), modules_to_save=("lm_head",)),
}  # fmt: skip


def change_config(folder, **changes):
    """Sets keys of adapter_config.json."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refused(folder, message, config=CONFIG):
    """The folder is refused with a message that matches."""
    with pytest.raises(InputError, match=message):
        peft.load_adapter(folder, config)


def logits_of(folder, ids, adapter, direction, magnitude):
    """Logits of the model in the folder under an adapter."""
    config = hf_config.read_config(folder)
    base = initial.prepare_base(hf.load_base(folder, config), adapter)
    return np.asarray(decoder.logits(config, adapter, base, direction, magnitude, jnp.asarray(ids)))
