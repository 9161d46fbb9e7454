"""A small run whose memory the compiler counts: seven layers, one padded length."""

from dataclasses import replace

from tiny import CONFIG

from bidora_jax.data.settings import DataConfig
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.settings import ModelConfig
from bidora_jax.planning import footprint, remat_choice
from bidora_jax.training.phases import first_phase
from bidora_jax.training.settings import OptimizerConfig, SearchConfig

DEEP = replace(CONFIG, num_layers=7)
DATA = DataConfig(batch_size=3, buckets=1, max_length=48)
MODEL = ModelConfig(remat="layer", loss_chunk=16)


def problem(base, model=MODEL, method="lora"):
    adapter = adapters.resolve(AdapterConfig(method=method, rank=3), DEEP)
    return remat_choice.synthetic(DEEP, model, adapter, base, DATA, DATA.max_length)


def counted(base, model=MODEL, **options):
    """(what the compiler counts of a step of LoRA, the state of its phase)."""
    made = problem(base, model)
    phase, standing = first_phase("lora", made, SearchConfig(steps=5), OptimizerConfig(), OptimizerConfig())
    return footprint.of(made, phase, standing.state, remat_choice.largest(phase), **options), standing.state
