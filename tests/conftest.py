import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of a test's time, and at these sizes LLVM's optimisation buys nothing back.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest
from tiny import write_model_folder, write_records

jax.config.update("jax_numpy_rank_promotion", "raise")


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
