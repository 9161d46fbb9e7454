"""machine/facts.py, machine/version.py: what is said of machines that are not here."""

import platform
from types import SimpleNamespace

import jax
import pytest

from bidora_jax.machine import facts, memory


def test_a_gpu_is_shown_with_its_capability_and_memory(monkeypatch):
    class Gpu(SimpleNamespace):
        def __str__(self):
            return "cuda:0"

        def memory_stats(self):
            return {"bytes_limit": 3 * 2**30, "bytes_in_use": 2**29}

    monkeypatch.setattr(jax, "local_devices", lambda: [Gpu(device_kind="NVIDIA X", compute_capability="9.0")])
    text = facts.as_text({"devices": facts.devices()})
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
    monkeypatch.setattr(memory, "read", lambda file: text if "cpuinfo" in file else "")
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert facts.host()["cpu"] == model and facts.host()["features"] == features


@pytest.mark.parametrize(
    ("limit", "expected"), [("4294967296\n", 2**32), ("max\n", None), ("9223372036854771712\n", None)]
)
def test_a_container_limit_is_shown_where_there_is_one(monkeypatch, limit, expected):
    monkeypatch.setattr(memory, "read", lambda file: limit if "cgroup" in file else "")
    assert facts.host().get("memory limit") == expected
