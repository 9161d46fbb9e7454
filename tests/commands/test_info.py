"""info.py: python -m bidora_jax.info, as it is run."""

import json
import os
import platform
import subprocess
import sys

import jax
from runs import ROOT

import bidora_jax
from bidora_jax.kernels.cuda import ops


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


def test_help_and_import_are_quick():
    code = "import sys, bidora_jax.info; print(sorted({'jax', 'tyro', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert "--json" in run("--help")
