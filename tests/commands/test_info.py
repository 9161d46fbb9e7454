"""python -m bidora_jax.info, as it is run, and what it makes of machines that are not here."""

import json
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest
from runs import ROOT

import bidora_jax
from bidora_jax import info
from bidora_jax.kernels.cuda import ops
from bidora_jax.machine import facts, memory
from bidora_jax.models.architectures import published
from bidora_jax.planning import plans, published_steps, recommendation


def run(*flags: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-m", "bidora_jax.info", *flags], cwd=ROOT,
                          env=os.environ | environment, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_json_holds_the_facts():
    facts = json.loads(run("--json"))
    assert list(facts) == ["software", "devices", "cuda ops", "host"]
    software, host = facts["software"], facts["host"]
    assert software["bidora_jax"] == bidora_jax.__version__ and software["python"] == platform.python_version()
    assert software["jax"] == jax.__version__ and None not in software.values()
    assert facts["devices"]["platform"] == "cpu" and facts["devices"]["cpu:0"] == "cpu"
    assert facts["cuda ops"] == {"dequantisation": ops.status()}
    assert host["cores"] == os.cpu_count() >= host["cores usable"] >= 1
    assert host["memory"] > 2**28


def test_text_is_the_same_facts_aligned():
    facts, text = json.loads(run("--json")), run()
    values = [line for line in text.splitlines() if line.startswith("  ")]
    assert len(values) == sum(len(section) for section in facts.values())
    start = values[0].index(facts["software"]["bidora_jax"])
    assert {line[start - 1] for line in values} == {" "} and " " not in {line[start] for line in values}
    gibibytes = next(line[start:] for line in values if line.split()[:1] == ["memory"])
    assert gibibytes == f"{facts['host']['memory'] / 2**30:.1f} GiB"


def test_a_platform_that_does_not_start_is_reported():
    assert "none; Unable to initialize backend 'rocm'" in run(JAX_PLATFORMS="rocm")


def test_a_gpu_is_shown_with_its_capability_and_memory(monkeypatch):
    class Gpu(SimpleNamespace):
        def __str__(self):
            return "cuda:0"

        def memory_stats(self):
            return {"bytes_limit": 3 * 2**30, "bytes_in_use": 2**29}

    monkeypatch.setattr(jax, "local_devices", lambda: [Gpu(device_kind="NVIDIA X", compute_capability="9.0")])
    text = info.as_text({"devices": facts.devices()})
    rows = dict(line.strip().split("  ", 1) for line in text.splitlines()[1:])
    assert {name: value.strip() for name, value in rows.items()} == {
        "platform": "cpu", "processes": "1", "cuda:0": "NVIDIA X, compute capability 9.0", "cuda:0 memory": "3.0 GiB",
        "cuda:0 memory in use": "0.5 GiB",
    }  # fmt: skip


@pytest.mark.parametrize(("text", "model", "features"), [
    ("processor : 0\nmodel name : A: B\nflags : fpu avx2 amx_bf16\n\nmodel name : other\nflags : sse\n", "A: B",
     ["avx2", "amx_bf16"]),
    ("processor : 0\nFeatures : fp asimd bf16 sve\n", None, ["bf16", "sve"]),
])  # fmt: skip
def test_the_cpu_is_read_off_its_first_core(monkeypatch, text, model, features):
    monkeypatch.setattr(facts, "_read", lambda file: text if "cpuinfo" in file else "")
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert facts.host()["cpu"] == model and facts.host()["features"] == features


@pytest.mark.parametrize(
    ("limit", "expected"), [("4294967296\n", 2**32), ("max\n", None), ("9223372036854771712\n", None)]
)
def test_a_container_limit_is_shown_where_there_is_one(monkeypatch, limit, expected):
    monkeypatch.setattr(memory, "read", lambda file: limit if "cgroup" in file else "")
    assert facts.host().get("memory limit") == expected


def test_the_largest_model_that_fits_and_is_fast_enough_is_recommended(monkeypatch):
    """8B's base alone is over the limit in every form; 4B's step fits in nf4 only, and takes too long on a slow CPU."""
    peaks = {("Qwen/Qwen3-4B", "nf4"): 3.9e9, ("Qwen/Qwen3-4B", "int8"): 5e9, ("Qwen/Qwen3-1.7B", "none"): 4e9}
    shapes = {published.shape(name): name for name in published.MODELS}
    counted = []

    def step_bytes(config, plan):
        counted.append((shapes[config], plan.model.quantization))
        return peaks[counted[-1]]

    monkeypatch.setattr(published_steps, "step_bytes", step_bytes)
    monkeypatch.setattr(memory, "device_memory", lambda: memory.Memory(5 * 10**9, ""))
    monkeypatch.setattr(plans, "dot_rate", lambda dtype: 1e13)
    found = recommendation.recommended()
    assert (found["model"], found["quantization"], found["memory of a step"]) == ("Qwen/Qwen3-4B", "nf4", 3.9e9)
    assert "--model.path Qwen/Qwen3-4B --model.dtype bfloat16 --model.quantization nf4" in str(found["command"])
    assert all("8B" not in name and "32B" not in name for name, _ in counted)
    monkeypatch.setattr(plans, "dot_rate", lambda dtype: 5e11)
    assert recommendation.recommended()["model"] == "Qwen/Qwen3-1.7B"


def test_help_and_import_are_quick():
    code = "import sys, bidora_jax.info; print(sorted({'jax', 'tyro', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert "--json" in run("--help")
