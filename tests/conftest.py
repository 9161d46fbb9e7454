import itertools
import json
import os
import shutil
from pathlib import Path

import environment  # sets what JAX reads when it is imported
import jax
import pytest
from histories import write_run
from random_adapters import KINDS, random_adapter
from runs import BIDORA, inputs, once, process
from tiny import CONFIG, write_model_folder, write_records

jax.config.update("jax_numpy_rank_promotion", "raise")


MOST_MAPPINGS = 20_000
"""Linux gives a process 65,530; every compiled program takes some, and the compiler crashes when there are none left."""
finished = itertools.count(1)


@pytest.fixture(autouse=True)
def room_for_programs():
    """Forgets what is compiled before a worker runs out of memory mappings; looks at every tenth test."""
    yield
    mappings = Path("/proc/self/maps")
    if next(finished) % 10 == 0 and mappings.exists() and len(mappings.read_bytes().splitlines()) > MOST_MAPPINGS:
        jax.clear_caches()


def pytest_unconfigure():
    shutil.rmtree(environment.PROGRAMS, ignore_errors=True)


@pytest.fixture
def x64():
    """float64 throughout, for tests against closed forms and central differences."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random Qwen3 of two layers with a tokenizer and a chat template, in float32."""
    return write_model_folder(tmp_path_factory.mktemp("model") / "tiny-qwen3")


@pytest.fixture(scope="session")
def data_files(tmp_path_factory):
    """(train, val, test) JSONL files of 23, 11 and 5 records."""
    folder = tmp_path_factory.mktemp("data")
    return tuple(write_records(folder / f"{name}.jsonl", n, seed) for seed, (name, n) in enumerate(
        (("train", 23), ("val", 11), ("test", 5))
    ))  # fmt: skip


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """One temporary folder for all processes of a pytest run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def finished_run(shared_folder, model_folder, data_files):
    """Folder of a whole BiDoRA run (its run folder `run`, its command line argv.json, compiled programs `compiled`)."""

    def make(folder):
        argv = [*inputs(model_folder, data_files, folder / "run"), *BIDORA, "--report"]
        (folder / "argv.json").write_text(json.dumps(argv))
        done = process(["-W", "error", "-m", "bidora_jax.train", *argv], folder / "compiled")
        assert done.returncode == 0, done.stderr
        (folder / "stdout").write_text(done.stdout)

    return once(shared_folder / "finished", make)


@pytest.fixture(scope="session")
def killed(tmp_path_factory):
    """The folder of a run that was killed, with its report."""
    from bidora_jax.runs import report

    run = write_run(tmp_path_factory.mktemp("killed") / "run <1>")
    report.write(run, run / "report")
    return run


@pytest.fixture(scope="session")
def adapter_folders(tmp_path_factory):
    """Two adapters of the tiny model by name."""
    from bidora_jax.models.formats import peft

    root = tmp_path_factory.mktemp("adapters")
    for name in ("lora", "dora"):
        adapter, *trained = random_adapter(KINDS[name])
        peft.save_adapter(root / name, CONFIG, adapter, KINDS[name], *trained, base_model_name="x")
    return {name: root / name for name in ("lora", "dora")}
