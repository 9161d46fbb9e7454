"""list_models.py (python -m bidora_jax.models): parameters as published, memory by the compiler, kept once counted.

The shapes stand in models/architectures/published.py, the counts come from planning/published_steps.py, and what is recommended
from planning/recommendation.py.
"""

import json
import subprocess
import sys

import pytest
from runs import ROOT

from bidora_jax import list_models
from bidora_jax.machine import memory
from bidora_jax.models.adapters.adapter import count
from bidora_jax.models.architectures import published
from bidora_jax.models.base import dense_shapes
from bidora_jax.planning import plans, recommendation

# model.safetensors' tensors, tied embeddings once, as the model cards' files have them.
PUBLISHED = {
    "Qwen/Qwen3-0.6B": 596_049_920, "Qwen/Qwen3-1.7B": 1_720_574_976, "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360, "Qwen/Qwen3-14B": 14_768_307_200, "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen2.5-0.5B": 494_032_768, "Qwen/Qwen2.5-7B": 7_615_616_512, "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "meta-llama/Llama-3.2-1B": 1_235_814_400, "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
}  # fmt: skip


@pytest.mark.parametrize("name", published.MODELS)
def test_parameters_are_those_that_were_published(name):
    assert count(dense_shapes(published.shape(name), "bfloat16")) == PUBLISHED[name]


def test_the_command_recommends_what_info_recommends(monkeypatch, capfd):
    """With the memory and the rate that are said here."""
    monkeypatch.setattr(memory, "device_memory", lambda limit="": memory.Memory(8 * 10**9, f"said {limit}"))
    monkeypatch.setattr(plans, "dot_rate", lambda dtype: 1e12)
    monkeypatch.setattr(plans, "counted", None)  # all of it ships
    list_models.main([])
    said = capfd.readouterr().out
    found = recommendation.recommended()
    form = {"none": "bf16"}.get(str(found["quantization"]), found["quantization"])
    assert f"tokens: {found['model']} in {form}; what is larger does not fit, or" in said
    assert len([line for line in said.splitlines() if line.startswith("Qwen/Qwen3-")]) == 6
    list_models.main(["--json"])
    listed = json.loads(capfd.readouterr().out)
    assert listed["recommended"]["name"] in listed["models"] and len(listed["models"]) == 6


def test_the_command_has_help_and_no_heavy_import():
    code = "import sys, bidora_jax.list_models; print(sorted({'jax', 'tyro', 'numpy'} & sys.modules.keys()))"
    for argv in (["-c", code], ["-m", "bidora_jax.models", "--help"]):
        done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n" or "--memory-limit" in done.stdout
    assert json.dumps(published.MODELS)
