import pytest
from adapter_folders import METHODS
from random_adapters import random_adapter
from tiny import CONFIG

from bidora_jax.models.formats import peft


@pytest.fixture
def adapter_folder(tmp_path):
    """A DoRA adapter for the tiny model, which a test may damage."""
    adapter, *trained = random_adapter(METHODS["dora"])
    peft.save_adapter(tmp_path / "a", CONFIG, adapter, METHODS["dora"], *trained, base_model_name="x")
    return tmp_path / "a"
