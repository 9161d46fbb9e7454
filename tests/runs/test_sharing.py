"""runs/sharing.py: runs in one process read their model once and compile equal steps once, and train what they train alone."""

from pathlib import Path

import jax
import pytest

from bidora_jax import Shared, finetune
from bidora_jax.runs.compile_clock import COMPILED

WEIGHTS = Path("adapter", "adapter_model.safetensors")
SETTINGS = {"rank": 3, "lr": 0.1, "adapter.target_modules": ["q_proj"], "adapter.method": "bidora", "search.steps": 2,
            "retrain.steps": 1, "data.padded_lengths": [64], "report": False, "compilation_cache": ""}  # fmt: skip


def texts(seed: int) -> list[dict]:
    """Records whose lengths and answers differ by seed."""
    words = ("stone", "leaf", "sky", "rose")
    return [{"text": " ".join(words[(seed + number + at) % 4] for at in range(3 + (number * seed) % 4)),
             "label": words[(seed * number) % 3]} for number in range(1, 13)]  # fmt: skip


def answers(seed: int) -> list[dict]:
    return [{"instruction": row["text"], "output": row["label"]} for row in texts(seed)]


@pytest.fixture
def compiled():
    """The names of the programs that JAX has compiled, or read from its cache, since the test began."""
    names: list[str] = []

    def add(event: str, _: float, **about) -> None:
        if event == COMPILED:
            names.append(str(about.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(add)
    yield names
    jax.monitoring.unregister_event_duration_listener(add)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "more"), [(texts, {"task": "classification", "task.labels": ["stone", "leaf", "sky"]}),
                                            (answers, {})], ids=["classifier", "language model"])  # fmt: skip
def test_the_second_run_loads_and_compiles_nothing_and_is_the_run_alone(rows, more, model_folder, tmp_path, compiled):
    def train(seed: int, output: str, **shared):
        parts = rows(seed)
        return finetune(
            model=model_folder, train=parts[:8], val=parts[8:], output=tmp_path / output, **SETTINGS, **more, **shared
        )

    shared = Shared()
    train(1, "first", shared=shared)
    assert compiled
    compiled.clear()
    train(2, "second", shared=shared)
    assert compiled == []
    assert shared.loads == 1
    train(2, "alone")
    assert compiled  # a run alone compiles its steps
    second, alone = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("second", "alone"))
    assert second == alone
    assert second != (tmp_path / "first" / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_another_rate_or_course_compiles_nothing_and_other_settings_do(model_folder, tmp_path, compiled):
    shared, given = Shared(), {**SETTINGS, "adapter.method": "lora", "search.steps": 1}
    longer = {"lr": 0.2, "search.steps": 4, "inner.warmup": 0.3}
    cases = (("first", {}, True), ("rate", {"lr": 0.2}, False), ("longer", longer, False),
             ("cosine", {**longer, "inner.schedule": "cosine"}, True), ("dtype", {"model.dtype": "bfloat16"}, True))  # fmt: skip
    weights = {}
    for name, more, compiles in cases:
        parts = answers(1)
        compiled.clear()
        finetune(model=model_folder, train=parts, output=tmp_path / name, shared=shared, **{**given, **more})
        assert ("train_step" in str(compiled)) == compiles, (name, compiled)
        finetune(model=model_folder, train=parts, output=tmp_path / f"{name} alone", **{**given, **more})
        weights[name], alone = ((tmp_path / where / WEIGHTS).read_bytes() for where in (name, f"{name} alone"))
        assert weights[name] == alone, name
    assert len({*weights.values()}) == len(cases)
    assert shared.loads == 2  # in float32 and in bfloat16


def test_a_model_whose_weights_have_changed_is_read_anew(model_folder, tmp_path):
    import os
    import shutil

    from bidora_jax.models.formats import hf_config
    from bidora_jax.models.settings import ModelConfig

    folder = shutil.copytree(model_folder, tmp_path / "model")
    config, shared = hf_config.read_config(folder), Shared()
    first = shared.base(ModelConfig(), folder, config)
    assert shared.base(ModelConfig(remat="layer"), folder, config) is first
    os.utime(folder / "model.safetensors", (1, 1))
    assert shared.base(ModelConfig(), folder, config) is not first
    assert shared.loads == 2


def test_a_record_longer_than_the_padded_lengths_is_refused(model_folder, tmp_path):
    from bidora_jax import InputError

    long = [{"instruction": "stone " * 20, "output": "sky"}] * 8
    with pytest.raises(InputError, match=r"data\.padded_lengths end with 64, and a record has \d+ tokens"):
        finetune(model=model_folder, train=long, val=long, output=tmp_path / "run", **SETTINGS)
    with pytest.raises(InputError, match=r"data\.padded_lengths must be at least 1 and ascend, found 64, 32"):
        finetune(model=model_folder, train=long, val=long, output=tmp_path / "run",
                 **{**SETTINGS, "data.padded_lengths": [64, 32]})  # fmt: skip
    assert not (tmp_path / "run").exists()
