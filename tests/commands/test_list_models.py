"""list_models.py (python -m bidora_jax.models): parameters as published, memory by the compiler, kept once counted.

The shapes stand in models/architectures/published.py, the counts come from planning/published_steps.py.
"""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from runs import ROOT
from tiny import CONFIG

from bidora_jax.machine import compile_cache
from bidora_jax.machine.memory import Memory
from bidora_jax.models.adapters.adapter import count
from bidora_jax.models.architectures import published
from bidora_jax.models.base import dense_shapes
from bidora_jax.planning import plans, published_steps

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


def test_a_step_is_counted_once(monkeypatch, tmp_path):
    monkeypatch.setattr(compile_cache, "default_folder", lambda: tmp_path)
    plan = published_steps.listed_plan("lora", "int8", 1, 64)
    found = published_steps.step_bytes(CONFIG, plan)
    kept = json.loads(next((tmp_path / "footprints").glob("*.json")).read_text())
    assert kept["bytes"] == found > count(dense_shapes(CONFIG, "bfloat16"))
    monkeypatch.setattr(plans, "counted", None)
    assert published_steps.step_bytes(CONFIG, plan) == found
    with pytest.raises(TypeError):  # another shape is counted anew
        published_steps.step_bytes(replace(CONFIG, num_layers=3), plan)


def test_the_table_says_what_fits():
    steps = {"lora": {"none": 5e9, "int8": 3e9, "nf4": 2e9}, "dora": {"none": 9e9, "int8": 4e9, "nf4": 3.6e9},
             "bidora": {"none": 9e9, "int8": 9e9, "nf4": 9e9}}  # fmt: skip
    rows = iter([("a/b", {"parameters": 1_500_000_000, "steps": steps})])
    *_, row = published_steps.as_text(rows, Memory(5 * 10**9, "said"), batch=1, tokens=1024)
    assert row.split()[:3] == ["a/b", "1.50", "B"]
    assert row.endswith("lora int8, dora int8")


def test_the_command_has_help_and_no_heavy_import():
    code = "import sys, bidora_jax.list_models; print(sorted({'jax', 'tyro', 'numpy'} & sys.modules.keys()))"
    for argv in (["-c", code], ["-m", "bidora_jax.models", "--help"]):
        done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n" or "--memory-limit" in done.stdout
    assert json.dumps(published.MODELS)
