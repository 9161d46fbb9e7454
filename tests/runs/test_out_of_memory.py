"""runs/out_of_memory.py: out of memory becomes one message with what would help, counted by the compiler."""

import jax.numpy as jnp
import pytest

from bidora_jax.config import Config, parse_train
from bidora_jax.errors import RunError
from bidora_jax.runs.out_of_memory import explained, is_out_of_memory


def test_running_out_names_three_settings_by_what_they_save(model_folder):
    flags = ["--adapter.method", "lora", "--adapter.rank", "3", "--adapter.target-modules", "q_proj", "--model.remat", "none",
             "--data.batch-size", "4", "--model.loss-chunk", "64", "--model.path", str(model_folder)]  # fmt: skip
    config, _ = parse_train(flags)
    with pytest.raises(RunError, match=r"^out of memory \(RESOURCE_EXHAUSTED") as told, explained(config, 63):
        jnp.zeros(2**46, jnp.int8)  # 64 TiB
    lines = str(told.value).splitlines()
    assert "what lowers the peak most" in lines[0]
    assert len(lines) == 4
    assert {"--data.batch-size 1 --data.accumulation 4", "--model.remat layer"} <= {
        line.strip().partition(" (")[0] for line in lines[1:]
    }
    peaks = [float(line.split("→ ")[1].split(" MB")[0]) for line in lines[1:]]
    assert peaks == sorted(peaks)


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), explained(Config()):
        raise ZeroDivisionError
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(RuntimeError("RESOURCE_EXHAUSTED"))
